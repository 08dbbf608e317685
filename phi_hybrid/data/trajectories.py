"""Reference trajectories of a PhiFlow solver."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from phi_hybrid.bridge.layout import (
    Layout,
    TreeLayout,
    batch_names,
    flatten,
    position_of,
    tuple_of,
    unflatten,
    with_batch,
    without,
)
from phi_hybrid.data import store
from phi_hybrid.data.coarsen import coarsen as coarsen_by
from phi_hybrid.data.pieces import require_finite, standard_deviation
from phi_hybrid.data.windows import BATCH, Batch, Windows
from phi_hybrid.errors import DataError, SolveError, StateError
from phi_hybrid.unroll import TIME, Inputs, all_finite, as_step, bind


@dataclass(frozen=True)
class Trajectories:
    """States of a reference solver at equally spaced times, with the inputs of its steps.

    Make one with `generate` or `load`. All tensors are native, `(trajectory, time, …)` for states.

    Raises:
        DataError: if values are not finite.
    """

    states: tuple[torch.Tensor, ...]
    inputs: tuple[torch.Tensor, ...]
    state_layout: Layout
    input_layout: TreeLayout
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tensors in (("state", self.states), ("input", self.inputs)):
            for number, tensor in enumerate(tensors):
                require_finite(tensor, f"{name} tensor {number}")

    @staticmethod
    def generate(
        step: Callable,
        initial_states: Any,
        steps: int,
        inputs: tuple = (),
        *,
        coarsen: int | Callable[[Any], Any] = 1,
        every: int = 1,
        path: str | os.PathLike | None = None,
        metadata: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> Trajectories:
        """Runs a reference solver and keeps every state, coarsened.

        Args:
            step: `state, *inputs -> state` on the fine grid; captured steps are much faster.
            initial_states: `(trajectory, x, y, vector)`, any batch dims; all trajectories are computed at once.
            steps: number of stored steps; `steps + 1` states are kept.
            inputs: extra arguments of the step, constant or with a batch dim `time` of at least `steps` entries.
            coarsen: fine cells per coarse cell along each dim (faces are averaged as fluxes, see
                `phi_hybrid.data.coarsen`), or a function of a state, called with every input that has a grid, too.
            every: solver steps per stored step; an input with `time` holds for all of them.
            path: HDF5 file to write, atomically, once all is computed.
            metadata: what should be known later: `dt`, parameters, seed; JSON values.
            progress: whether to show a progress bar.

        Raises:
            DataError: if the reference diverges or a solve in it fails, naming the step.
            StateError: for bad arguments.
        """
        if steps < 1 or every < 1:
            raise StateError(f"steps = {steps}, every = {every}: both must be at least 1")
        if not isinstance(inputs, tuple):
            raise StateError(f"inputs must be a tuple of arguments, got {type(inputs).__name__}; write inputs=(force,)")
        reduce = coarsen if callable(coarsen) else partial(coarsen_by, factor=coarsen)
        if TIME in batch_names(flatten(initial_states)[1]):
            raise StateError(f"the initial state has a dim '{TIME}'; pick a frame, e.g. state.time[0]")
        reference = as_step(step)
        reference.check_arguments((initial_states, *inputs))
        arguments = Inputs(*flatten(inputs))
        arguments.check_length(steps)
        with torch.no_grad():
            bound = bind(reference, *flatten(initial_states), arguments)
            names = batch_names(bound.layout, arguments.frame_layout)
            sizes = _batch_sizes(names, (*bound.state, *arguments.tensors), tuple_of(bound.layout, arguments.layout))
            fine, frames = bound.state, []
            for n in tqdm(range(steps + 1), desc="reference", disable=not progress, unit="step"):
                for _ in range(every if n > 0 else 0):
                    try:
                        fine = bound.step(*fine, *arguments.at(n - 1))
                    except SolveError as error:
                        raise DataError(f"the reference solver failed in stored step {n}: {error}") from error
                if not all_finite(fine):
                    leading = [_lead(t, axes, names, sizes) for t, axes in zip(fine, bound.layout.leaves)]
                    raise DataError(_divergence(leading, n))
                tensors, layout = flatten(reduce(unflatten(bound.layout, fine)))
                frames.append([_lead(t, axes, names, sizes) for t, axes in zip(tensors, layout.leaves)])
            stored, stored_layout = flatten(tuple(reduce(i) if _has_grid(i) else i for i in inputs))
            stored = tuple(_lead(t, axes, names, sizes) for t, axes in zip(stored, stored_layout.leaves))
        data = Trajectories(
            tuple(torch.stack(leaf, 1) for leaf in zip(*frames)),
            tuple(t.contiguous() for t in stored),
            without(layout, *names),
            without(stored_layout, *names),
            dict(metadata or {}),
        )
        if path is not None:
            data.save(path)
        return data

    def __len__(self) -> int:
        """Number of trajectories."""
        return self.states[0].shape[0]

    @property
    def steps(self) -> int:
        """Number of steps of each trajectory; it holds one more state."""
        return self.states[0].shape[1] - 1

    @property
    def scale(self) -> tuple[float, ...]:
        """Standard deviation of each state tensor over all trajectories, times and points (1 where nothing varies)."""
        deviations = [standard_deviation(t) if t.is_floating_point() else 1.0 for t in self.states]
        return tuple(d if d > 0 else 1.0 for d in deviations)

    def __getitem__(self, selection: slice | list[int]) -> Trajectories:
        """Some of the trajectories."""
        if isinstance(selection, int):
            selection = [selection]
        chosen = replace(
            self, states=tuple(t[selection] for t in self.states), inputs=tuple(t[selection] for t in self.inputs)
        )
        if len(chosen) == 0:
            raise DataError(f"selection {selection} of {len(self)} trajectories is empty")
        return chosen

    def split(self, first: int | float) -> tuple[Trajectories, Trajectories]:
        """Divides the set by trajectory, so that no state of the one part is near a state of the other.

        Args:
            first: number of trajectories in the first part, or their share between 0 and 1.
        """
        count = round(first * len(self)) if isinstance(first, float) else first
        if not 0 < count < len(self):
            raise DataError(
                f"split({first}) leaves one part of {len(self)} trajectories empty; use 1 … {len(self) - 1}"
            )
        return self[:count], self[count:]

    def between(self, start: int, stop: int) -> Trajectories:
        """The steps from `start` to `stop` of every trajectory, `stop - start` of them, with their inputs.

        Raises:
            DataError: unless 0 ≤ start < stop ≤ steps.
        """
        if not 0 <= start < stop <= self.steps:
            raise DataError(
                f"between({start}, {stop}): the trajectories have steps 0 … {self.steps}; give start < stop"
            )
        part = self.cut(slice(None), start, stop - start)
        return replace(self, states=part.states, inputs=part.inputs)

    def windows(self, steps: int) -> Windows:
        """All windows of `steps` steps, a torch `Dataset`; use its `collate` in a `DataLoader`."""
        return Windows(self, steps)

    def cut(self, trajectories: slice | list[int], start: int, steps: int) -> Batch:
        """The same window of several trajectories as a batch."""
        inputs = []
        for tensor, axes in zip(self.inputs, self.input_layout.leaves):
            varies = position_of(TIME, axes) is not None
            inputs.append(tensor[trajectories, start : start + steps] if varies else tensor[trajectories])
        states = tuple(t[trajectories, start : start + steps + 1] for t in self.states)
        return Batch(states, tuple(inputs), self.state_layout, self.input_layout, self._cached_scale())

    def whole(self) -> Batch:
        """All trajectories from first to last state as one batch."""
        return self.cut(slice(None), 0, self.steps)

    @property
    def trajectory(self) -> Any:
        """All states as PhiFlow state `(trajectory, time, x, y, vector)`."""
        tensors = tuple(t.transpose(0, 1) for t in self.states)  # canonical: 'time' stands before 'trajectory'
        return unflatten(with_batch(self.state_layout, TIME, BATCH), tensors)

    @property
    def initial_state(self) -> Any:
        """First states `(trajectory, x, y, vector)`."""
        return self.whole().initial_state

    @property
    def step_inputs(self) -> tuple:
        """Inputs of the steps as PhiFlow values `(trajectory, time, …)`, to pass to `rollout`."""
        inputs = self.whole().step_inputs
        return unflatten(inputs.layout, inputs.tensors)

    def save(self, path: str | os.PathLike) -> None:
        """Writes an HDF5 file; an older file of this name stays whole until the new one is complete."""
        store.write(path, self.states, self.inputs, self.state_layout, self.input_layout, dict(self.metadata))

    @staticmethod
    def load(path: str | os.PathLike, lazy: bool = False) -> Trajectories:
        """Reads a file that `save` or `generate` has written.

        Args:
            path: of the file.
            lazy: whether values stay in the file until they are looked at, for sets that do not fit in memory. All are
                looked at once here, to be checked. Slices stay lazy, `data[2:4]`; lists of indices copy. The file must
                not be changed in place meanwhile; replacing it, as `save` does, is harmless.

        Raises:
            DataError: for files that are truncated, foreign, of a newer version, or hold non-finite values.
            FileNotFoundError: if there is none.
        """
        return Trajectories(*store.read(path, lazy))

    def _cached_scale(self) -> tuple[float, ...]:
        if "_scale" not in self.__dict__:
            object.__setattr__(self, "_scale", self.scale)
        return self.__dict__["_scale"]


def _batch_sizes(names: list[str], tensors: tuple[torch.Tensor, ...], layout: Layout) -> list[int]:
    sizes = dict.fromkeys(names, 1)
    for tensor, axes in zip(tensors, layout.leaves):
        sizes.update({a.name: s for a, s in zip(axes, tensor.shape) if a.name in sizes})
    return list(sizes.values())


def _lead(tensor: torch.Tensor, axes: tuple, names: list[str], sizes: list[int]) -> torch.Tensor:
    """Merges all batch axes but `time` into a leading one; `time` follows."""
    order = sorted({*names, *([TIME] if position_of(TIME, axes) is not None else [])})
    for position, name in enumerate(order):
        if position_of(name, axes) is None:
            tensor = tensor.unsqueeze(position)
    if TIME in order:
        tensor = tensor.movedim(order.index(TIME), len(names))
    tensor = tensor.expand(*sizes, *tensor.shape[len(names) :])
    return tensor.flatten(0, len(names) - 1) if names else tensor.unsqueeze(0)


def _has_grid(value: Any) -> bool:
    return any(a.kind == "spatial" for axes in flatten(value)[1].leaves for a in axes)


def _divergence(state: list[torch.Tensor], step: int) -> str:
    failed = sum((~torch.isfinite(t)).flatten(1).sum(1) for t in state)
    return (
        f"the reference solver became non-finite in stored step {step}, {int(failed.sum())} values, first in trajectory "
        f"{int(failed.nonzero()[0])} ({int((failed > 0).sum())} of {len(failed)} failed); reduce its time step, or use a "
        "more stable scheme"
    )
