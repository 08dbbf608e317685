"""What a captured step gives beside plain PhiFlow: values and gradients, taken apart by PhiML's own means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from phi.torch.flow import Field, Tensor, math

import phi_hybrid as ph
from cases.programs import Program, in_precision, moved, plain_phiflow

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


def judge(program: Program) -> Verdict:
    """Compares on arguments that were not captured with."""
    step, precision = program.step, program.precision
    try:
        expected = outcome(step, program, NEW, context=plain_phiflow)
    except Exception as error:
        return Verdict("invalid", f"{type(error).__name__}: {error}")
    try:
        with in_precision(precision):
            block = ph.capture(step, *program.call_with(EXAMPLE)[0])
    except (ph.CaptureError, ph.StateError) as error:
        return Verdict("refused", str(error))
    except Exception as error:
        return Verdict(f"bare {type(error).__name__} of capture", str(error))
    try:
        scribble(outcome(block, program, EXAMPLE))
        found = outcome(block, program, NEW)
    except Exception as error:
        return Verdict(f"bare {type(error).__name__} of the block", str(error))
    return compare(found, expected, lambda: outcome(step, program, NEW, 1.0, plain_phiflow), program.solves)


def scribble(result: Outcome) -> None:
    """Overwrites a result, which must not touch later ones."""
    for t in result.values:
        if t.is_floating_point() and 0 not in t.stride():
            t.fill_(7.0)


def outcome(
    step: Callable, program: Program, seed: int, rounding: float = 0.0, context: Callable = in_precision
) -> Outcome:
    """Result and vector–Jacobian product; `rounding` moves inputs and cotangents by so many units in the last place."""
    arguments, leaves = program.call_with(seed, differentiable=True, rounding=rounding)
    with context(program.precision):
        parts = list(take_apart(step(*arguments)))
    values = [t for _, t in parts if t is not None]
    generator = torch.Generator().manual_seed(5)
    weights = [
        moved(torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype), rounding) for t in values
    ]
    pairs = [(t, w) for t, w in zip(values, weights) if t.requires_grad]
    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    if pairs and leaves:
        found = torch.autograd.grad([t for t, _ in pairs], leaves, [w for _, w in pairs], allow_unused=True)
        gradients = [z if g is None else g for g, z in zip(found, gradients)]
    return Outcome([s for s, _ in parts], [t.detach() for t in values], gradients)


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
        bounds = [
            f"{n}={value.resolution.get_size(n)} {float(value.bounds.lower[n]):.9g} {float(value.bounds.upper[n]):.9g}"
            for n in value.resolution.names
        ]
        yield f"{path} field at {value.sampled_at} on {bounds}, {value.boundary}", None
        yield from _tensor(value.values, path + ".values", value.resolution.names)
    elif isinstance(value, Tensor):
        yield from _tensor(value, path)
    else:
        yield f"{path} {value!r}", None


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
    native = torch.as_tensor(value.native(order) if order else value.native())
    yield f"{path} {native.dtype} {dict(zip(order, native.shape))} {types} {labels}", native


def compare(found: Outcome, expected: Outcome, jittered: Callable[[], Outcome], solves: bool) -> Verdict:
    if found.structure != expected.structure:
        differing = next(
            (p for p in zip(found.structure, expected.structure) if p[0] != p[1]),
            (len(found.structure), len(expected.structure)),
        )
        return Verdict("wrong structure", f"{differing[0]}  but eager  {differing[1]}")
    if all(map(same, found.values + found.gradients, expected.values + expected.gradients)):
        return Verdict("equal")
    moved = jittered()
    kinds = [
        ("value", found.values, expected.values, moved.values),
        ("gradient", found.gradients, expected.gradients, moved.gradients),
    ]
    for kind, own, its, other in kinds:
        for number, (a, b, c) in enumerate(zip(own, its, other)):
            if same(a, b):
                continue
            exact = kind == "value" and not solves
            difference, allowed = distance(a, b), FACTOR * distance(c, b) + 4 * precision_of(b) * largest(b)
            if exact or not difference <= allowed:
                within = ", within rounding" if difference <= allowed else ""
                return Verdict(
                    f"wrong {kind}{within}",
                    f"{kind} {number}: {difference:.2e} of {largest(b):.2e}, allowed {allowed:.2e}",
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
