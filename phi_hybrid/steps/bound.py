"""A step together with the state and the inputs that it is repeated from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from phi_hybrid.bridge.dims import TIME
from phi_hybrid.bridge.layout import (
    Layout,
    TreeLayout,
    batch_names,
    batch_sizes,
    repeat,
    tuple_of,
    with_batch,
    with_rotations_like,
    without,
)
from phi_hybrid.errors import StateError
from phi_hybrid.steps.face import NativeStep, Step, Tensors


@dataclass(frozen=True)
class Inputs:
    """Extra arguments of a step: constant, or with a batch dim `time` that is sliced step by step."""

    tensors: Tensors
    layout: TreeLayout

    def at(self, step: int) -> Tensors:
        """The tensors of one step."""
        return tuple([t if p is None else t.select(p, step) for t, p in zip(self.tensors, self.layout.time_axes)])

    @cached_property
    def frame_layout(self) -> TreeLayout:
        """Layout of `at(step)`."""
        return without(self.layout, TIME)

    def call_layout(self, state: Layout) -> TreeLayout:
        """Layout of the arguments of one step from a state."""
        return replace(self.frame_layout, children=(state, *self.frame_layout.children))

    def check_length(self, steps: int) -> None:
        """Raises StateError if an input has fewer than `steps` entries along `time`."""
        for tensor, position in zip(self.tensors, self.layout.time_axes):
            if position is not None and tensor.shape[position] < steps:
                raise StateError(
                    f"an input has {tensor.shape[position]} entries along '{TIME}' but {steps} steps need {steps}; "
                    "pass more entries or fewer steps"
                )


@dataclass(frozen=True)
class Repeatable:
    """A native step whose output can be its next input, with the state to start from."""

    step: NativeStep
    state: Tensors
    layout: Layout
    """Of the state."""


def flatten_arguments(
    step: Step, state: Any, inputs: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[Tensors, Layout, Inputs]:
    """Tensors and layout of a state, and inputs beside it, checked as for a single call.

    Raises:
        StateError: for arguments that the step does not take, or of different precisions or devices.
    """
    tensors, layout = step.flatten_call((state, *inputs), keywords)
    first, *others = layout.children
    count = len(first.leaves)
    return tensors[:count], first, Inputs(tensors[count:], tuple_of(*others, keywords=layout.keywords))


def bind(step: Step, state: Tensors, layout: Layout, inputs: Inputs) -> Repeatable:
    """Binds a step to a state and inputs.

    A state that lacks batch dims of the inputs or of the step's result is repeated along them. Boxes that the step rotates
    take the form that rotated boxes have.

    Raises:
        StateError: if the step returns another kind of state than it takes.
    """
    for _ in range(4):
        arguments = (*state, *inputs.at(0))
        native = step.native_for(inputs.call_layout(layout), arguments)
        if native.output_layout == layout:
            return Repeatable(native, state, layout)
        turned, turned_layout = with_rotations_like(state, layout, native.output_layout)
        if turned_layout != layout:
            state, layout = turned, turned_layout
            continue
        names = batch_names(native.output_layout, layout)
        widened = with_batch(layout, *names)
        if widened == layout or widened != with_batch(native.output_layout, *names):
            break
        sizes = batch_sizes(state, layout) | batch_sizes(native(*arguments), native.output_layout)
        state, layout = repeat(state, layout, widened, sizes), widened
    raise StateError(
        "the step cannot be repeated, since what it takes and what it returns differ: "
        f"{layout.difference(native.output_layout)}. Return a state like the one given, e.g. with u.with_values(…) or "
        "u.with_boundary(…), or start from a state as the step returns it: step(state). A step that moves several fields takes them "
        "as one state, def step(state): u, v = state; …; return u, v"
    )
