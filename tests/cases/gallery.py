"""Steps written as PhiFlow users write them: captured, they are eager PhiFlow, only faster.

Eager PhiFlow with exact solves is the oracle. Results are fed back as `iterate` does it: a step returns its positional
arguments, and keywords stay the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from phi.torch.flow import TORCH, Field, Tensor, channel, dual, math
from phiml.math._functional import JitFunction
from phiml.math._tree import tree_map, variable_attributes

import phi_hybrid as ph
from phi_hybrid import _compat


@dataclass(frozen=True)
class Kind:
    """A kind of step.

    Args:
        step: the PhiFlow function, decorated or not.
        start: makes the positional arguments of the first call, which the results replace.
        keywords: arguments that stay.
        captures: how many graphs several steps need; two where an argument is `None` at first, or integers are.
        repeats: whether results replace the arguments; not those of a loss, for example.
        rounding: by how much captured and eager values may differ, relative to the largest; 0 for equality to the bit.
        precision: bits of values; derivatives are compared with 64.
    """

    step: Callable
    start: Callable[[], tuple]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    captures: int = 1
    repeats: bool = True
    rounding: float = 0.0
    precision: int = 32

    def arguments(self) -> tuple:
        """The positional arguments, the same at each call."""
        math.seed(0)
        return self.start()


def check_values(kind: Kind, steps: int = 3) -> None:
    """Captured and eager steps give the same states, each fed with its own results, in few captures."""
    block = ph.capture(kind.step)
    with math.precision(kind.precision):
        eager = captured = start = kind.arguments()
        for _ in range(steps if kind.repeats else 1):
            with exactly():
                eager = results(kind.step(*eager[: len(start)], **kind.keywords))
            captured = results(block(*captured[: len(start)], **kind.keywords))
            assert_same(captured, eager, kind.rounding)
    assert block._captures == kind.captures, f"{block._captures} captures, not {kind.captures}"


def check_derivatives(kind: Kind, steps: int = 2, rounding: float = 1e-9, **parameters: Any) -> None:
    """Gradients of a loss of the last state by all arguments and by `parameters` are those of eager PhiFlow, in float64.

    They are taken after a first step, since interpolation in a fluid at rest has kinks.

    Args:
        kind: whose step takes the parameters as keywords.
        steps: how many to differentiate through.
        rounding: relative to the largest entry of each gradient.
        **parameters: numbers, tensors, fields or geometries; no gradient by one of them vanishes.
    """
    block = ph.capture(kind.step)
    with math.precision(64):
        inputs: list[torch.Tensor] = []
        parameters = tracked({k: as_tensor(v) for k, v in parameters.items()}, inputs)
        number = len(inputs)
        start = tracked(state_after_one_step(kind, parameters), inputs)

        def gradients(step: Callable) -> list[torch.Tensor | None]:
            state = start
            for _ in range(steps if kind.repeats else 1):
                state = results(step(*state[: len(start)], **{**kind.keywords, **parameters}))
            return list(torch.autograd.grad(loss(state), inputs, allow_unused=True))

        with exactly(), _compat.plain_products():  # PhiML's own gradient of `safe_mul` has the wrong shape at times
            expected = gradients(kind.step)
        found = gradients(block)
    assert all(g is not None and g.abs().max() > 0 for g in expected[:number])
    assert any(g is not None and g.abs().max() > 0 for g in expected)
    for a, b in zip(found, expected):
        assert_equal(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b, rounding)


def state_after_one_step(kind: Kind, parameters: Mapping[str, Any] = MappingProxyType({})) -> tuple:
    """Arguments of the second step, by eager PhiFlow; of the first one where results are no arguments."""
    start = kind.arguments()
    if not kind.repeats:
        return start
    with torch.no_grad(), exactly():
        return results(kind.step(*start, **{**kind.keywords, **parameters}))[: len(start)]


def second_step(kind: Kind, captured: bool) -> Callable[[], Any]:
    """A call of the step after the first one, eager or captured, to be timed."""
    step = ph.capture(kind.step) if captured else kind.step
    mode = contextlib.nullcontext if captured else exactly
    with math.precision(kind.precision):
        state = state_after_one_step(kind)

    def call() -> Any:
        with torch.no_grad(), mode(), math.precision(kind.precision):
            return step(*state, **kind.keywords)

    return call


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """Eager PhiFlow with exact solves; decorated functions run as they are, since torch's own tracer changes them."""
    plain = mock.patch.object(JitFunction, "__call__", lambda self, *args, **keywords: self.f(*args, **keywords))
    with ph.linear_solve.linear_solves(), plain:
        yield


def results(state: Any) -> tuple:
    """What a step returns, as a tuple."""
    return tuple(state) if isinstance(state, (tuple, list)) else (state,)


def as_tensor(value: Any) -> Any:
    """Numbers as tensors."""
    return math.wrap(value) if isinstance(value, (int, float)) else value


def attributes(node: Any) -> tuple[str, ...]:
    """Attributes that change during a simulation; those of point clouds include where they are."""
    if isinstance(node, Field):
        return ("values",) if node.is_grid or node.is_mesh else ("geometry", "values")
    return tuple(sorted(variable_attributes(node)))


def tensors(state: Any) -> list[Tensor]:
    """All PhiML tensors and numbers of a state."""
    found: list[Any] = []
    tree_map(lambda leaf: found.append(as_tensor(leaf)) or leaf, state, attr_type=attributes)
    return [leaf for leaf in found if isinstance(leaf, Tensor)]


def natives(tensor: Tensor) -> list[torch.Tensor]:
    """Native tensors with axes sorted by name, one for each entry of a dim along which shapes differ."""
    if not tensor.shape.is_uniform:
        (dim,) = [d for d in (*dual(tensor).names, *channel(tensor).names) if d in ("~vector", "vector")]
        return [n for i in range(tensor.shape.get_size(dim)) for n in natives(tensor[{dim: i}])]
    with math.precision(tensor.dtype.precision):  # to which native() casts
        return [torch.as_tensor(math.dense(tensor).native(sorted(tensor.shape.names)))]


def tracked(state: Any, inputs: list[torch.Tensor]) -> Any:
    """The state in float64, its tensors differentiable; they are appended to `inputs`."""

    def track(native: Any) -> torch.Tensor:
        native = torch.as_tensor(native).detach()
        dtype = torch.complex128 if native.is_complex() else torch.float64
        inputs.append(native.to(dtype, copy=True).requires_grad_())
        return inputs[-1]

    def differentiable(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dtype.kind not in (float, complex):
            return leaf
        return math.convert(leaf, TORCH)._op1(track, "track")

    return tree_map(differentiable, state, attr_type=attributes)


def loss(state: Any) -> torch.Tensor:
    """Σ w·x + x²/2 over all values x, real and imaginary parts, with weights w that differ from entry to entry."""
    values = [n for t in tensors(state) for n in natives(t) if n.requires_grad]
    values = [torch.view_as_real(n).flatten() if n.is_complex() else n.flatten() for n in values]
    return sum((torch.cos(torch.arange(len(x), dtype=x.dtype)) * x + x**2 / 2).sum() for x in values)


def assert_same(found: Any, expected: Any, rounding: float) -> None:
    """States of the same kind with the same values."""
    kinds = [[str(t.shape) for t in tensors(state)] for state in (found, expected)]
    assert len(kinds[0]) == len(kinds[1]) > 0, f"{kinds[0]} and {kinds[1]}"
    for a, b in zip(tensors(found), tensors(expected)):
        assert set(a.shape.names) == set(b.shape.names), f"{a.shape} and {b.shape}"
        for x, y in zip(natives(a), natives(b)):
            assert_equal(x, y, rounding)


def assert_equal(a: torch.Tensor, b: torch.Tensor, rounding: float) -> None:
    """‖a − b‖ ≤ rounding ‖b‖ in the largest entry; to the last bit where `rounding` is 0.

    Python's numbers are of double precision until PhiFlow computes with them, so that eager results may hold some. Whole
    numbers that describe bodies are real in captured results.
    """
    assert (a.is_floating_point() or not b.is_floating_point()) and a.is_complex() == b.is_complex()
    b = b.to(a.dtype)
    if rounding == 0:
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    else:
        scale = float(b.abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a.expand(b.shape), b, rtol=0, atol=rounding * scale, equal_nan=True)
