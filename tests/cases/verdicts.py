"""What a captured step gives beside plain PhiFlow: values and gradients, taken apart by PhiML's own means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from phi.geom import UniformGrid
from phi.torch.flow import Box, Field, Geometry, Tensor, math

import phi_hybrid as ph
from cases.programs import Program, in_precision, moved, plain_phiflow
from phi_hybrid import _compat

EXAMPLE, NEW = 0, 1
"""Seeds of the arguments that are captured with, and of those that are compared on."""
FACTOR = 64
"""Allowed differences, in those that one rounding of all inputs and cotangents makes."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of a program.

    Attributes:
        kind: "equal", "invalid" where plain PhiFlow fails, "refused", or what is wrong.
        detail: message or difference.
    """

    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Outcome:
    """Result of a call: its structure, its tensors, and the gradient of their products with fixed cotangents."""

    structure: list[str]
    values: list[torch.Tensor]
    gradients: list[torch.Tensor]


def judge(program: Program, capture: Callable = ph.capture) -> Verdict:
    """Compares a captured step with plain PhiFlow on arguments that were not captured with."""
    step = program.make_step()
    plain = Side(step, step, program, plain_phiflow)
    try:
        expected, differentiable = plain_outcome(plain)
    except Exception as error:
        return Verdict("invalid", f"{type(error).__name__}: {error}")
    try:
        with in_precision(program.precision):
            captured = Side(capture(step, *program.prepare(step, EXAMPLE)[0]), step, program, in_precision)
    except (ph.CaptureError, ph.StateError) as error:
        return Verdict("refused", str(error))
    except Exception as error:
        return Verdict(f"bare {type(error).__name__} of capture", str(error))
    try:
        scribble(captured.outcome(EXAMPLE, False))
        found = captured.outcome(NEW, differentiable)
    except Exception as error:
        return Verdict(f"bare {type(error).__name__} of the block", str(error))
    return compare(found, expected, lambda: plain.outcome(NEW, differentiable, rounding=1.0), program.rounds)


def plain_outcome(plain: Side) -> tuple[Outcome, bool]:
    """With gradients, or without where torch has none."""
    try:
        return plain.outcome(NEW), True
    except Exception:
        return plain.outcome(NEW, differentiable=False), False


def scribble(result: Outcome) -> None:
    """Overwrites a result, which must not touch later ones."""
    for t in result.values:
        if t.is_floating_point() and 0 not in t.stride():
            t.fill_(7.0)


@dataclass(frozen=True)
class Side:
    """Plain PhiFlow, or the captured step, called with the arguments of a program."""

    call: Callable
    step: Callable
    program: Program
    context: Callable

    def outcome(self, seed: int, differentiable: bool = True, rounding: float = 0.0) -> Outcome:
        """Result for the arguments of a seed; `rounding` moves inputs and cotangents by units in the last place."""
        arguments, leaves = self.program.prepare(self.step, seed, differentiable, rounding)
        with self.context(self.program.precision):
            parts = list(take_apart(self.call(*arguments)))
            values = [t for _, t in parts if t is not None]
            gradients = vector_jacobian_product(values, leaves, rounding) if differentiable else []
        return Outcome([s for s, _ in parts], [t.detach() for t in values], gradients)


def vector_jacobian_product(
    values: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor], rounding: float
) -> list[torch.Tensor]:
    """Gradient of Re Σ w·value with random weights w."""
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in values]
    pairs = [(t, moved(w, rounding)) for t, w in zip(values, weights) if t.requires_grad]
    if not pairs or not leaves:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad([t for t, _ in pairs], leaves, [w for _, w in pairs], allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves)]


def take_apart(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor | None]]:
    """Structure in words and tensors of a state, by PhiML's own means."""
    if isinstance(value, dict):
        yield f"{path} dict of {list(value)}", None
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        yield f"{path} {type(value).__name__} of {len(value)}", None
        for number, entry in enumerate(value):
            yield from take_apart(entry, f"{path}.{number}")
    elif isinstance(value, Field):
        sides = sorted(_compat.sides_in_order(value.boundary).items()) or value.boundary
        yield f"{path} field at {value.sampled_at}, {sides}", None
        yield from take_apart(value.geometry, path + ".geometry")
        yield from _tensor(value.values, path + ".values", value.geometry.shape.spatial.names)
    elif isinstance(value, UniformGrid):
        sides = [(n, value.resolution.get_size(n), *ends(value.bounds, n)) for n in value.resolution.names]
        yield f"{path} grid {sides}", None
    elif isinstance(value, Geometry):
        yield f"{path} {type(value).__name__}", None
        yield from take_apart([value.center, value.bounding_radius()], path)
    elif isinstance(value, Tensor):
        yield from _tensor(value, path)
    else:
        yield f"{path} {value!r}", None


def ends(box: Box, name: str) -> tuple[float, float]:
    return float(box.lower.vector[name]), float(box.upper.vector[name])


def _tensor(
    value: Tensor, path: str, spatial: Sequence[str] | None = None
) -> Iterator[tuple[str, torch.Tensor | None]]:
    if not value.shape.is_uniform:
        dim = next(n for n in value.shape.names if all(p.shape.is_uniform for p in math.unstack(value, n)))
        yield f"{path} stack along {dim}: {value.shape.get_item_names(dim)}", None
        for number, part in enumerate(math.unstack(value, dim)):
            yield from _tensor(part, f"{path}.{number}", spatial)
        return
    shape = value.shape
    order = [*(spatial or shape.spatial.names), *sorted(shape.non_spatial.names)]
    labels = {n: shape.get_item_names(n) for n in order}
    types = {n: shape.only(n).type.__name__ for n in order}
    with math.precision(value.dtype.precision):  # to which native() casts where it transposes
        native = torch.as_tensor(value.native(order) if order else value.native())
    yield f"{path} {native.dtype} {dict(zip(order, native.shape))} {types} {labels}", native


def compare(found: Outcome, expected: Outcome, rounded: Callable[[], Outcome], rounds: bool) -> Verdict:
    """Structure, values to the last bit unless they may be rounded otherwise, gradients to rounding.

    Args:
        rounded: what plain PhiFlow gives for inputs and cotangents with one more rounding, as a measure.
    """
    if found.structure != expected.structure:
        pairs = zip_longest(found.structure, expected.structure)
        return Verdict("wrong structure", " but eager ".join(map(str, next(p for p in pairs if p[0] != p[1]))))
    if all(map(same, found.values + found.gradients, expected.values + expected.gradients)):
        return Verdict("equal")
    measure = rounded()
    for kind in ("values", "gradients"):
        exact = kind == "values" and not rounds
        for number, (a, b, c) in enumerate(zip(*(getattr(outcome, kind) for outcome in (found, expected, measure)))):
            difference, allowed = distance(a, b), FACTOR * distance(c, b) + 4 * precision_of(b) * largest(b)
            if not same(a, b) and (exact or not difference <= allowed):
                small = ", within rounding" if difference <= allowed else ""
                return Verdict(
                    f"wrong {kind}{small}",
                    f"number {number} differs by {difference:.2e}, allowed {allowed:.2e}, largest {largest(b):.2e}",
                )
    return Verdict("equal", "within rounding")


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit; zeros have signs, NaN equals NaN."""
    if a.is_complex():
        return same(torch.view_as_real(a), torch.view_as_real(b))
    if not a.is_floating_point():
        return torch.equal(a, b)
    return bool(((a == b) & (a.signbit() == b.signbit()) | a.isnan() & b.isnan()).all())


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    return float(torch.where(a == b, 0, (a - b).abs()).nan_to_num(0.0).max()) if a.numel() else 0.0


def largest(a: torch.Tensor) -> float:
    return float(a.abs().nan_to_num(0.0, 0.0, 0.0).max())


def precision_of(a: torch.Tensor) -> float:
    return torch.finfo(a.dtype).eps if a.is_floating_point() or a.is_complex() else 0.0
