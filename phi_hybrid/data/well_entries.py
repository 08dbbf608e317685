"""Scalars, fields and boundaries in a file of The Well, as its attributes describe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from phi.math import Shape, channel

from phi_hybrid.bridge.dims import TIME, TRAJECTORY
from phi_hybrid.data.foreign import SIDES
from phi_hybrid.data.hdf5 import attribute, dataset, names_in, real_numbers, subgroup
from phi_hybrid.errors import DataError


@dataclass(frozen=True)
class Entry:
    """A scalar or a field in a file."""

    values: Any
    """Data set."""
    order: int | None
    """Of the tensor at each point, `None` for a scalar without place."""
    sample: bool
    """Whether it differs between trajectories."""
    time: bool
    """Whether it changes with time."""
    along: tuple[bool, ...]
    """Whether it changes along each spatial dim."""

    @property
    def name(self) -> str:
        return self.values.name.rsplit("/", 1)[-1]


def entries_of(file: Any) -> dict[str, Entry]:
    """Scalars and fields by name."""
    count = int(attribute(file, "n_spatial_dims"))
    found = {}
    for group, order in (("scalars", None), ("t0_fields", 0), ("t1_fields", 1), ("t2_fields", 2)):
        if group not in file:
            continue
        home = subgroup(file, group)
        for name in names_in(home, "field_names"):
            values = dataset(home, name)
            if name in found:
                raise DataError(f"{file.filename}: the name '{name}' stands for two entries; rename one of them")
            along = attribute(values, "dim_varying", [True] * count) if order is not None else []
            sample, time = (attribute(values, f"{kind}_varying") for kind in ("sample", "time"))
            if sample is None or time is None or len(along) != (0 if order is None else count):
                raise DataError(
                    f"{file.filename}: '{values.name}' lacks the attributes sample_varying, time_varying or dim_varying "
                    "of The Well's specification; add them"
                )
            found[name] = Entry(values, order, bool(sample), bool(time), tuple(map(bool, along)))
    return found


@dataclass(frozen=True)
class Part:
    """The trajectories and times that are read of a file, and the sizes of all that is in it."""

    trajectories: slice
    times: slice
    sizes: Mapping[str, int]
    """Of the file, by name of a dim."""
    dims: Sequence[str]
    """Names of spatial dims."""

    def values(self, entry: Entry) -> np.ndarray:
        """Values `(trajectory, time, *spatial, *channel)`, each axis only if the entry varies along it.

        Raises:
            DataError: if the shape is not what the attributes say.
        """
        names = [TRAJECTORY] * entry.sample + [TIME] * entry.time
        names += [d for d, varies in zip(self.dims, entry.along) if varies]
        expected = [self.sizes[n] for n in names] + [len(self.dims)] * (entry.order or 0)
        shape = entry.values.shape
        alone = entry.order is None and not names and shape == (1,)  # both ways of writing a constant are found
        if shape != tuple(expected) and not alone:
            raise DataError(
                f"{entry.values.file.filename}: '{entry.values.name}' has shape {shape}, expected {tuple(expected)} by its "
                f"attributes: {', '.join(names) or 'a number'} and {entry.order or 0} axes of components"
            )
        part = [self.trajectories if n == TRAJECTORY else self.times for n in names if n in (TRAJECTORY, TIME)]
        whole = entry.order is None and entry.values.dtype.kind in "iub"
        read = entry.values.astype(np.float64)[tuple(part)] if whole else real_numbers(entry.values, tuple(part))
        values = np.asarray(read)
        return values.reshape(()) if alone else values

    def argument(self, entry: Entry) -> np.ndarray:
        """Values that a step takes: of the beginning of each step, and repeated along spatial dims."""
        values = self.spread(entry, self.values(entry))
        return values[(slice(None),) * entry.sample + (slice(-1),)] if entry.time else values

    def state(self, entry: Entry) -> np.ndarray:
        """Values of a field that changes with time, repeated along trajectories and spatial dims."""
        values = self.spread(entry, self.values(entry))
        count = len(range(self.sizes[TRAJECTORY])[self.trajectories])
        return values if entry.sample else np.broadcast_to(values, (count, *values.shape))

    def spread(self, entry: Entry, values: np.ndarray) -> np.ndarray:
        """Values with all spatial dims, repeated along those along which the entry does not vary."""
        for position, (dim, varies) in enumerate(zip(self.dims, entry.along), entry.sample + entry.time):
            if not varies:
                values = np.repeat(np.expand_dims(values, position), self.sizes[dim], position)
        return values


def channels(order: int, dims: Sequence[str]) -> Shape | None:
    """Channel dims of the tensors of an order at each point."""
    labels = ",".join(dims)
    return [None, channel(vector=labels), channel(i=labels, j=labels)][order]


def sides_of(file: Any, dims: Sequence[str]) -> dict[str, str | None]:
    """Kind of boundary at each side, `{"x-": "PERIODIC", "x+": "PERIODIC", "y-": "WALL", …}`; `None` where nothing is said.

    Raises:
        DataError: for boundaries inside of the domain or on a part of a side, and for two kinds at one.
    """
    sides: dict[str, str | None] = {d + s: None for d in dims for s in SIDES}
    home = subgroup(file, "boundary_conditions")
    for name in home:
        group = subgroup(home, name)
        written = str(attribute(group, "bc_type"))
        kind = written.upper()
        if kind not in ("PERIODIC", "WALL", "OPEN"):
            raise DataError(f"{file.filename}: '{group.name}' has bc_type '{written}', expected periodic, wall or open")
        for side in _sides_with(group, kind, dims):
            if sides[side] not in (None, kind):
                raise DataError(f"{file.filename}: side {side} is both {sides[side]} and {kind}; mend the file")
            sides[side] = kind
    return sides


def _sides_with(group: Any, kind: str, dims: Sequence[str]) -> list[str]:
    """The sides that a group of boundary conditions is about."""
    along = names_in(group, "associated_dims")
    if unknown := [d for d in along if d not in dims]:
        raise DataError(f"{group.file.filename}: '{group.name}' is about {unknown}, expected dims among {list(dims)}")
    if kind == "PERIODIC":  # both sides, whatever the mask
        return [d + s for d in along for s in SIDES]
    mask = np.asarray(dataset(group, "mask")[()], bool)
    covered, found = np.zeros_like(mask), []
    for axis, dim in enumerate(along if mask.ndim == len(along) else []):
        for side, entry in zip(SIDES, (0, -1)):
            place = (slice(None),) * axis + (entry,)
            if mask[place].all():
                found.append(dim + side)
                covered[place] = True
    if not found or (mask & ~covered).any():
        raise DataError(
            f"{group.file.filename}: '{group.name}' ({kind.lower()}) lies inside of the domain or on a part of a side; "
            "PhiFlow has obstacles for that: read the arrays with h5py, and pass them to Trajectories.from_tensors"
        )
    return found
