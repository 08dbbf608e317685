"""Systems that are steered by one number per step: what oscillators and quantum wells have in common."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import ClassVar

import torch
from phi import math
from phi.math import Shape, Tensor, wrap

from phi_hybrid import _compat
from phi_hybrid.bridge.dims import TIME
from phi_hybrid.errors import StateError
from phi_hybrid.pde.checks import require


class Controlled:
    """Base of equations with a control: one step, and the same step over a whole sequence of controls.

    A subclass names the dims of its state besides batch dims, checks states, and advances native tensors.
    """

    dims: ClassVar[tuple[str, ...]]
    """Dims of a state that are no batch dims, in the order in which `advance` takes them."""

    def step(self, state: Tensor, control: float | Tensor) -> Tensor:
        """One time step, the control being constant within it.

        Args:
            state: `(batch, …)` with the dims of the system.
            control: u, `(batch)` or a number; in a rollout `(time, batch)`.

        Returns:
            Tensor like `state`, to be captured or used as it is.

        Raises:
            StateError: for states and controls of other dims or types.
        """
        return self._run(state, control, sequence=False)

    def controlled(self, state: Tensor, controls: Tensor) -> Tensor:
        """The state after a whole sequence of controls, `(time, batch)`, one per step: `step` applied again and again.

        Like `step`, to be captured or used as it is, with the same result and errors.
        """
        return self._run(state, controls, sequence=True)

    def advance(self, state: torch.Tensor, controls: torch.Tensor) -> torch.Tensor:
        """The state `(*batch, *dims)` after as many steps as there are controls, `(time, *batch)`."""
        raise NotImplementedError

    def check(self, state: Tensor) -> None:
        """Raises StateError for states that are none of this system."""
        raise NotImplementedError

    def _run(self, state: Tensor, control: float | Tensor, sequence: bool) -> Tensor:
        self.check(state)
        control = _checked(state, control, sequence)
        batches: Shape = state.shape.batch & control.shape.batch.without(TIME)
        kind = state.shape.only(self.dims, reorder=True)
        with math.precision(state.dtype.precision):  # PhiML would convert the values to the global precision
            start = _native(math.expand(state, batches), [*batches.names, *self.dims])
            order = [TIME, *batches.names] if sequence else batches.names
            controls = _native(math.expand(control, batches), order).to(start.device, start.real.dtype)
            after = self.advance(start, controls if sequence else controls.unsqueeze(0))
            return wrap(after, *batches, *kind)


def _native(tensor: Tensor, order: Sequence[str]) -> torch.Tensor:
    return _compat.TORCH.as_tensor(tensor.native(list(order)) if order else tensor.native())


def _checked(state: Tensor, control: float | Tensor, sequence: bool) -> Tensor:
    """The control as a tensor whose dims say what they should."""
    expected = f"expected one value per {'step and ' if sequence else ''}batch entry, "
    expected += "(time, batch)" if sequence else "(batch), or a number"
    if not isinstance(control, (Real, Tensor)):
        raise StateError(f"control is a {type(control).__name__}: {expected}; use wrap(values, batch('…'))")
    control = wrap(control)
    has = f"control has shape {control.shape}"
    require(not math.non_batch(control.shape), f"{has}: {expected}; make its dims batch dims")
    real = control.dtype.kind is not complex
    require(real, f"control has type {control.dtype}: expected real numbers; use math.real(control)")
    has_time = TIME in control.shape
    require(has_time or not sequence, f"{has}: {expected}; for a single step use step(state, control)")
    one = "but a step takes the control of one time, (batch)"
    way_out = (
        "pick one with control.time[n], or use controlled(state, control) or ph.rollout(step, state, steps, control)"
    )
    require(sequence or not has_time, f"{has} {one}; {way_out}")
    whole = f"the state has shape {state.shape}, a whole trajectory"
    require(not sequence or TIME not in state.shape, f"{whole}: pick a frame, e.g. state.time[0]")
    return control
