"""Time loops: the steps of an unrolled window, and rollouts of PhiFlow states."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from phi_hybrid.bridge.checks import require_count
from phi_hybrid.bridge.dims import TIME
from phi_hybrid.bridge.layout import Layout, batch_names, position_of, stack, unflatten
from phi_hybrid.errors import NonFiniteError, SolveError, StateError
from phi_hybrid.steps.bound import Inputs, Repeatable, bind, flatten_arguments
from phi_hybrid.steps.face import Tensors, advance
from phi_hybrid.steps.looks import Looks, finite
from phi_hybrid.steps.plain import as_step

LONG = 8
"""Times that a program of several steps must be used in a rollout to be worth compiling."""


def unroll(bound: Repeatable, inputs: Inputs, steps: int) -> list[Tensors]:
    """`steps` states after the first, differentiable: uₙ₊₁ = S(uₙ, inputs(n))."""
    states = advance(bound.step, bound.state, [inputs.at(n) for n in range(steps)])
    if states:
        _require_same_numbers(bound.state, states[0])
    return states


def _require_same_numbers(before: Tensors, after: Tensors) -> None:
    """Raises StateError if a step turns numbers of one type into another, for which it was not made."""
    for number, (old, new) in enumerate(zip(before, after)):
        if old.dtype != new.dtype:
            raise StateError(
                f"the step cannot be repeated, since it turns tensor {number} of the state, {old.dtype}, into {new.dtype}. "
                "Start from a state as the step returns it, e.g. with math.to_float of its integers"
            )


def rollout(step: Callable[..., Any], state: Any, steps: int, *inputs: Any, check: bool = True, **keywords: Any) -> Any:
    """Repeats a step in evaluation mode: u₀, u₁, …, u_steps.

    Gradients are recorded, with the memory that takes, if the initial state or an input requires them; those of weights
    alone are not. `torch.no_grad()` around it, or `Unrolled` for a training, where that is not wanted.

    Args:
        step: `state, *inputs -> state`: PhiFlow code, `PhysicsBlock` or `HybridSolver`.
        state: u₀, e.g. fields of shape `(batch, x, y, vector)`; no dim `time`.
        steps: number of steps, at least 0.
        *inputs: further arguments of the step; those with a batch dim `time` are sliced, entry n for step n.
        check: whether a non-finite state is an error; otherwise it stays in the trajectory.
        **keywords: further arguments of the step by name, e.g. `dt=0.1`.

    Returns:
        State with a batch dim `time` of size `steps + 1`, `(time, batch, x, y, vector)`.

    Raises:
        NonFiniteError: at the first step whose result holds NaN or infinity; `error.trajectory` has the states before.
        SolveError: where a linear solve inside a step fails, likewise with `error.step` and `error.trajectory`.
        StateError: for negative `steps`, missing or too short inputs, inputs of another precision, or a state with a dim
            `time`.
    """
    return _as_trajectory(*_advance(step, state, steps, inputs, keywords, check, keep=True))


def repeat(step: Callable[..., Any], state: Any, steps: int, *inputs: Any, check: bool = True, **keywords: Any) -> Any:
    """The state after `steps` steps: the last of `rollout`, without the memory for those between unless gradients are recorded.

    Args:
        step: `state, *inputs -> state`: PhiFlow code, `PhysicsBlock` or `HybridSolver`.
        state: u₀, e.g. fields of shape `(batch, x, y, vector)`; no dim `time`.
        steps: number of steps, at least 0.
        *inputs: further arguments of the step; those with a batch dim `time` are sliced, entry n for step n.
        check: whether a non-finite state is an error.
        **keywords: further arguments of the step by name, e.g. `dt=0.1`.

    Returns:
        u_steps, `(batch, x, y, vector)`.

    Raises:
        NonFiniteError, SolveError, StateError: as `rollout`; `error.trajectory` has the one state before the failure.
    """
    frames, layout = _advance(step, state, steps, inputs, keywords, check, keep=False)
    return unflatten(layout, frames[-1])


def _advance(
    step: Callable, state: Any, steps: int, inputs: Sequence[Any], keywords: Mapping[str, Any], check: bool, keep: bool
) -> tuple[list[Tensors], Layout]:
    """All states, or the last one alone, with their layout."""
    require_count("steps", steps, 0)
    step = as_step(step)
    tensors, layout, arguments = flatten_arguments(step, state, inputs, keywords)
    if TIME in batch_names(layout):
        raise StateError(f"the initial state has a dim '{TIME}'; pick a frame, e.g. state.time[0]")
    arguments.check_length(steps)
    if check:
        require_finite(tensors, 0, "the initial state")
    if steps == 0:
        return [tensors], layout
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *arguments.tensors))
    with torch.set_grad_enabled(recorded), evaluation_mode(step):
        bound = bind(step, tensors, layout, arguments)
        frames, layout, n = [bound.state], bound.layout, 0
        looks, begin = Looks(tensors[0].device if tensors else torch.device("cpu"), steps, check), 0
        together = bound.step.together if steps >= LONG * bound.step.together else 1
        while n < steps:
            count, bad = min(together, steps - n), None
            try:
                for new in advance(bound.step, frames[-1], [arguments.at(m) for m in range(n, n + count)]):
                    n += 1
                    frames.append(new)
                    if n == 1:
                        _require_same_numbers(*frames)
                    if (bad := looks.after(n, new)) is not None:
                        break
            except SolveError as error:
                if count > 1 and looks.every == 1:  # which of these steps? They are repeated one by one
                    together = 1
                    continue
                bad, first = looks.cause(n + 1, error)
                if bad is None:
                    before = _as_trajectory(frames[: first.step - begin], layout)
                    raise first.at(first.step, f"in step {first.step} of {steps}", before) from None
            if bad is not None:
                entries = non_finite_entries(frames[bad - begin], layout)
                raise NonFiniteError(
                    f"the state became NaN or infinite in step {bad} of {steps}{entries}. The states before are in "
                    "error.trajectory; reduce the time step, train with longer unrolling, or pass check=False",
                    bad,
                    _as_trajectory(frames[: bad - begin], layout),
                )
            if not keep and looks.done:
                begin = n
                del frames[:-1]
    return frames, layout


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
    """Tells whether no tensor holds NaN or infinity."""
    return bool(finite(tensors))


def non_finite_entries(tensors: Sequence[torch.Tensor], layout: Layout) -> str:
    """Names the entries of the batch dims that hold NaN or infinity, e.g. ` (member 2; trajectory 0, 5)`."""
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
