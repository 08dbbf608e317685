"""PhiFlow states built from torch tensors and taken apart again by hand, without the bridge."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Field,
    StaggeredGrid,
    batch,
    channel,
    dual,
    math,
    spatial,
    vec,
)

RESOLUTION = {1: {"x": 7}, 2: {"x": 6, "y": 5}, 3: {"x": 5, "y": 4, "z": 3}}
SIZE = {"x": 2.0, "y": 1.5, "z": 1.2}
PLACEMENTS = ("scalar", "vector", "staggered")
BOUNDARIES = ("periodic", "closed", "open", "inflow")
MORE_BOUNDARIES = (*BOUNDARIES, "channel", "outlet")
DTYPE = {32: torch.float32, 64: torch.float64}


def names(dims: int) -> str:
    return "xyz"[:dims]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def boundary(kind: str, dims: int) -> Any:
    """Boundary condition as a user would write it."""
    along, across = names(dims)[-1], names(dims)[:-1]
    if kind == "inflow":  # through the last dimension of a box that is periodic otherwise
        flow = vec(**{n: 1.0 if n == along else 0.0 for n in names(dims)})
        return {**{n: PERIODIC for n in across}, along + "-": flow, along + "+": ZERO_GRADIENT}
    if kind == "channel":  # through the first dimension, between walls
        flow = vec(**{n: 1.5 if n == "x" else 0.25 for n in names(dims)})
        return {"x-": flow, "x+": ZERO_GRADIENT, **{n: 0 for n in names(dims)[1:]}}
    if kind == "outlet":  # the open side is the lower one
        return {"x-": ZERO_GRADIENT, "x+": 0, **{n: ZERO_GRADIENT for n in names(dims)[1:]}}
    return {"periodic": PERIODIC, "closed": 0, "open": ZERO_GRADIENT}[kind]


def stored_faces(kind: str, dims: int, dim: str) -> tuple[bool, bool, float]:
    """Whether the outer lower and upper faces normal to `dim` are degrees of freedom; the value of a fixed lower one."""
    if kind == "inflow":
        return (False, True, 1.0) if dim == names(dims)[-1] else (True, False, 0.0)
    if kind == "channel":
        return (False, True, 1.5) if dim == "x" else (False, False, 0.0)
    if kind == "outlet":
        return (True, False, 0.0) if dim == "x" else (True, True, 0.0)
    return {"periodic": (True, False, 0.0), "closed": (False, False, 0.0), "open": (True, True, 0.0)}[kind]


def face_sizes(kind: str, cells: dict[str, int], component: str) -> list[int]:
    """Sizes of a component on its stored faces."""
    lower, upper, _ = stored_faces(kind, len(cells), component)
    return [n - 1 + lower + upper if d == component else n for d, n in cells.items()]


def random_leaves(
    placement: str,
    kind: str,
    dims: int,
    batches: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    cells: dict[str, int] | None = None,
) -> list[torch.Tensor]:
    """One leaf `(*batches, *spatial[, vector])`, or one per component of a staggered field."""
    cells = cells or RESOLUTION[dims]
    shapes = {
        "scalar": lambda: [[*cells.values()]],
        "vector": lambda: [[*cells.values(), dims]],
        "staggered": lambda: [face_sizes(kind, cells, component) for component in names(dims)],
    }[placement]()
    return [noise(*batches, *shape, seed=seed + 1000 * n, dtype=dtype) for n, shape in enumerate(shapes)]


def field_of(
    leaves: Sequence[torch.Tensor],
    placement: str,
    kind: str,
    dims: int,
    batches: Sequence[str] = (),
    cells: dict[str, int] | None = None,
) -> Field:
    """Field whose values are these tensors, axes `(*batches, *spatial[, vector])`."""
    shape = [batch(n) for n in batches] + [spatial(n) for n in names(dims)]
    vector = [channel(vector=",".join(names(dims)))] if placement == "vector" else []
    tensors = [math.wrap(leaf, *shape, *vector) for leaf in leaves]
    with math.precision(torch.finfo(leaves[0].dtype).bits):  # stack() and Box() cast to the global precision
        box = Box(**{n: SIZE[n] for n in names(dims)})
        if placement != "staggered":
            return CenteredGrid(tensors[0], boundary(kind, dims), bounds=box)
        values = math.stack(tensors, dual(vector=",".join(names(dims))))
        return StaggeredGrid(values, boundary(kind, dims), bounds=box, **(cells or RESOLUTION[dims]))


def random_field(
    placement: str, kind: str, dims: int, seed: int = 0, dtype: torch.dtype = torch.float32, **batches: int
) -> Field:
    leaves = random_leaves(placement, kind, dims, tuple(batches.values()), dtype, seed)
    return field_of(leaves, placement, kind, dims, tuple(batches))


def faces(
    kind: str,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    cells: dict[str, int] | None = None,
    **batches: int,
) -> Field:
    """Random staggered velocity `(*batches, x, y[, z])` on a box, of deviation ½."""
    cells = cells or RESOLUTION[2]
    leaves = random_leaves("staggered", kind, len(cells), tuple(batches.values()), dtype, seed, cells)
    return field_of([0.5 * t for t in leaves], "staggered", kind, len(cells), tuple(batches), cells)


def scalar(seed: int = 0, dtype: torch.dtype = torch.float32, **batches: int) -> Field:
    """Random centred scalar `(*batches, x, y)` with zero gradient at the sides."""
    return random_field("scalar", "open", 2, seed, dtype, **batches)


def line(
    seed: int = 0, cells: int = 8, dtype: torch.dtype = torch.float32, boundary: Any = PERIODIC, **batches: int
) -> Field:
    """Random centred velocity `(*batches, x, vector)` on a line."""
    values = noise(*batches.values(), cells, 1, seed=seed, dtype=dtype)
    with math.precision(torch.finfo(dtype).bits):
        tensor = math.wrap(values, *[batch(n) for n in batches], spatial("x"), channel(vector="x"))
        return CenteredGrid(tensor, boundary, bounds=Box(x=SIZE["x"]))


def component_values(field: Field, batches: Sequence[str] = ()) -> list[torch.Tensor]:
    """Values by PhiFlow's own means: one tensor per staggered component, `(*batches, *spatial)`, or one with vector."""
    dims = [*batches, *field.resolution.names]
    with math.precision(field.values.dtype.precision):  # native() casts to the global precision
        if not field.is_staggered:
            return [field.values.native([*dims, *field.values.shape.channel.names])]
        components = [field.values[{"~vector": n}] for n in field.resolution.names]
        # advect.* adds a dim in 1D, an upstream defect
        return [(c.vector[0] if "vector" in c.shape else c).native(dims) for c in components]


def cells_of_faces(faces: torch.Tensor, kind: str, dims: int, component: str) -> torch.Tensor:
    """Slow loop: each cell shows its lower face, `(batch, *faces)` → `(batch, *cells)`."""
    lower, _, value = stored_faces(kind, dims, component)
    axis, cells = names(dims).index(component), RESOLUTION[dims]
    result = torch.full((faces.shape[0], *cells.values()), value, dtype=faces.dtype)
    for index in product(*(range(n) for n in cells.values())):
        face = list(index)
        face[axis] -= not lower
        if face[axis] >= 0:
            result[(slice(None), *index)] = faces[(slice(None), *face)]
    return result


def faces_of_cells(values: torch.Tensor, kind: str, dims: int, component: str) -> torch.Tensor:
    """Slow loop: every stored face takes the value of the cell above it, the outer upper one of the cell below."""
    lower, _, _ = stored_faces(kind, dims, component)
    axis, sizes = names(dims).index(component), face_sizes(kind, RESOLUTION[dims], component)
    result = torch.full((values.shape[0], *sizes), float("nan"), dtype=values.dtype)
    for index in product(*(range(n) for n in sizes)):
        cell = list(index)
        cell[axis] = min(cell[axis] + (not lower), RESOLUTION[dims][component] - 1)
        result[(slice(None), *index)] = values[(slice(None), *cell)]
    return result
