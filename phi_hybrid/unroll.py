"""Repeated steps on native tensors, inputs that change with time, and rollouts of PhiFlow states."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any

import torch

from phi_hybrid.bridge.layout import (
    Layout,
    batch_names,
    difference,
    expand,
    flatten,
    position_of,
    stack,
    tuple_of,
    unflatten,
    with_batch,
    without,
)
from phi_hybrid.capture import NativeFace, NativeStep, PlainStep
from phi_hybrid.capture.face import check_tensors
from phi_hybrid.errors import NonFiniteError, SolveError, StateError

Tensors = tuple[torch.Tensor, ...]

TIME = "time"
"""Name of the batch dim that runs over solver steps."""


@dataclass(frozen=True)
class Inputs:
    """Extra arguments of a step: constant, or with a batch dim `time` that is sliced step by step."""

    tensors: Tensors
    layout: Layout

    def at(self, step: int) -> Tensors:
        """The tensors of one step."""
        positions = [position_of(TIME, axes) for axes in self.layout.leaves]
        return tuple(t if p is None else t.select(p, step) for t, p in zip(self.tensors, positions))

    @property
    def frame_layout(self) -> Layout:
        """Layout of `at(step)`."""
        return without(self.layout, TIME)

    def check_length(self, steps: int) -> None:
        for tensor, axes in zip(self.tensors, self.layout.leaves):
            position = position_of(TIME, axes)
            if position is not None and tensor.shape[position] < steps:
                raise StateError(
                    f"an input has {tensor.shape[position]} entries along '{TIME}' but {steps} steps need {steps}; "
                    "pass more entries or fewer steps"
                )


@dataclass(frozen=True)
class Bound:
    """A native step whose output can be its next input, with the state to start from."""

    step: NativeStep
    state: Tensors
    layout: Layout
    """Of the state."""


def flatten_arguments(state: Any, inputs: Sequence[Any]) -> tuple[Tensors, Layout, Inputs]:
    """Tensors and layout of a state, and inputs beside it, in one precision as for a single step.

    Raises:
        StateError: for arguments of different precisions or devices.
    """
    tensors, layout = flatten((state, *inputs))
    check_tensors(tensors, layout)
    first, *others = layout.children
    count = len(first.leaves)
    return tensors[:count], first, Inputs(tensors[count:], tuple_of(*others))


def as_step(step: Callable) -> NativeFace:
    """Blocks and hybrid solvers as they are, plain PhiFlow code behind the same face."""
    return step if isinstance(step, NativeFace) else PlainStep(step)


known_step: Callable[[Callable], NativeFace] = lru_cache(maxsize=64)(as_step)
"""Like `as_step`, but plain functions keep what they were bound to before."""


def bind(step: NativeFace, state: Tensors, layout: Layout, inputs: Inputs) -> Bound:
    """Binds a step to a state and inputs.

    A state that lacks batch dims of the inputs or of the step's result is repeated along them.

    Raises:
        StateError: if the step returns another kind of state than it takes.
    """
    for _ in range(2):
        arguments = (*state, *inputs.at(0))
        native = step.bind(tuple_of(layout, *inputs.frame_layout.children), arguments)
        if native.output_layout == layout:
            return Bound(native, state, layout)
        added = [n for n in batch_names(native.output_layout) if n not in batch_names(layout)]
        if with_batch(layout, *added) != with_batch(native.output_layout, *added):
            break
        sizes = [t.shape for t in native(*arguments)]
        widened = expand(state, layout, with_batch(layout, *added))
        state = tuple(t.expand(size).contiguous() for t, size in zip(widened, sizes))
        layout = with_batch(layout, *added)
    raise StateError(
        "the step cannot be repeated, since what it takes and what it returns differ: "
        f"{difference(layout, native.output_layout)}. Return a state like the one given, e.g. with u.with_values(…) or "
        "u.with_boundary(…)"
    )


def unroll(bound: Bound, inputs: Inputs, steps: int, start: int = 0) -> list[Tensors]:
    """`steps` states after the first, differentiable: uₙ₊₁ = S(uₙ, inputs(n))."""
    state, states = bound.state, []
    for n in range(start, start + steps):
        state = bound.step(*state, *inputs.at(n))
        states.append(state)
    return states


def rollout(step: Callable, state: Any, steps: int, *inputs: Any, check: bool = True) -> Any:
    """Repeats a step in evaluation mode, without recording gradients: u₀, u₁, …, u_steps.

    Args:
        step: `state, *inputs -> state`: PhiFlow code, `PhysicsBlock` or `HybridSolver`.
        state: u₀, e.g. fields of shape `(batch, x, y, vector)`; no dim `time`.
        steps: number of steps, at least 0.
        *inputs: further arguments of the step; those with a batch dim `time` are sliced, entry n for step n.
        check: whether a non-finite state is an error; otherwise it stays in the trajectory.

    Returns:
        State with a batch dim `time` of size `steps + 1`, `(time, batch, x, y, vector)`.

    Raises:
        NonFiniteError: at the first step whose result holds NaN or infinity; `error.trajectory` has the states before.
        SolveError: where a linear solve inside a step fails, likewise with `error.step` and `error.trajectory`.
        StateError: for negative `steps`, missing or too short inputs, inputs of another precision, or a state with a dim
            `time`.
    """
    if not isinstance(steps, Integral) or steps < 0:
        raise StateError(f"steps = {steps!r}: a rollout takes a number of steps ≥ 0")
    step = as_step(step)
    step.check_arguments((state, *inputs))
    tensors, layout, arguments = flatten_arguments(state, inputs)
    if TIME in batch_names(layout):
        raise StateError(f"the initial state has a dim '{TIME}'; pick a frame, e.g. state.time[0]")
    arguments.check_length(steps)
    if check:
        require_finite(tensors, 0, "the initial state")
    if steps == 0:
        return _as_trajectory([tensors], layout)
    with torch.no_grad(), evaluation_mode(step):
        bound = bind(step, tensors, layout, arguments)
        frames = [bound.state]
        for n in range(steps):
            try:
                frames.append(bound.step(*frames[-1], *arguments.at(n)))
            except SolveError as error:
                raise error.at(n + 1, f"in step {n + 1} of {steps}", _as_trajectory(frames, bound.layout)) from None
            if check and not all_finite(frames[-1]):
                raise NonFiniteError(
                    f"the state became NaN or infinite in step {n + 1} of {steps}"
                    f"{non_finite_entries(frames[-1], bound.layout)}. The states before are in "
                    "error.trajectory; reduce the time step, train with longer unrolling, or pass check=False",
                    n + 1,
                    _as_trajectory(frames[:-1], bound.layout),
                )
    return _as_trajectory(frames, bound.layout)


def _as_trajectory(frames: list[Tensors], layout: Layout) -> Any:
    tensors, stacked = stack(frames, layout, TIME)
    return unflatten(stacked, tensors)


@contextlib.contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """No dropout and no updates of batch statistics inside; every part gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(t).all()) for t in tensors)


def non_finite_entries(tensors: Sequence[torch.Tensor], layout: Layout) -> str:
    """Which entries of the batch dims hold NaN or infinity, e.g. ` (member 2; trajectory 0, 5)`."""
    found = []
    for name in batch_names(layout):
        bad: set[int] = set()
        for tensor, axes in zip(tensors, layout.leaves):
            position = position_of(name, axes)
            if position is not None:
                others = [i for i in range(tensor.ndim) if i != position]
                bad |= set((~torch.isfinite(tensor)).sum(others).nonzero().flatten().tolist())
        more = ", …" if len(bad) > 5 else ""
        found.append(f"{name} {', '.join(map(str, sorted(bad)[:5]))}{more}")
    return f" ({'; '.join(found)})" if found else ""


def require_finite(tensors: Sequence[torch.Tensor], step: int, what: str) -> None:
    """Raises NonFiniteError if a tensor holds NaN or infinity."""
    if not all_finite(tensors):
        bad = sum(int((~torch.isfinite(t)).sum()) for t in tensors)
        raise NonFiniteError(f"{what} holds {bad} NaN or infinite values; mend or drop it", step)
