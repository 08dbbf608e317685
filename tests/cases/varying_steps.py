"""Steps whose linear systems depend on their arguments, and the same by dense linear algebra in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from phi.torch.flow import (
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Field,
    Solve,
    Sphere,
    Tensor,
    channel,
    diffuse,
    field,
    fluid,
    math,
    spatial,
)

from cases.solves import CELLS, SIZE, noise

TIGHT = Solve("CG", 1e-11, 1e-11, max_iterations=20_000)
BOX = Box(**{n: SIZE[n] for n in "xy"})


def viscous(u: Field, viscosity: Field | Tensor) -> Field:
    return diffuse.implicit(u, viscosity, 0.7, TIGHT)


def weighted_projection(v: Field, weight: Field, flow: Field) -> Field:
    """flow − w·∇p with ∇·(w·∇p) = ∇·flow, between walls."""

    def laplacian(p: Field) -> Field:
        return field.divergence(p.gradient(at="face", boundary=v.boundary) * weight)

    guess = CenteredGrid(0, ZERO_GRADIENT, v.bounds, v.resolution)
    solve = Solve("CG", 1e-11, 1e-11, x0=guess, rank_deficiency=1)
    p = field.solve_linear(math.jit_compile_linear(laplacian), field.divergence(flow), solve)
    return flow - p.gradient(at="face", boundary=v.boundary) * weight


def stratified(v: Field, density: Field) -> Field:
    """Projection of a fluid whose density varies: v − ∇p/ρ."""
    return weighted_projection(v, (1 / density).at(v), v)


def past_soft_body(v: Field, centre: Tensor, radius: Tensor) -> Field:
    """Projection with a smooth mask, so that the matrix depends smoothly on the body."""
    cells = CenteredGrid(0, ZERO_GRADIENT, v.bounds, v.resolution)
    distance = math.vec_length(cells.points - centre)
    outside = cells.with_values(1 / (1 + math.exp((radius - distance) / 0.2))).at(v)
    return weighted_projection(v, outside, v * outside)


def past_sphere(v: Field, centre: Tensor, radius: Tensor) -> Field:
    return fluid.make_incompressible(v, Sphere(centre, radius=radius), Solve("CG", 1e-9, 1e-9))[0]


def past_bar(v: Field, centre: Tensor, angle: Tensor) -> Field:
    bar = Box(x=0.9, y=0.4).at(centre).rotated(angle)
    return fluid.make_incompressible(v, bar, Solve("CG", 1e-9, 1e-9))[0]


# --- the same in NumPy ---


def cell_values(seed: int, *batches: int) -> torch.Tensor:
    return noise(*batches, CELLS["x"], CELLS["y"], seed=seed)


def viscosities(seed: int, *batches: int) -> torch.Tensor:
    """Between 0.2 and 0.3, no two alike: PhiFlow takes the smaller one of two neighbours."""
    count = CELLS["x"] * CELLS["y"]
    orders = [
        torch.randperm(count, generator=torch.Generator().manual_seed(seed + i)) for i in range(int(np.prod(batches)))
    ]
    return 0.2 + 0.1 * torch.stack(orders).double().reshape(*batches, CELLS["x"], CELLS["y"]) / count


def cell_field(values: torch.Tensor, *batches: str) -> Field:
    dims = [*(math.batch(b) for b in batches), spatial("x"), spatial("y")]
    return CenteredGrid(math.wrap(values, *dims), ZERO_GRADIENT, bounds=BOX)


def on_inner_faces(cells: np.ndarray) -> list[np.ndarray]:
    return [(np.take(cells, range(n - 1), d) + np.take(cells, range(1, n), d)) / 2 for d, n in enumerate(cells.shape)]


def distances(centre: Sequence[float]) -> np.ndarray:
    axes = [SIZE[n] * (np.arange(CELLS[n]) + 0.5) / CELLS[n] - c for n, c in zip("xy", centre)]
    return np.sqrt(axes[0][:, None] ** 2 + axes[1] ** 2)


def dense_gradient() -> np.ndarray:
    """From cells to inner faces, first those between neighbours along x."""
    places = np.arange(CELLS["x"] * CELLS["y"]).reshape(CELLS["x"], CELLS["y"])
    rows = []
    for axis, name in enumerate("xy"):
        n = CELLS[name]
        low, high = (np.take(places, range(*r), axis).ravel() for r in ((0, n - 1), (1, n)))
        rows.append((np.eye(places.size)[high] - np.eye(places.size)[low]) * n / SIZE[name])
    return np.concatenate(rows)


def dense_weighted_projection(weights: Sequence[np.ndarray], flow: Sequence[np.ndarray]) -> list[np.ndarray]:
    """flow − W·G·p with Gᵀ·W·G·p = Gᵀ·flow, for gradients G."""
    gradient, w, b = dense_gradient(), *(np.concatenate([a.ravel() for a in x]) for x in (weights, flow))
    p = np.linalg.pinv(gradient.T @ (w[:, None] * gradient), rcond=1e-12) @ (gradient.T @ b)
    parts = np.split(b - w * (gradient @ p), [flow[0].size])
    return [part.reshape(f.shape) for part, f in zip(parts, flow)]


def dense_stratified(v: Sequence[np.ndarray], density: np.ndarray) -> list[np.ndarray]:
    return dense_weighted_projection(on_inner_faces(1 / density), v)


def dense_past_soft_body(v: Sequence[np.ndarray], centre: np.ndarray, radius: float) -> list[np.ndarray]:
    outside = on_inner_faces(1 / (1 + np.exp((radius - distances(centre)) / 0.2)))
    return dense_weighted_projection(outside, [a * b for a, b in zip(v, outside)])


def vector(values: Sequence[float] | torch.Tensor) -> Tensor:
    return math.wrap(torch.as_tensor(values, dtype=torch.float64), channel(vector="x,y"))
