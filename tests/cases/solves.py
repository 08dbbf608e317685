"""Grids, obstacles and matrices whose systems are solved here by dense float64 linear algebra."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from phi.geom import UniformGrid
from phi.physics.fluid import (
    _accessible_extrapolation,
    _pressure_extrapolation,
    apply_boundary_conditions,
    masked_laplace,
)
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Field,
    Obstacle,
    Sphere,
    StaggeredGrid,
    batch,
    channel,
    diffuse,
    dual,
    extrapolation,
    field,
    math,
    spatial,
    union,
    vec,
)

from phi_hybrid.linear_solve import (
    CapacitanceMatrix,
    ConjugateGradient,
    FastDiagonalization,
    Method,
    SparseFactorization,
)
from phi_hybrid.linear_solve.solves import Solves
from phi_hybrid.linear_solve.system import Csr, System

torch.set_num_threads(1)  # the grids are tiny

CPU = torch.device("cpu")
METHODS: dict[str, Method] = {
    "fast": FastDiagonalization(),
    "capacitance": CapacitanceMatrix(),
    "factored": SparseFactorization(),
    "iterative": ConjugateGradient(),
}

# --- matrices by hand ---

AXES = ("periodic", "walls", "values", "outlet")
"""Kinds of an axis: periodic, vanishing derivative on both sides, vanishing value on both, derivative below and value above."""


def axis_matrix(kind: str, size: int, spacing: float = 1.0) -> np.ndarray:
    """Second differences on cells."""
    matrix = np.diag(-2.0 * np.ones(size)) + np.diag(np.ones(size - 1), 1) + np.diag(np.ones(size - 1), -1)
    if kind == "periodic":
        matrix[0, -1] += 1
        matrix[-1, 0] += 1
    matrix[0, 0] += kind in ("walls", "outlet")
    matrix[-1, -1] += kind == "walls"
    return matrix / spacing**2


def sum_over_axes(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Σ_d I ⊗ … ⊗ T_d ⊗ … ⊗ I, the last axis fastest."""
    total = np.zeros((1, 1))
    for matrix in matrices:
        total = np.kron(total, np.eye(len(matrix))) + np.kron(np.eye(len(total)), matrix)
    return total


def box_matrix(kinds: Sequence[str], shape: Sequence[int]) -> np.ndarray:
    """Laplacian of a box with a different spacing along each axis."""
    return sum_over_axes([axis_matrix(k, n, 0.5 + 0.25 * d) for d, (k, n) in enumerate(zip(kinds, shape))])


def with_obstacle(matrix: np.ndarray, cells: Sequence[int], cuts: bool = True) -> np.ndarray:
    """Cells get the equation p = b of their own; as an obstacle (`cuts`) they are walls to the others, else values."""
    matrix = matrix.copy()
    for cell in cells:
        for other in np.flatnonzero(matrix[:, cell]) if cuts else ():
            if other not in cells:
                matrix[other, other] += matrix[other, cell]
                matrix[other, cell] = 0
        matrix[cell] = 0
        matrix[cell, cell] = 1
    return matrix


OBSTRUCTED, BLOCK = (8, 7), [17, 18, 24, 25]
"""Shape of a box, and two by two of its cells."""


def obstructed(*kinds: str, cells: Sequence[int] = BLOCK, cuts: bool = True) -> np.ndarray:
    """Laplacian of that box with an obstacle."""
    return with_obstacle(box_matrix(kinds, OBSTRUCTED), cells, cuts)


def _without_equation() -> np.ndarray:
    matrix = obstructed("walls", "walls")
    matrix[BLOCK[0], BLOCK[0]] = 0
    return matrix


UNFIT = {
    "unsymmetric": np.diag(np.linspace(1, 2, 56)) @ box_matrix(("values", "walls"), OBSTRUCTED),
    "indefinite": 2.0 * np.eye(56) + box_matrix(("values", "values"), OBSTRUCTED),
    "empty row": _without_equation(),
}
"""Matrices of that box that are no definite operators."""


def system(matrix: np.ndarray, shape: Sequence[int] | None = None, tolerates_imbalance: bool = False) -> System:
    return System(Csr(scipy.sparse.csr_matrix(matrix)), tuple(shape or matrix.shape[:1]), tolerates_imbalance)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Random numbers that float32 can represent."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative_error(found: Any, expected: Any) -> float:
    """Largest difference over the largest expected magnitude."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# --- grids ---

BOUNDARIES = ("periodic", "closed", "open", "inflow", "mixed")
CELLS = {"x": 10, "y": 8, "z": 5}
SMALL = {"x": 6, "y": 5, "z": 4}
SIZE = {"x": 2.0, "y": 1.5, "z": 1.2}
BITS = {torch.float32: 32, torch.float64: 64}


def boundary(kind: str, names: str = "xy") -> Any:
    last = names[-1]
    flow = vec(**{n: float(n == last) for n in names})
    return {
        "periodic": PERIODIC,
        "closed": 0,
        "open": ZERO_GRADIENT,
        "inflow": {**{n: ZERO_GRADIENT for n in names[:-1]}, last + "-": flow, last + "+": ZERO_GRADIENT},
        "mixed": {"x": PERIODIC, **{n: 0 for n in names[1:]}},
    }[kind]


def velocity(
    kind: str,
    names: str = "xy",
    cells: dict[str, int] = SMALL,
    dtype: torch.dtype = torch.float64,
    staggered: bool = True,
    seed: int = 0,
    **batches: int,
) -> Field:
    """Random velocity, equal in both precisions, with a batch dim `b` of size 2 unless others are given."""
    batches = batches or {"b": 2}
    dims, cells = [batch(n) for n in batches], {n: cells[n] for n in names}
    if staggered:
        shapes = [[n + added_faces(kind, d, names) * (d == c) for d, n in cells.items()] for c in names]
        sizes = batches.values()
        values = [noise(*sizes, *shape, seed=seed + 1000 * i, dtype=dtype) for i, shape in enumerate(shapes)]
        return on_faces(values, kind, names, cells, batches)
    with math.precision(BITS[dtype]):
        values = noise(*batches.values(), *cells.values(), len(names), seed=seed, dtype=dtype)
        values = math.wrap(values, *dims, *[spatial(n) for n in names], channel(vector=",".join(names)))
        return CenteredGrid(values, boundary(kind, names), bounds=Box(**{n: SIZE[n] for n in names}))


def on_faces(
    values: Sequence[torch.Tensor],
    kind: str,
    names: str = "xy",
    cells: dict[str, int] = SMALL,
    batches: Iterable[str] = ("b",),
) -> Field:
    """Velocity with these components, `(*batches, x, y[, z])`."""
    dims = [*(batch(n) for n in batches), *(spatial(n) for n in names)]
    with math.precision(BITS[values[0].dtype]):
        stacked = math.stack({n: math.wrap(v, *dims) for n, v in zip(names, values)}, dual("vector"))
        cells = {n: cells[n] for n in names}
        return StaggeredGrid(stacked, boundary(kind, names), bounds=Box(**{n: SIZE[n] for n in names}), **cells)


def added_faces(kind: str, name: str, names: str) -> int:
    """How many more faces than cells a component has along its own axis."""
    if kind == "mixed":
        return 0 if name == "x" else -1
    if kind == "inflow":
        return 0 if name == names[-1] else 1
    return {"periodic": 0, "closed": -1, "open": 1}[kind]


def scalar(kind: str, names: str = "xy", dtype: torch.dtype = torch.float64, seed: int = 0, **batches: int) -> Field:
    """Random centred field; at an inflow its value is 1."""
    batches = batches or {"b": 2}
    outside = {**boundary(kind, names), names[-1] + "-": 1.0} if kind == "inflow" else boundary(kind, names)
    with math.precision(BITS[dtype]):
        values = noise(*batches.values(), *(SMALL[n] for n in names), seed=seed, dtype=dtype)
        values = math.wrap(values, *[batch(n) for n in batches], *[spatial(n) for n in names])
        return CenteredGrid(values, outside, bounds=Box(**{n: SIZE[n] for n in names}))


def obstacles(kind: str, names: str = "xy") -> list[Obstacle]:
    """None, one, two, or a moving one; they touch no side of the box."""
    with math.precision(64):
        middle = {n: 0.45 * SIZE[n] for n in names}
        ball = Sphere(**middle, radius=0.35)
        if kind == "none":
            return []
        if kind == "one":
            return [Obstacle(ball)]
        if kind == "moving":
            return [Obstacle(ball, velocity=vec(**{n: 0.5 - 0.75 * d for d, n in enumerate(names)}))]
        corner = Box(**{n: (0.2 * SIZE[n], 0.4 * SIZE[n]) for n in names})
        return [Obstacle(corner), Obstacle(Sphere(**{n: 0.7 * SIZE[n] for n in names}, radius=0.3))]


def part_of(v: Field) -> Field:
    """1 in an L-shaped part of the box, 0 in its corner."""
    with math.precision(64):
        inside = lambda x: math.to_float((x.vector["x"] < 1.4) | (x.vector["y"] < 0.6))  # noqa: E731
        return CenteredGrid(inside, extrapolation.NONE, v.bounds, v.resolution)


def components(u: Field, batches: Sequence[str] = ("b",)) -> list[torch.Tensor]:
    """Values of each component, `(*batches, x, y[, z])`; of a scalar, its values."""
    names = u.resolution.names
    with math.precision(u.values.dtype.precision):
        if u.is_staggered:
            return [u.values[{"~vector": n}].native([*batches, *names]) for n in names]
        if "vector" in u.values.shape:
            return [u.values.vector[n].native([*batches, *names]) for n in names]
        return [u.values.native([*batches, *names])]


def stacked(values: Sequence[Any]) -> np.ndarray:
    """All components in one vector."""
    return np.concatenate([np.asarray(v.detach() if isinstance(v, torch.Tensor) else v).ravel() for v in values])


# --- what PhiFlow's equations say, column by column ---


@dataclass(frozen=True)
class Projection:
    velocity: list[torch.Tensor]
    pressure: np.ndarray
    """`(batch, cells)`, the solution of least norm."""
    matrix: np.ndarray
    rhs: np.ndarray
    """`(batch, cells)`."""
    fluid: np.ndarray
    """Mask of the cells with a pressure, `(x, y[, z])`."""
    leftover: np.ndarray
    """`(batch, 1)`, the mean divergence that PhiFlow leaves in boxes without an opening: what obstacles give off."""


def project(v: Field, obstacles: Sequence[Obstacle] = (), active: Field | None = None) -> Projection:
    """`fluid.make_incompressible` with a dense matrix made from unit vectors and a dense solve."""
    with math.precision(64):
        w, faces, everywhere = v, None, active is None
        if obstacles:
            free = fluid_cells(v, obstacles)
            faces = field.stagger(free, math.minimum, v.boundary, at=v.sampled_at, dims=v.vector.item_names)
            free = free.with_boundary(extrapolation.NONE)
            active = free if active is None else active * free
            w = apply_boundary_conditions(v, obstacles)
        divergence = field.divergence(w) if active is None else field.divergence(w) * active
        leftover = 0 * field.mean(divergence)
        if everywhere and not v.boundary.is_flexible:
            leftover = field.mean(divergence) / (1 if active is None else field.mean(active))
            divergence = divergence - (leftover if active is None else active * leftover)
        outside = _pressure_extrapolation(v.boundary)

        def pressure_of(columns: torch.Tensor) -> Field:
            values = math.reshaped_tensor(columns, [batch("column"), v.resolution])
            return CenteredGrid(values, outside, bounds=v.bounds)

        def laplacian(p: Field) -> Field:
            return masked_laplace.f(p, v.boundary, faces, active, wide_stencil=not v.is_staggered)

        matrix, offset = _columns(lambda x: laplacian(pressure_of(x)).values, v.resolution)
        rhs = divergence.values.numpy([v.shape.batch, v.resolution]) - offset
        pressure = _least_norm(matrix, rhs)
        p = pressure_of(torch.as_tensor(pressure.copy()))
        gradient = field.spatial_gradient(p, v.boundary, at=v.sampled_at, scheme="green-gauss")
        gradient = gradient if faces is None else gradient * faces
        before = [c.flatten(0, v.shape.batch.rank - 1) for c in components(w, v.shape.batch.names)]
        result = [a - b for a, b in zip(before, components(gradient, ["column"]))]
        fluid = np.ones(v.resolution.sizes) if active is None else active.values.numpy(v.resolution.names)
        return Projection(result, pressure, matrix, rhs, fluid > 0, leftover.numpy([v.shape.batch])[:, None])


def fluid_cells(v: Field, obstacles: Sequence[Obstacle]) -> Field:
    """1 outside of obstacles, 0 inside."""
    with math.precision(64):
        free = ~union([o.geometry for o in obstacles]) if obstacles else 1.0
        return CenteredGrid(free, _accessible_extrapolation(v.boundary), v.bounds, v.resolution) * 1.0


def divergence(values: Sequence[torch.Tensor], kind: str, mask: np.ndarray) -> np.ndarray:
    """Flow out of each cell of `mask` `(x, y)` per volume, from faces `(batch, x, y)`; `(batch, cells)`."""
    total = 0.0
    for axis, (name, faces) in enumerate(zip("xy", values)):
        faces = np.moveaxis(faces.double().numpy(), 1 + axis, 0)
        if kind == "periodic" or (kind, name) == ("mixed", "x"):
            faces = np.concatenate([faces, faces[:1]])
        elif kind in ("closed", "mixed"):
            faces = np.pad(faces, ((1, 1), (0, 0), (0, 0)))
        elif (kind, name) == ("inflow", "y"):
            faces = np.pad(faces, ((1, 0), (0, 0), (0, 0)), constant_values=1.0)
        total = total + np.moveaxis(np.diff(faces, axis=0), 0, 1 + axis) * mask.shape[axis] / SIZE[name]
    return total[:, mask]


def _least_norm(matrix: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """Where only constants are lost, the constant part of the right-hand side that has no solution is left out."""
    size = len(matrix)
    if np.abs(matrix.sum(1)).max() < 1e-12 * np.abs(matrix).max() and np.linalg.matrix_rank(matrix) == size - 1:
        matrix = np.block([[matrix, np.ones((size, 1))], [np.ones((1, size)), 0]])
        return np.linalg.solve(matrix, np.pad(rhs, ((0, 0), (0, 1))).T).T[:, :-1]
    return np.linalg.lstsq(matrix, rhs.T, rcond=1e-12)[0].T


def diffuse_implicitly(u: Field, viscosity: Any, dt: float) -> list[np.ndarray]:
    """`diffuse.implicit` with a dense matrix made from unit vectors, each component by itself."""
    results = []
    with math.precision(64):
        for component in _scalars(u):

            def backwards(columns: torch.Tensor, component: Field = component) -> math.Tensor:
                values = math.reshaped_tensor(columns, [batch("column"), component.resolution])
                return diffuse.explicit(component.with_values(values), viscosity, -dt).values

            matrix, offset = _columns(backwards, component.resolution)
            rhs = component.values.numpy([u.shape.batch, component.resolution]) - offset
            shape = (*u.shape.batch.sizes, *component.resolution.sizes)
            results.append(np.linalg.solve(matrix, rhs.T).T.reshape(shape))
    return results


def system_in(step: Any, method: Method | None = None) -> System:
    """The only linear system that a piece of PhiFlow code solves."""
    solves = Solves(method)
    with solves.active():
        step()
    (module,) = solves._known.values()
    return module.system


def _columns(f: Any, resolution: Any) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset of an affine function of `(column, cells)`."""
    size = resolution.volume
    inputs = torch.cat([torch.zeros(1, size), torch.eye(size)]).double()
    outputs = f(inputs).numpy([batch("column"), resolution])
    return (outputs[1:] - outputs[0]).T, outputs[0]


def _scalars(u: Field) -> list[Field]:
    """The components of a field as centred fields on the points where they are sampled."""
    if u.is_staggered:
        cells = UniformGrid(u.resolution, u.bounds)
        return [
            Field(
                cells.stagger(n, *u.boundary.valid_outer_faces(n)),
                u.values[{"~vector": n}],
                u.boundary[{"vector": n}],
            )
            for n in u.vector.item_names
        ]
    return [u.vector[n] for n in u.vector.item_names] if "vector" in u.values.shape else [u]
