"""PhiFlow states built from torch tensors and taken apart again by hand, without the bridge."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

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
    extrapolation,
    math,
    spatial,
    vec,
)

torch.set_num_threads(1)  # the grids are tiny

RESOLUTION = {1: {"x": 7}, 2: {"x": 6, "y": 5}, 3: {"x": 5, "y": 4, "z": 3}}
SIZE = {"x": 2.0, "y": 1.5, "z": 1.2}
PLACEMENTS = ("scalar", "vector", "staggered")
BOUNDARIES = ("periodic", "closed", "open", "inflow")
MORE_BOUNDARIES = (*BOUNDARIES, "channel", "outlet")
DTYPE = {32: torch.float32, 64: torch.float64}


def names(dims: int) -> str:
    return "xyz"[:dims]


def boundary(kind: str, dims: int) -> object:
    """Boundary condition as a user would write it."""
    along, across = names(dims)[-1], names(dims)[:-1]
    if kind == "periodic":
        return PERIODIC
    if kind == "closed":
        return extrapolation.ZERO
    if kind == "open":
        return ZERO_GRADIENT
    if kind == "inflow":  # through the last dimension of a box that is periodic otherwise
        flow = vec(**{n: 1.0 if n == along else 0.0 for n in names(dims)})
        return {**{n: PERIODIC for n in across}, along + "-": flow, along + "+": ZERO_GRADIENT}
    if kind == "channel":  # through the first dimension, between walls
        flow = vec(**{n: 1.5 if n == "x" else 0.25 for n in names(dims)})
        return {"x-": flow, "x+": ZERO_GRADIENT, **{n: extrapolation.ZERO for n in names(dims)[1:]}}
    if kind == "outlet":  # the open side is the lower one
        return {"x-": ZERO_GRADIENT, "x+": 0, **{n: ZERO_GRADIENT for n in names(dims)[1:]}}
    raise AssertionError(kind)


def stored_faces(kind: str, dims: int, dim: str) -> tuple[bool, bool, float]:
    """Whether the outer lower and upper faces normal to `dim` are degrees of freedom; the value of a fixed lower one."""
    if kind == "inflow":
        return (False, True, 1.0) if dim == names(dims)[-1] else (True, False, 0.0)
    if kind == "channel":
        return (False, True, 1.5) if dim == "x" else (False, False, 0.0)
    if kind == "outlet":
        return (True, False, 0.0) if dim == "x" else (True, True, 0.0)
    return {"periodic": (True, False, 0.0), "closed": (False, False, 0.0), "open": (True, True, 0.0)}[kind]


def leaf_shapes(placement: str, kind: str, dims: int) -> list[tuple[int, ...]]:
    """Sizes without batch: one leaf, or one per component of a staggered field."""
    cells = RESOLUTION[dims]
    if placement == "scalar":
        return [tuple(cells.values())]
    if placement == "vector":
        return [(*cells.values(), dims)]
    shapes = []
    for component in names(dims):
        lower, upper, _ = stored_faces(kind, dims, component)
        shapes.append(tuple(n - 1 + lower + upper if d == component else n for d, n in cells.items()))
    return shapes


def random_leaves(
    placement: str, kind: str, dims: int, batches: Sequence[int] = (), dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = leaf_shapes(placement, kind, dims)
    return [torch.randn(*batches, *s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def field_of(
    leaves: Sequence[torch.Tensor], placement: str, kind: str, dims: int, batches: Sequence[str] = ()
) -> Field:
    """Field whose values are these tensors, axes `(*batches, *spatial[, vector])`."""
    tensors = []
    for leaf in leaves:
        shape = [batch(n) for n in batches] + [spatial(n) for n in names(dims)]
        shape += [channel(vector=",".join(names(dims)))] if placement == "vector" else []
        tensors.append(math.wrap(leaf, *shape))
    with math.precision(torch.finfo(leaves[0].dtype).bits):  # stack() and Box() cast to the global precision
        box = Box(**{n: SIZE[n] for n in names(dims)})
        if placement != "staggered":
            return CenteredGrid(tensors[0], boundary(kind, dims), bounds=box)
        values = math.stack(tensors, dual(vector=",".join(names(dims))))
        return StaggeredGrid(values, boundary(kind, dims), bounds=box, **RESOLUTION[dims])


def leaves_of(field: Field, placement: str, dims: int, batches: Sequence[str] = ()) -> list[torch.Tensor]:
    """Inverse of `field_of`, by PhiFlow's own means."""
    order = [*batches, *names(dims)]
    with math.precision(field.values.dtype.precision):  # native() casts to the global precision
        if placement == "staggered":
            components = [field.values[{"~vector": n}] for n in names(dims)]
            if dims == 1 and "vector" in components[0].shape:  # which advect.* adds in 1D, an upstream defect
                components = [components[0].vector[0]]
            return [c.native(order) for c in components]
        return [field.values.native([*order, "vector"] if placement == "vector" else order)]


def random_field(
    placement: str, kind: str, dims: int, seed: int = 0, dtype: torch.dtype = torch.float32, **batches: int
) -> Field:
    leaves = random_leaves(placement, kind, dims, tuple(batches.values()), dtype, seed)
    return field_of(leaves, placement, kind, dims, tuple(batches))


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
    lower, upper, _ = stored_faces(kind, dims, component)
    axis, cells = names(dims).index(component), RESOLUTION[dims]
    sizes = [n - 1 + lower + upper if d == component else n for d, n in cells.items()]
    result = torch.full((values.shape[0], *sizes), float("nan"), dtype=values.dtype)
    for index in product(*(range(n) for n in sizes)):
        cell = list(index)
        cell[axis] = min(cell[axis] + (not lower), cells[component] - 1)
        result[(slice(None), *index)] = values[(slice(None), *cell)]
    return result
