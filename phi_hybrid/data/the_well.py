"""Reader of the files of The Well."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from phi import math
from phi.geom import Box
from phi.math import Tensor, batch, spatial, wrap
from phi.math.extrapolation import PERIODIC, ZERO_GRADIENT

from phi_hybrid.bridge.dims import TIME, TRAJECTORY
from phi_hybrid.data.coordinates import box_of, time_step
from phi_hybrid.data.foreign import SIDES, Grid, assembled, boundary_for, chosen, periodic_dims, require_names
from phi_hybrid.data.hdf5 import attribute, dataset, names_in, opened, real_numbers, selected, subgroup
from phi_hybrid.data.trajectories import Trajectories
from phi_hybrid.data.well_entries import Entry, Part, channels, entries_of, sides_of
from phi_hybrid.errors import DataError, StateError


def read_the_well(
    path: str | os.PathLike[str],
    *,
    boundary: Any = None,
    fields: Sequence[str] | None = None,
    inputs: Sequence[str] = (),
    trajectories: slice | None = None,
    times: slice | None = None,
    bounds: Box | None = None,
) -> Trajectories:
    """Reads one HDF5 file of The Well (Ohana et al. 2024, arXiv:2412.00568).

    The specification is https://polymathic-ai.org/the_well/data_format/; what it leaves open was taken from
    `scripts/check_thewell_formatting.py` and `the_well/data/datasets.py` of https://github.com/PolymathicAI/the_well.

    Points are taken as centres of cells. Periodic sides become `PERIODIC`, open ones `ZERO_GRADIENT`. What a wall does
    differs by field and is not in the file, so `boundary` must say it.

    Args:
        path: of the file.
        boundary: boundaries of sides, `{"y": 0}`, `{"y-": 1, "y+": 0}`, which come before those of the file; or such a dict
            for each field by name; or one boundary for everything. Needed for walls. A constant holds at the centre of the
            cell outside of the wall; `extrapolation.ANTISYMMETRIC` is zero at the wall itself.
        fields: names of the fields of the state; by default all that change with time. One field is a state by itself,
            several are a dict. Vectors have a dim `vector`, tensors of second order dims `i` and `j`.
        inputs: names of scalars and constant fields that the step takes as arguments, in this order. Those that change
            with time have the value at the beginning of each step.
        trajectories: a part of them, all by default.
        times: a part of the states of each; `slice(0, None, 10)` makes the time step ten times as long.
        bounds: box of the domain, from the coordinates by default.

    Returns:
        Data with metadata `source`, `dataset_name`, `dt`, `start` (first time), `parameters` of the simulation, `scalars`
        that are no inputs, as numbers or lists `(trajectory, time)`, and `left_out`, names of fields that were not read.

    Raises:
        DataError: for a file that is missing, damaged or of another form, grids that are not cartesian and uniform, uneven
            times, walls without `boundary`, links out of the file.
        StateError: for bad arguments.
    """
    where = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    with opened(path) as file:
        points = _points(file)
        dims, entries = list(points), entries_of(file)
        frames, count = _frames(file), _trajectories(file)
        chosen_part = selected("trajectories", trajectories, count), selected("times", times, frames)
        part = Part(*chosen_part, {TRAJECTORY: count, TIME: frames} | {n: len(x) for n, x in points.items()}, dims)
        varying = [n for n, e in entries.items() if e.order is not None and e.time]
        names = chosen(fields, varying, where)
        arrays = {n: part.state(entries[n]) for n in names}
        arguments = {n: part.argument(entries[n]) for n in _known(inputs, entries, varying, where)}
        stamps, sides = _times(file, part), sides_of(file, dims)
        metadata = _metadata(file, entries, [*names, *inputs], part)
    metadata |= {"dt": time_step(stamps, where), "start": float(stamps[0])}
    boundaries = {n: _boundary(n, boundary, sides, names, where) for n in names}
    with math.precision(8 * arrays[names[0]].itemsize):
        grid = Grid(*box_of(points, periodic_dims(boundaries.values(), dims), bounds, where))
        examples = {n: grid.example(channels(entries[n].order, dims), boundaries[n]) for n in names}
        wrapped = tuple(_input(entries[n], values, grid, sides) for n, values in arguments.items())
        return assembled(arrays, examples, wrapped, metadata)


# --- what a file holds ---


def _points(file: Any) -> dict[str, np.ndarray]:
    """The points along each spatial dim.

    Raises:
        DataError: for what is no file of The Well, or has no cartesian grid.
    """
    lacking = [n for n in ("dataset_name", "grid_type", "n_spatial_dims", "n_trajectories") if n not in file.attrs]
    if lacking or "dimensions" not in file:
        raise DataError(
            f"{file.filename} is no file of The Well: it lacks {lacking or 'the group dimensions'}; see "
            "https://polymathic-ai.org/the_well/data_format/, or read the arrays with h5py for Trajectories.from_tensors"
        )
    if str(kind := attribute(file, "grid_type")).lower() != "cartesian":
        raise DataError(f"{file.filename} has grid_type '{kind}', expected 'cartesian': PhiFlow has no such grid")
    home = subgroup(file, "dimensions")
    dims = names_in(home, "spatial_dims")
    if len(dims) != attribute(file, "n_spatial_dims") or not 1 <= len(dims) <= 3:
        raise DataError(
            f"{file.filename}: spatial_dims are {dims}, but n_spatial_dims is {attribute(file, 'n_spatial_dims')}; "
            "expected 1 to 3 names"
        )
    for name in dims:
        if any(attribute(dataset(home, name), f"{kind}_varying", False) for kind in ("sample", "time")):
            raise DataError(f"{file.filename}: the points along {name} move; PhiFlow's grids do not")
    return {d: real_numbers(dataset(home, d)) for d in dims}


def _trajectories(file: Any) -> int:
    count = attribute(file, "n_trajectories")
    if not isinstance(count, int) or count < 1:
        raise DataError(f"{file.filename}: n_trajectories is {count!r}, expected a positive integer")
    return count


def _frames(file: Any) -> int:
    """Number of times in the file."""
    values = dataset(file, "dimensions/time")
    per_trajectory = bool(attribute(values, "sample_varying", False))
    if values.ndim != 1 + per_trajectory:
        raise DataError(
            f"{file.filename}: 'dimensions/time' has shape {values.shape}, expected one time for each state"
        )
    return values.shape[-1]


def _times(file: Any, part: Part) -> np.ndarray:
    """The times of the states, which are the same for all trajectories."""
    values = dataset(file, "dimensions/time")
    if not attribute(values, "sample_varying", False):
        return real_numbers(values)[part.times]
    rows = real_numbers(values)[part.trajectories, part.times]
    steps = np.diff(rows, axis=1)
    if not np.allclose(steps, steps[:1], rtol=1e-3, atol=4 * np.finfo(rows.dtype).eps * np.abs(rows).max()):
        raise DataError(
            f"{file.filename}: time steps differ between trajectories; read one at a time, trajectories=slice(…)"
        )
    return rows[0]


def _known(inputs: Sequence[str], entries: Mapping[str, Entry], varying: Sequence[str], where: str) -> Sequence[str]:
    available = [n for n in entries if n not in varying]
    require_names("inputs", inputs, available)
    if unknown := [n for n in inputs if n not in available]:
        raise StateError(
            f"inputs = {unknown}: {where} has {available}; choose among them, fields that change are states"
        )
    return inputs


def _metadata(file: Any, entries: Mapping[str, Entry], used: Sequence[str], part: Part) -> dict[str, Any]:
    scalars = {n: part.values(e).tolist() for n, e in entries.items() if e.order is None and n not in used}
    return {
        "source": "The Well",
        "dataset_name": str(attribute(file, "dataset_name")),
        "parameters": {n: attribute(file, n) for n in names_in(file, "simulation_parameters")},
        "scalars": {n: v[0] if isinstance(v, list) and len(v) == 1 else v for n, v in scalars.items()},
        "left_out": [n for n, e in entries.items() if e.order is not None and n not in used],
    }


# --- PhiFlow values ---


def _boundary(field: str, boundary: Any, sides: Mapping[str, str | None], fields: Sequence[str], where: str) -> Any:
    """The boundary of a field: the user's where there is one, else that of the file.

    Raises:
        DataError: for sides that neither of them tells.
    """
    dims = [s[:-1] for s in sides if s.endswith("-")]
    own = {} if boundary is None else boundary_for(field, boundary, fields, dims)
    if not isinstance(own, Mapping):
        return own
    known = {"PERIODIC": PERIODIC, "OPEN": ZERO_GRADIENT}
    full = {s: own.get(s, own.get(s[:-1], known.get(kind))) for s, kind in sides.items()}
    if unknown := [s for s, b in full.items() if b is None]:
        told = {s: (sides[s] or "nothing").lower() for s in unknown}
        raise DataError(
            f"{where} says of the sides {told}, which is no boundary of '{field}' yet; pass one, e.g. "
            f'boundary={{"{field}": {{"{unknown[0][:-1]}": 0}}}} for zero there, or ZERO_GRADIENT'
        )
    return _by_dim(full, dims)


def _by_dim(full: Mapping[str, Any], dims: Sequence[str]) -> dict[str, Any]:
    """The same with one entry for both sides of a dim where they are one object."""
    result = {}
    for dim in dims:
        lower, upper = (full[dim + s] for s in SIDES)
        result |= {dim: lower} if lower is upper else {dim + "-": lower, dim + "+": upper}
    return result


def _input(entry: Entry, values: np.ndarray, grid: Grid, sides: Mapping[str, str | None]) -> Tensor | Any:
    """A scalar as a tensor, a constant field as a field, with dims `trajectory` and `time` where it varies along them."""
    names = [TRAJECTORY] * entry.sample + [TIME] * entry.time
    if entry.order is None:
        return wrap(values, *map(batch, names))
    inner = channels(entry.order, list(grid.sizes))
    tensor = wrap(values, *map(batch, names), *map(spatial, grid.sizes), *([] if inner is None else inner))
    periodic = {s[:-1] for s, kind in sides.items() if kind == "PERIODIC"}
    return grid.field(tensor, {d: PERIODIC if d in periodic else ZERO_GRADIENT for d in grid.sizes})
