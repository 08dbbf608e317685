"""Where the first NaN or infinity of a window comes from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from phi_hybrid.bridge.layout import Layout, describe_axes
from phi_hybrid.data import Batch
from phi_hybrid.errors import SolveError, StateError
from phi_hybrid.hybrid import HybridSolver
from phi_hybrid.linear_solve import checked_solves
from phi_hybrid.steps import Step


@torch.no_grad()
def first_non_finite(solver: Step, batch: Batch, parts: int = 1) -> str:
    """A sentence that says in which step, window, tensor and cell the first one appears, and what made it.

    Args:
        solver: with the weights that it had before.
        batch: windows that it is unrolled over.
        parts: number of parts that are unrolled one after the other, as in the update, whose memory suffices for one.
    """
    for name, tensors, layout in (
        ("states", batch.states, batch.layouts.state),
        ("inputs", batch.inputs, batch.layouts.step_inputs),
    ):
        if (place := _place(tensors, layout)) is not None:
            return f"The data made it: {name}, {place}."
    first = 0
    for part in batch.parts(parts):
        try:
            with checked_solves():
                found = _unrolled(solver, part, first)
            if found is not None:
                return found
        except (SolveError, StateError) as error:
            return f"The windows cannot be unrolled again with these weights: {error}."
        first += len(part.states[0])
    return (
        f"The unrolled states of these weights are finite in all {batch.steps} steps: loss, gradient or the size of the "
        "update made it."
    )


def _unrolled(solver: Step, batch: Batch, first: int) -> str | None:
    """The same for the steps of these windows, counted from `first`; `None` if all are finite."""
    bound = batch.bind(solver)
    state = bound.state
    for number in range(batch.steps):
        arguments = (*state, *batch.step_inputs.at(number))
        state = bound.step(*arguments)
        if (place := _place(state, bound.layout, first)) is not None:
            cause = _cause(solver, bound.step, arguments)
            return f"First in unrolled step {number + 1} of {batch.steps}, {place}; {cause}."
    return None


def _cause(solver: Step, step: object, arguments: Sequence[torch.Tensor]) -> str:
    if not isinstance(solver, HybridSolver):
        return "the step made it"
    uncorrected = step.respond(arguments, step.no_output()).state
    finite = all(bool(torch.isfinite(t).all()) for t in uncorrected)
    return "the network made it, its step without a correction is finite" if finite else "the physics made it"


def _place(tensors: Sequence[torch.Tensor], layout: Layout, first: int = 0) -> str | None:
    """Window, tensor and index of the first value that is not finite; windows are counted from `first`."""
    for number, (tensor, axes) in enumerate(zip(tensors, layout.leaves)):
        if (tensor.is_floating_point() or tensor.is_complex()) and not torch.isfinite(tensor).all():
            window, *index = (~torch.isfinite(tensor)).nonzero()[0].tolist()
            return f"window {first + window}, tensor {number} {describe_axes([axes])}, index {tuple(index)}"
    return None
