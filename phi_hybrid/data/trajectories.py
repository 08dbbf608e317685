"""Reference trajectories of a PhiFlow solver."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import torch

from phi_hybrid.bridge.checks import require, require_count, require_instance, require_number
from phi_hybrid.bridge.dims import TIME, TRAJECTORY
from phi_hybrid.bridge.layout import (
    Layout,
    TreeLayout,
    describe_leaves,
    unflatten,
    with_batch,
)
from phi_hybrid.bridge.parts import vectors_of
from phi_hybrid.data import store
from phi_hybrid.data.batch import Batch, DataLayout
from phi_hybrid.data.conversion import inputs_beside, leading_inputs, states_from_fields, states_from_tensors
from phi_hybrid.data.files import require_writable
from phi_hybrid.data.generation import generate
from phi_hybrid.data.header import require_json
from phi_hybrid.data.joining import common, in_a_row, inputs_in_a_row, require_alike, require_equal_lengths
from phi_hybrid.data.pieces import look_through, mean_and_deviation, rounding
from phi_hybrid.data.windows import Windows
from phi_hybrid.errors import DataError


@dataclass(frozen=True, repr=False)
class Trajectories:
    """States of a reference solver at successive times, with the inputs of its steps.

    Times are equally spaced, or the distance between them is an input of the step, `dt`, with dims `trajectory`, `time`.

    Make one with `generate`, `from_fields`, `from_tensors` or `load`. All tensors are native, `(trajectory, time, …)` for
    states.

    Raises:
        DataError: if values are not finite.
    """

    states: tuple[torch.Tensor, ...]
    inputs: tuple[torch.Tensor, ...]
    state_layout: Layout
    input_layout: TreeLayout
    metadata: Mapping[str, Any] = field(default_factory=dict)
    checked: InitVar[bool] = False
    """Whether values are known to be finite, as in parts of checked data; what replaces them is looked at again."""

    def __post_init__(self, checked: bool) -> None:
        if checked:
            return
        for name, tensors in (("states", self.states), ("inputs", self.inputs)):
            native = isinstance(tensors, tuple) and all(isinstance(t, torch.Tensor) for t in tensors)
            require(native, name, tensors, "torch tensors (trajectory, time, …) in a tuple; see Trajectories.generate")
        for name, tensors in (("state", self.states), ("input", self.inputs)):
            for number, tensor in enumerate(tensors):
                look_through(tensor, f"{name} tensor {number}")

    @staticmethod
    def generate(
        step: Callable[..., Any],
        initial_states: Any,
        steps: int,
        inputs: tuple[Any, ...] | Mapping[str, Any] = (),
        *,
        coarsen: int | Callable[[Any], Any] = 1,
        every: int = 1,
        path: str | os.PathLike[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> Trajectories:
        """Runs a reference solver and keeps every state, coarsened.

        Args:
            step: `state, *inputs -> state` on the fine grid; captured steps are much faster.
            initial_states: `(trajectory, x, y, vector)`, any batch dims; all trajectories are computed at once.
            steps: number of stored steps; `steps + 1` states are kept.
            inputs: extra arguments of the step, in a tuple or by name, constant or with a batch dim `time` of at least
                `steps` entries.
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
        _require_metadata(metadata)
        if path is not None:
            require_writable("path", path)
            require_json(dict(metadata or {}))
        data = generate(step, initial_states, steps, inputs, coarsen, every, progress)
        data = Trajectories(*data, dict(metadata or {}))
        if path is not None:
            data.save(path)
        return data

    @staticmethod
    def from_fields(
        states: Any, inputs: tuple[Any, ...] | Mapping[str, Any] = (), *, metadata: Mapping[str, Any] | None = None
    ) -> Trajectories:
        """States of your own loop, of `iterate` or of `rollout`, as reference data.

        Args:
            states: PhiFlow state `(trajectory, time, x, y, vector)`, or a list of states `(trajectory, x, y, vector)`, one
                for each time. Without the batch dim `trajectory` it is one trajectory.
            inputs: extra arguments of the steps between the states, as for `with_inputs`, in a tuple or by name.
            metadata: what should be known later: `dt`, parameters, seed; JSON values.

        Raises:
            StateError: for other batch dims, states on several grids, with several boundaries or in several precisions.
            DataError: if values are not finite.
        """
        return _assembled(*states_from_fields(states), inputs, metadata)

    @staticmethod
    def from_tensors(
        states: torch.Tensor | np.ndarray | Sequence[torch.Tensor | np.ndarray],
        like: Any,
        inputs: tuple[Any, ...] | Mapping[str, Any] = (),
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> Trajectories:
        """Native tensors or arrays as reference data.

        Args:
            states: one tensor or NumPy array `(trajectory, time, …)` for each tensor of `like`, a single one as it is. They
                are of the precision in which solvers then compute; memory is shared where that is possible.
            like: PhiFlow state `(x, y, vector)` whose grid, boundary and dims the data has; its values do not matter. The
                axes after `(trajectory, time)` are those of `bridge.flatten(like)`: spatial dims as the grid declares
                them, then channel dims by name; a staggered field is one tensor per component.
            inputs: extra arguments of the steps, as for `with_inputs`: PhiFlow values in a tuple or by name.
            metadata: what should be known later: `dt`, parameters, seed; JSON values.

        Raises:
            StateError: for tensors of other shapes or kinds of numbers than `like`, or of several precisions.
            DataError: if values are not finite.
        """
        return _assembled(*states_from_tensors(states, like), inputs, metadata)

    @staticmethod
    def concat(*sets: Trajectories) -> Trajectories:
        """One set of all trajectories of several, in their order, in memory; of the metadata, what all sets agree in.

        Raises:
            StateError: unless grids, boundaries, inputs, precisions and lengths are equal; sets of different lengths make a
                `phi_hybrid.data.Mixture`.
        """
        require(len(sets) > 0, "sets", sets, "at least one: Trajectories.concat(data_a, data_b)")
        for number, data in enumerate(sets):
            require_data(f"sets[{number}]", data)
        named = {f"sets[{number}]": data for number, data in enumerate(sets)}
        require_alike(named)
        require_equal_lengths(named)
        states, metadata = in_a_row([data.states for data in sets]), common([data.metadata for data in sets])
        return replace(sets[0], states=states, inputs=inputs_in_a_row(sets), metadata=metadata, checked=True)

    def __len__(self) -> int:
        """Number of trajectories."""
        return self.states[0].shape[0]

    @property
    def steps(self) -> int:
        """Number of steps of each trajectory; it holds one more state."""
        return self.states[0].shape[1] - 1

    @cached_property
    def layouts(self) -> DataLayout:
        """Layouts of states and inputs."""
        return DataLayout(self.state_layout, self.input_layout)

    @cached_property
    def scale(self) -> tuple[float, ...]:
        """Standard deviation of each state tensor over all trajectories, times and points.

        1 where nothing varies; of a vector field's component that varies by rounding only, that of its largest component.
        """
        return scale_of([self.states], self.state_layout)

    def __getitem__(self, selection: int | slice | Sequence[int] | torch.Tensor | np.ndarray) -> Trajectories:
        """Some of the trajectories."""
        if isinstance(selection, Integral):
            selection = [int(selection)]
        kinds = (slice, list, range, torch.Tensor, np.ndarray)
        require_instance("selection", selection, kinds, "trajectories as a number, a slice or a list of numbers")
        try:  # as NumPy counts, masks included
            numbers = np.arange(len(self))[np.asarray(selection) if isinstance(selection, torch.Tensor) else selection]
        except (IndexError, ValueError) as error:
            require(False, "selection", selection, f"numbers of trajectories, 0 … {len(self) - 1} ({error})")
        require(numbers.ndim == 1, "selection", selection, "trajectories in one list")
        if len(numbers) == 0:
            raise DataError(f"selection {selection} of {len(self)} trajectories is empty")
        forward = (
            isinstance(selection, slice) and (selection.step or 1) > 0
        )  # a view, which leaves lazy data in their file
        where = selection if forward else torch.from_numpy(numbers.copy())
        states, inputs = (tuple(t[where] for t in tensors) for tensors in (self.states, self.inputs))
        return replace(self, states=states, inputs=inputs, checked=True)

    def __iter__(self) -> Iterator[Trajectories]:
        """The trajectories one by one, as sets of one."""
        return (self[number] for number in range(len(self)))

    def split(self, first: int | float) -> tuple[Trajectories, Trajectories]:
        """Divides the set by trajectory, so that no state of the one part is near a state of the other.

        Args:
            first: number of trajectories in the first part, or their share between 0 and 1.

        Raises:
            StateError: if `first` is no number.
            DataError: if a part would be empty.
        """
        require_number("first", first, way_out="how many trajectories, or which share of them, between 0 and 1")
        count = first if isinstance(first, Integral) else round(first * len(self))
        if not 0 < count < len(self):
            raise DataError(
                f"split({first}) leaves one part of {len(self)} trajectories empty; "
                + (f"use 1 … {len(self) - 1}" if len(self) > 1 else "generate several, from states with a batch dim")
            )
        return self[:count], self[count:]

    def between(self, start: int, stop: int) -> Trajectories:
        """The steps from `start` to `stop` of every trajectory, `stop - start` of them, with their inputs.

        Raises:
            DataError: unless 0 ≤ start < stop ≤ steps.
        """
        for name, value in (("start", start), ("stop", stop)):
            require_count(name, value, None)
        if not 0 <= start < stop <= self.steps:
            raise DataError(
                f"between({start}, {stop}): the trajectories have steps 0 … {self.steps}; give start < stop"
            )
        part = self.cut(slice(None), start, stop - start)
        return replace(self, states=part.states, inputs=part.inputs, checked=True)

    def windows(self, steps: int) -> Windows:
        """All windows of `steps` steps, a torch `Dataset`; use its `collate` in a `DataLoader`."""
        return Windows(self, steps)

    def cut(self, trajectories: slice | list[int], start: int, steps: int) -> Batch:
        """The same window of several trajectories as a batch."""
        inputs = [
            t[trajectories, start : start + steps] if varies else t[trajectories]
            for t, varies in zip(self.inputs, self.layouts.varies)
        ]
        states = [t[trajectories, start : start + steps + 1] for t in self.states]
        return Batch(tuple(states), tuple(inputs), self.layouts, self.scale)

    def whole(self) -> Batch:
        """All trajectories from first to last state as one batch."""
        return self.cut(slice(None), 0, self.steps)

    @property
    def trajectory(self) -> Any:
        """All states as PhiFlow state `(trajectory, time, x, y, vector)`."""
        tensors = tuple(t.transpose(0, 1) for t in self.states)  # canonical: 'time' stands before 'trajectory'
        return unflatten(with_batch(self.state_layout, TIME, TRAJECTORY), tensors)

    @property
    def initial_state(self) -> Any:
        """First states `(trajectory, x, y, vector)`."""
        return self.whole().initial_state

    @property
    def step_inputs(self) -> tuple:
        """Inputs of the steps as PhiFlow values `(trajectory, time, …)`, to pass to `rollout`."""
        inputs = self.whole().step_inputs
        return unflatten(inputs.layout, inputs.tensors)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an HDF5 file with checksums; an older file of this name stays whole until the new one is complete.

        Raises:
            DataError: if it cannot be written, e.g. on a full disk.
            StateError: for states that files do not hold.
        """
        store.write(path, self.states, self.inputs, self.state_layout, self.input_layout, dict(self.metadata))

    @staticmethod
    def load(path: str | os.PathLike[str], lazy: bool = False) -> Trajectories:
        """Reads a file that `save` or `generate` has written.

        Args:
            path: of the file.
            lazy: whether values stay in the file until they are looked at, for sets that do not fit in memory. All are
                looked at once here, to be checked: against their checksums, and for what is not finite. Slices stay lazy, `data[2:4]`; lists of indices copy. The file must
                not be changed in place meanwhile; replacing it, as `save` does, is harmless.

        Raises:
            DataError: for files that are missing, damaged, truncated, foreign, of a newer version, or hold non-finite
                values. Files of version 0.1 have no checksums: of their values, only those that are not finite are found.
        """
        return Trajectories(*store.read(path, lazy), checked=True)

    def with_inputs(self, *inputs: Any, **keywords: Any) -> Trajectories:
        """The same states with other inputs of the steps, e.g. a guess for an unknown coefficient that is then trained.

        Args:
            *inputs: all inputs of the step after the state, in its order: fields on the grid of the data, tensors or
                numbers; constant, or with a batch dim `time` of `steps` entries; the same for all trajectories, or one
                each along a batch dim `trajectory`.
            **keywords: inputs by name, for steps that take them by name only.

        Raises:
            StateError: for other batch dims, or sizes that do not fit.
            DataError: if values are not finite.
        """
        tensors, layout = leading_inputs(inputs, keywords, len(self), self.steps)
        return Trajectories(self.states, tensors, self.state_layout, layout, self.metadata)

    def __repr__(self) -> str:
        size = sum(t.numel() * t.element_size() for t in (*self.states, *self.inputs)) / 2**20
        return (
            f"Trajectories({len(self)} of {self.steps} steps; state {describe_leaves(self.state_layout)}; inputs "
            f"{describe_leaves(self.input_layout)}; {size:.1f} MiB{'; ' + ', '.join(self.metadata) if self.metadata else ''})"
        )


def _require_metadata(metadata: Any) -> None:
    require_instance("metadata", metadata, (Mapping, type(None)), "names and JSON values, e.g. {'dt': 0.1}")


def _assembled(states: tuple[torch.Tensor, ...], layout: Layout, inputs: Any, metadata: Any) -> Trajectories:
    """A data set of given states, with inputs as users write them."""
    _require_metadata(metadata)
    tensors, input_layout = inputs_beside(states, inputs)
    return Trajectories(states, tensors, layout, input_layout, dict(metadata or {}))


def scale_of(sets: Sequence[tuple[torch.Tensor, ...]], layout: Layout) -> tuple[float, ...]:
    """Standard deviation of each state tensor over several sets together.

    Components of a vector field that vary by rounding only, such as the velocity across a laminar channel, have that of the
    component that varies most: divided by their own, rounding would rule a loss. 1 where nothing varies.
    """
    is_real = [t.is_floating_point() or t.is_complex() for t in sets[0]]
    found = [mean_and_deviation(*t) if real else (0.0, 1.0) for t, real in zip(zip(*sets), is_real)]
    scale = [deviation if deviation > 0 else 0.0 for _, deviation in found]
    for place in vectors_of(layout):
        size = max(math.hypot(*moments) for moments in found[place])
        least = rounding(sets[0][place][0]) * size
        scale[place] = [own if own > least else max(scale[place]) for own in scale[place]]
    return tuple(own or 1.0 for own in scale)


def require_data(name: str, data: Any) -> None:
    """Raises StateError for what is no set of trajectories."""
    require_instance(name, data, Trajectories, "Trajectories, e.g. of Trajectories.generate or load")
