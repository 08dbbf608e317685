"""Windows of reference trajectories, as objectives see them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from phi_hybrid.bridge.checks import require
from phi_hybrid.bridge.dims import TIME, TRAJECTORY
from phi_hybrid.bridge.layout import (
    Layout,
    TreeLayout,
    batch_names,
    describe_leaves,
    position_of,
    unflatten,
    with_batch,
)
from phi_hybrid.errors import StateError
from phi_hybrid.steps import Inputs, Repeatable, Step, bind


@dataclass(frozen=True)
class DataLayout:
    """Layouts of a data set, and what follows from them once for all of its batches."""

    state: Layout
    """Of one state, without batch dims."""
    inputs: TreeLayout
    """Of the inputs without `trajectory`; those that change with time have a dim `time`."""

    @cached_property
    def initial(self) -> Layout:
        """Of the first states, with `trajectory`."""
        return with_batch(self.state, TRAJECTORY)

    @cached_property
    def step_inputs(self) -> TreeLayout:
        """Of the inputs, with `trajectory`."""
        return with_batch(self.inputs, TRAJECTORY)

    @cached_property
    def call(self) -> TreeLayout:
        """Of the arguments of one step."""
        return Inputs((), self.step_inputs).call_layout(self.initial)

    @cached_property
    def varies(self) -> list[bool]:
        """Whether an input changes with time, for every tensor."""
        return [position_of(TIME, axes) is not None for axes in self.inputs.leaves]


@dataclass(frozen=True, repr=False)
class Batch:
    """Windows of reference trajectories: `steps + 1` states and the inputs of the steps between them."""

    states: tuple[torch.Tensor, ...]
    """Native tensors `(trajectory, time, …)`."""
    inputs: tuple[torch.Tensor, ...]
    """Native tensors `(trajectory, …)`, or `(trajectory, time, …)` where the input changes with time."""
    layouts: DataLayout
    scale: tuple[float, ...]
    """Standard deviation of the data, one number per state tensor, to normalise losses with."""

    @property
    def steps(self) -> int:
        """Number of steps of the windows."""
        return self.states[0].shape[1] - 1

    @property
    def state_layout(self) -> Layout:
        """Of one state, without batch dims."""
        return self.layouts.state

    @property
    def layout(self) -> Layout:
        """Of `initial`."""
        return self.layouts.initial

    @property
    def initial(self) -> tuple[torch.Tensor, ...]:
        """First states, native tensors `(trajectory, …)` of `layout`."""
        return tuple([s[:, 0].contiguous() for s in self.states])

    @property
    def targets(self) -> tuple[torch.Tensor, ...]:
        """The states after the first, native tensors `(trajectory, time, …)`."""
        return tuple([s[:, 1:] for s in self.states])

    @cached_property
    def step_inputs(self) -> Inputs:
        """The inputs in the form that unrolling takes."""
        # canonical: 'time' stands before 'trajectory'
        moved = [t.transpose(0, 1) if varies else t for t, varies in zip(self.inputs, self.layouts.varies)]
        return Inputs(tuple(moved), self.layouts.step_inputs)

    def bind(self, step: Step) -> Repeatable:
        """A step bound to the first states and the inputs.

        Raises:
            StateError: if the step takes other inputs than the data has, returns another kind of state than it takes, or
                more batch dims than the reference has, against which its results would be broadcast.
        """
        layout, inputs, state = self.layouts.initial, self.step_inputs, self.initial
        native = step.native_for(self.layouts.call, (*state, *inputs.at(0)))
        if native.output_layout == layout:
            return Repeatable(native, state, layout)
        bound = bind(step, state, layout, inputs)
        if bound.layout != layout:
            added = [n for n in batch_names(bound.layout) if n not in batch_names(layout)]
            raise StateError(
                f"the step adds batch dims {added} that the reference data has not, so they cannot be compared; let the "
                "step return one state per trajectory"
            )
        return bound

    @property
    def initial_state(self) -> Any:
        """First states as PhiFlow state `(trajectory, x, y, vector)`."""
        return unflatten(self.layout, self.initial)

    def after(self, steps: int) -> Batch:
        """The windows without their first `steps` steps."""
        if not 0 <= steps < self.steps:
            raise StateError(f"steps = {steps}: windows of {self.steps} steps can lose 0 … {self.steps - 1}")
        if steps == 0:
            return self
        inputs = tuple(t[:, steps:] if v else t for t, v in zip(self.inputs, self.layouts.varies))
        return replace(self, states=tuple(t[:, steps:] for t in self.states), inputs=inputs)

    def parts(self, count: int) -> list[Batch]:
        """The windows in `count` batches of the same size, in their order."""
        if count == 1:
            return [self]
        states, inputs = (list(zip(*(t.chunk(count) for t in part))) for part in (self.states, self.inputs))
        return [replace(self, states=s, inputs=i) for s, i in zip(states, inputs or [()] * count)]

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device.

        Raises:
            StateError: if this machine does not have it.
        """
        try:
            states, inputs = ([t.to(device, non_blocking=True) for t in part] for part in (self.states, self.inputs))
        except (RuntimeError, AssertionError, TypeError):
            _require_device(device)
            raise
        return replace(self, states=tuple(states), inputs=tuple(inputs))

    def __repr__(self) -> str:
        count, inputs = len(self.states[0]), describe_leaves(self.layouts.inputs)
        return (
            f"Batch({count} windows of {self.steps} steps; state {describe_leaves(self.state_layout)}; inputs {inputs})"
        )


def _require_device(device: Any) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        require(
            False,
            "device",
            device,
            f"a device of this machine, 'cpu' or one of {torch.cuda.device_count()} GPUs ({error})",
        )
