"""States and controls of PhiFlow as torch tensors with the same batch axes, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real

import torch
from phi import math
from phi.math import Shape, Tensor, wrap

from phi_hybrid import _compat
from phi_hybrid.errors import StateError

TIME = "time"

Advance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`(state, controls) -> state`: `(*batch, *dims)` and `(time, *batch)`, one control per step."""


def advanced(advance: Advance, state: Tensor, dims: Sequence[str], control: float | Tensor, sequence: bool) -> Tensor:
    """The state after as many steps as there are controls; the steps see torch tensors only.

    Args:
        advance: the steps.
        state: `(batch, *dims)`.
        dims: names of all dims of the state that are no batch dims, in the order in which `advance` wants them.
        control: `(time, batch)` for a sequence, else `(batch)` or a number.
        sequence: whether the control has a dim `time`.

    Raises:
        StateError: for complex controls or controls of other dims, or a state that has a dim `time` already.
    """
    control = _checked_control(state, control, sequence)
    batches: Shape = state.shape.batch & control.shape.batch.without(TIME)
    kind = state.shape.only(dims, reorder=True)
    with math.precision(state.dtype.precision):  # PhiML would convert the values to the global precision
        start = _native(math.expand(state, batches), [*batches.names, *dims])
        order = [TIME, *batches.names] if sequence else batches.names
        controls = _native(math.expand(control, batches), order).to(start.device, start.real.dtype)
        return wrap(advance(start, controls if sequence else controls.unsqueeze(0)), *batches, *kind)


def require(condition: bool, message: str) -> None:
    """Raises StateError with this message unless the condition holds."""
    if not condition:
        raise StateError(message)


def require_number(name: str, value: float, nonzero: bool = False) -> None:
    """Raises StateError unless the value is a finite number (and not zero)."""
    number = isinstance(value, Real) and abs(value) < float("inf")
    expected = "a finite number" + (" other than 0; a negative one runs backwards in time" if nonzero else "")
    require(number and not (nonzero and value == 0), f"{name} = {value!r}: expected {expected}")


def as_tensor(values: object, *dims: Shape) -> Tensor:
    """Real or complex numbers as a PhiFlow tensor on torch, in PhiFlow's current precision."""
    values, double = torch.as_tensor(values), math.get_precision() == 64
    real, complex_ = (torch.float64, torch.complex128) if double else (torch.float32, torch.complex64)
    return wrap(values.to(complex_ if values.is_complex() else real), *dims)


def _native(tensor: Tensor, order: Sequence[str]) -> torch.Tensor:
    return _compat.TORCH.as_tensor(tensor.native(list(order)) if order else tensor.native())


def _checked_control(state: Tensor, control: float | Tensor, sequence: bool) -> Tensor:
    expected = f"expected one value per {'step and ' if sequence else ''}batch entry, "
    expected += "(time, batch)" if sequence else "(batch), or a number"
    if not isinstance(control, (Real, Tensor)):
        raise StateError(f"control is a {type(control).__name__}: {expected}; use wrap(values, batch('…'))")
    control = wrap(control)
    if math.non_batch(control.shape):
        raise StateError(f"control has shape {control.shape}: {expected}; make its dims batch dims")
    if control.dtype.kind is complex:
        raise StateError(f"control has type {control.dtype}: expected real numbers; use math.real(control)")
    has_time = TIME in control.shape
    if sequence and not has_time:
        raise StateError(f"control has shape {control.shape}: {expected}; for a single step use step(state, control)")
    if has_time and not sequence:
        raise StateError(
            f"control has shape {control.shape} but a step takes the control of one time, (batch); pick one with "
            "control.time[n], or use controlled(state, control) or ph.rollout(step, state, steps, control)"
        )
    if sequence and TIME in state.shape:
        raise StateError(f"the state has shape {state.shape}, a whole trajectory: pick a frame, e.g. state.time[0]")
    return control
