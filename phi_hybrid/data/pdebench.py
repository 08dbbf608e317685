"""Reader of PDEBench's files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from phi import math
from phi.geom import Box
from phi.math import Shape, Tensor, batch, channel, spatial, wrap

from phi_hybrid.bridge.checks import require_instance
from phi_hybrid.bridge.dims import TRAJECTORY
from phi_hybrid.data.coordinates import box_of, time_step
from phi_hybrid.data.foreign import Grid, assembled, boundary_for, chosen, periodic_dims
from phi_hybrid.data.hdf5 import dataset, json_value, member, opened, real_numbers, selected
from phi_hybrid.data.trajectories import Trajectories
from phi_hybrid.errors import DataError, StateError

DIMS = ("x", "y", "z")
CFD = ("density", "pressure", "velocity")


def read_pdebench(
    path: str | os.PathLike[str],
    boundary: Any,
    *,
    fields: Sequence[str] | None = None,
    channels: Shape | None = None,
    trajectories: slice | None = None,
    times: slice | None = None,
    bounds: Box | None = None,
) -> Trajectories:
    """Reads a data set of PDEBench (Takamoto et al. 2022, arXiv:2210.07182) from its HDF5 file.

    Four layouts are known, as https://github.com/pdebench/PDEBench writes and reads them (`data_gen/data_gen_NLE/
    Data_Merge.py`, `data_gen/gen_*.py`, `data_gen/src/data_io.py`, `models/fno/utils.py`):

    - `tensor` `(trajectory, time, x)`, of advection, Burgers' equation, diffusion–reaction in 1D: a field;
    - `density`, `pressure`, `Vx`, `Vy`, `Vz` `(trajectory, time, x, y, z)`, of compressible flow: a dict of `density`,
      `pressure` and `velocity`;
    - one group per trajectory, `0000/data` `(time, x, y, channel)`, with `0000/grid/x`, of diffusion–reaction and shallow
      water in 2D and diffusion–sorption in 1D: a field;
    - `velocity`, `particles` `(trajectory, time, x, y, channel)` and `force` `(trajectory, x, y, channel)`, of incompressible
      flow: a dict of `velocity` and `particles`, centred, with the force as an input of the steps. The file has no
      coordinates: cells have size 1, as in the script that writes it, unless `bounds` says otherwise.

    Points are centres of cells, as PDEBench says. Its times may have one entry more than there are states.

    Args:
        path: of the file.
        boundary: boundary of the fields, which the files do not tell: what PhiFlow takes, e.g. `PERIODIC`, or one for each
            name of a field.
        fields: names of those to read, of compressible flow; all by default. One field is a state by itself.
        channels: channel dims of a value, e.g. `channel(vector="x")` for Burgers' velocity. Default: none for one number
            per point, else one of name `channel`.
        trajectories: a part of them, all by default.
        times: a part of the states of each; `slice(0, None, 10)` makes the time step ten times as long.
        bounds: box of the domain, from the coordinates by default.

    Returns:
        Data without inputs of steps, but for the force of incompressible flow, see `Trajectories.with_inputs`; metadata `source`, `dt`, `start` (first time) and
        `parameters`.

    Raises:
        DataError: for a file that is missing, damaged or of another layout, uneven points or times, links out of the file.
        StateError: for bad arguments.
    """
    require_instance("channels", channels, (Shape, type(None)), 'channel dims, e.g. channel(vector="x")')
    with opened(path) as file:
        arrays, dims, points, stamps, parameters, force = _contents(file, fields, channels, trajectories, times)
    names, where = list(arrays), os.fspath(path)
    boundaries = {n: boundary_for(n, boundary, names, dims) for n in names}
    metadata = {"source": "PDEBench", "dt": time_step(stamps, where), "start": float(stamps[0])}
    with math.precision(8 * arrays[names[0]][0].itemsize):
        grid = Grid(*box_of(points, periodic_dims(boundaries.values(), dims), bounds, where))
        examples = {n: grid.example(c, boundaries[n]) for n, (_, c) in arrays.items()}
        values = {n: array for n, (array, _) in arrays.items()}
        inputs = () if force is None else (grid.field(force, 0),)
        return assembled(values, examples, inputs, metadata | {"parameters": parameters})


class Contents(NamedTuple):
    """What a file holds."""

    arrays: dict[str, tuple[np.ndarray, Shape | None]]
    """Field → values `(trajectory, time, *spatial, *channel)` and their channel dims."""
    dims: list[str]
    points: dict[str, np.ndarray]
    times: np.ndarray
    parameters: dict[str, Any]
    force: Tensor | None = None
    """Of incompressible flow, `(trajectory, x, y, vector)`."""


def _contents(file: Any, fields: Sequence[str] | None, channels: Shape | None, *parts: slice | None) -> Contents:
    if member(file, "tensor") is not None or member(file, "density") is not None:
        return _arrays(file, fields, channels, *parts)
    if member(file, "particles") is not None:
        return _incompressible(file, fields, channels, *parts)
    samples = sorted(n for n in file if member(file, n + "/data") is not None)
    if samples:
        if fields is not None:
            raise StateError(f"fields = {fields!r}: {file.filename} has one field; leave `fields` out")
        return _samples(file, samples, channels, *parts)
    raise DataError(
        f"{file.filename} has none of PDEBench's layouts: it holds {sorted(file)[:8]}, expected 'tensor', 'density', "
        "'particles' or groups with 'data'; read the arrays with h5py and pass them to Trajectories.from_tensors"
    )


def _arrays(
    file: Any, fields: Sequence[str] | None, channels: Shape | None, trajectories: slice | None, times: slice | None
) -> Contents:
    """Arrays `(trajectory, time, *spatial)` that lie beside their coordinates."""
    dims = [d for d in DIMS if member(file, f"{d}-coordinate") is not None]
    flow = member(file, "tensor") is None
    if flow and channels is not None:
        raise StateError(f"channels = {channels}: the velocity in {file.filename} has a dim 'vector'; leave it out")
    names = chosen(fields, CFD if flow else ["tensor"], file.filename)
    if member(file, "t-coordinate") is None:
        raise DataError(f"{file.filename} has no 't-coordinate': it holds single states, not trajectories")
    points = {d: real_numbers(dataset(file, f"{d}-coordinate")) for d in dims}
    first = dataset(file, "density" if flow else "tensor")
    expected = (*first.shape[:2], *map(len, points.values()))
    if first.ndim < 3 or len(expected) != first.ndim:
        raise DataError(
            f"{file.filename}: '{first.name}' has shape {first.shape}, expected (trajectory, time, {', '.join(dims)}) with "
            f"the coordinates {dims}"
        )
    part = selected("trajectories", trajectories, expected[0]), selected("times", times, expected[1])

    def values(name: str) -> np.ndarray:
        found = dataset(file, name)
        if found.shape != expected:
            raise DataError(f"{file.filename}: '{name}' has shape {found.shape}, expected {expected}")
        return real_numbers(found, part)

    arrays = {}
    for name in names:
        if name == "velocity":
            arrays[name] = np.stack([values(f"V{d}") for d in dims], -1), channel(vector=",".join(dims))
        else:
            arrays[name] = _with_channels(values(name), channels, 1, file.filename), channels
    stamps = _times(dataset(file, "t-coordinate"), expected[1])[part[1]]
    return Contents(arrays, dims, points, stamps, {n: json_value(v) for n, v in file.attrs.items()})


def _incompressible(
    file: Any, fields: Sequence[str] | None, channels: Shape | None, trajectories: slice | None, times: slice | None
) -> Contents:
    """Centred velocity and particles that start at random, under a force that is constant in time."""
    if channels is not None:
        raise StateError(f"channels = {channels}: the velocity in {file.filename} has a dim 'vector'; leave it out")
    names = chosen(fields, ("velocity", "particles"), file.filename)
    first = dataset(file, "particles")
    if first.ndim not in (5, 6) or first.shape[-1] != 1:
        raise DataError(f"{file.filename}: 'particles' has shape {first.shape}, expected (trajectory, time, x, y, 1)")
    dims, (count, frames, *sizes, _) = list(DIMS[: first.ndim - 3]), first.shape
    part = selected("trajectories", trajectories, count), selected("times", times, frames)
    vector = channel(vector=",".join(dims))

    def values(name: str, *lead: int, last: int) -> np.ndarray:
        found = dataset(file, name)
        if found.shape != (*lead, *sizes, last):
            raise DataError(f"{file.filename}: '{name}' has shape {found.shape}, expected {(*lead, *sizes, last)}")
        return real_numbers(found, part[: len(lead)])

    known = {"velocity": (len(dims), vector), "particles": (1, None)}
    arrays = {n: (values(n, count, frames, last=known[n][0]), known[n][1]) for n in names}
    arrays = {n: (array if c is not None else array[..., 0], c) for n, (array, c) in arrays.items()}
    stamps = real_numbers(dataset(file, "t"))
    if stamps.shape != (count, frames) or (stamps != stamps[:1]).any():
        raise DataError(
            f"{file.filename}: 't' has shape {stamps.shape}, expected the same {frames} times for each of {count} "
            "trajectories; read those that are apart with trajectories=slice(…)"
        )
    force = wrap(values("force", count, last=len(dims)), batch(TRAJECTORY), *map(spatial, dims), vector)
    points = {d: np.arange(n) + 0.5 for d, n in zip(dims, sizes)}
    parameters = {n: json_value(v) for n, v in file.attrs.items()}
    return Contents(arrays, dims, points, stamps[0][part[1]], parameters, force)


def _samples(
    file: Any, names: list[str], channels: Shape | None, trajectories: slice | None, times: slice | None
) -> Contents:
    """One group per trajectory, with arrays `(time, *spatial, channel)`."""
    names = names[selected("trajectories", trajectories, len(names))]
    groups = [member(file, n) for n in names]
    grid = member(groups[0], "grid")
    dims = [d for d in DIMS if grid is not None and member(grid, d) is not None]
    first = dataset(groups[0], "data")
    points = _points(groups[0], dims)
    sizes = tuple(map(len, points.values()))
    if not dims or first.shape[1:-1] != sizes or first.ndim != len(dims) + 2:
        raise DataError(
            f"{file.filename}: '{first.name}' has shape {first.shape}, expected (time, {', '.join(dims)}, channel) with "
            f"{sizes} points along {dims}"
        )
    part = selected("times", times, first.shape[0])
    stamps = _times(dataset(groups[0], "grid/t"), first.shape[0])
    arrays = []
    for group in groups:
        values = dataset(group, "data")
        same = values.shape == first.shape and np.array_equal(_times(dataset(group, "grid/t"), first.shape[0]), stamps)
        if not same or not all(map(np.array_equal, points.values(), _points(group, dims).values())):
            raise DataError(
                f"{file.filename}: group '{group.name}' has other points, times or shapes than '{groups[0].name}', "
                f"{values.shape} and {first.shape}; read them apart with trajectories=slice(…)"
            )
        arrays.append(real_numbers(values, (part,)))
    count = first.shape[-1]
    if channels is None and count > 1:
        channels = channel(channel=count)
    array = _with_channels(np.stack(arrays)[..., 0] if count == 1 else np.stack(arrays), channels, count, file.filename)
    parameters = {n: json_value(v) for n, v in groups[0].attrs.items()}
    return Contents({"data": (array, channels)}, dims, points, stamps[part], parameters)


def _with_channels(values: np.ndarray, channels: Shape | None, count: int, where: str) -> np.ndarray:
    """Values whose last axes are the channel dims, in alphabetical order, of `count` numbers per point."""
    if channels is None:
        return values
    if not channels or channels.channel_rank != channels.rank or channels.volume != count:
        raise StateError(
            f"channels = {channels}: expected channel dims of {count} numbers in all, as {where} has per point"
        )
    if channels.names != tuple(sorted(channels.names)):
        raise StateError(f"channels = {channels}: name the dims in alphabetical order, the order of a field's axes")
    lead = values.shape if count == 1 else values.shape[:-1]
    return values.reshape(*lead, *channels.sizes)


def _points(group: Any, dims: Sequence[str]) -> Mapping[str, np.ndarray]:
    return {d: real_numbers(dataset(group, f"grid/{d}")) for d in dims}


def _times(stamps: Any, count: int) -> np.ndarray:
    """Times of `count` states; PDEBench writes one more with some data sets."""
    values = real_numbers(stamps)
    if values.ndim != 1 or len(values) not in (count, count + 1):
        raise DataError(
            f"{stamps.file.filename}: '{stamps.name}' has shape {values.shape}, expected {count} times, one for each state"
        )
    return values[:count]
