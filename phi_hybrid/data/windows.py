"""Windows of trajectories as a torch data set, and the batches that objectives see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from phi_hybrid.bridge.layout import Layout, TreeLayout, batch_names, position_of, unflatten, with_batch
from phi_hybrid.capture import NativeFace
from phi_hybrid.errors import DataError, StateError
from phi_hybrid.unroll import TIME, Bound, Inputs, bind

if TYPE_CHECKING:
    from phi_hybrid.data.trajectories import Trajectories

BATCH = "trajectory"
"""Name of the batch dim that runs over trajectories, or over the windows of a batch."""


@dataclass(frozen=True)
class Batch:
    """Windows of reference trajectories: `steps + 1` states and the inputs of the steps between them."""

    states: tuple[torch.Tensor, ...]
    """Native tensors `(trajectory, time, …)`."""
    inputs: tuple[torch.Tensor, ...]
    """Native tensors `(trajectory, …)`, or `(trajectory, time, …)` where the input changes with time."""
    state_layout: Layout
    """Of one state, without batch dims."""
    input_layout: TreeLayout
    """Of the inputs without `trajectory`; those that change with time have a dim `time`."""
    scale: tuple[float, ...]
    """Standard deviation of the data, one number per state tensor, to normalise losses with."""

    @property
    def steps(self) -> int:
        return self.states[0].shape[1] - 1

    @property
    def initial(self) -> tuple[torch.Tensor, ...]:
        """First states, native tensors `(trajectory, …)` of `layout`."""
        return tuple(s[:, 0].contiguous() for s in self.states)

    @property
    def targets(self) -> tuple[torch.Tensor, ...]:
        """The states after the first, native tensors `(trajectory, time, …)`."""
        return tuple(s[:, 1:] for s in self.states)

    @property
    def layout(self) -> Layout:
        """Of `initial`."""
        return with_batch(self.state_layout, BATCH)

    @property
    def step_inputs(self) -> Inputs:
        """The inputs in the form that unrolling takes."""
        layout = with_batch(self.input_layout, BATCH)
        moved = []
        for tensor, axes in zip(self.inputs, layout.leaves):
            names = [a.name for a in axes]  # canonical: 'time' stands before 'trajectory'
            moved.append(tensor.transpose(0, 1) if TIME in names else tensor)
        return Inputs(tuple(moved), layout)

    def bind(self, step: NativeFace) -> Bound:
        """A step bound to the first states and the inputs.

        Raises:
            StateError: if the step takes other inputs than the data has, returns another kind of state than it takes, or
                more batch dims than the reference has, against which its results would be broadcast.
        """
        step.check_arguments((self.layout, *self.input_layout.children))
        bound = bind(step, self.initial, self.layout, self.step_inputs)
        if bound.layout != self.layout:
            added = [n for n in batch_names(bound.layout) if n not in batch_names(self.layout)]
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
        varies = [position_of(TIME, axes) is not None for axes in self.input_layout.leaves]
        inputs = tuple(t[:, steps:] if v else t for t, v in zip(self.inputs, varies))
        return replace(self, states=tuple(t[:, steps:] for t in self.states), inputs=inputs)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return replace(
            self,
            states=tuple(t.to(device, non_blocking=True) for t in self.states),
            inputs=tuple(t.to(device, non_blocking=True) for t in self.inputs),
        )


class Windows(Dataset):
    """All windows of `steps` steps in a set of trajectories, for a torch `DataLoader` with `collate_fn=windows.collate`.

    Raises:
        DataError: if the trajectories are shorter than a window.
    """

    def __init__(self, data: Trajectories, steps: int) -> None:
        if not 1 <= steps <= data.steps:
            raise DataError(
                f"windows of {steps} steps do not fit in trajectories of {data.steps}; use 1 … {data.steps}"
            )
        self.data = data
        self.steps = steps
        self.per_trajectory = data.steps - steps + 1

    def __len__(self) -> int:
        return len(self.data) * self.per_trajectory

    def __getitem__(self, index: int) -> Batch:
        """Window `index` as a batch of one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        trajectory, start = divmod(index % len(self), self.per_trajectory)
        return self.data.cut(slice(trajectory, trajectory + 1), start, self.steps)

    def collate(self, windows: Sequence[Batch]) -> Batch:
        """Joins windows to one batch."""
        return replace(
            windows[0],
            states=tuple(map(torch.cat, zip(*(w.states for w in windows)))),
            inputs=tuple(map(torch.cat, zip(*(w.inputs for w in windows)))),
        )
