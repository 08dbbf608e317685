"""Coarsening against explicit loops, and its promise that divergence is averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases.small import BOUNDARIES, component_values, faces, line, noise, same, stored_faces
from phi.torch.flow import PERIODIC, Box, CenteredGrid, Field, StaggeredGrid, batch, channel, field, math, spatial

import phi_hybrid as ph
from phi_hybrid.data import coarsen

FINE = {"x": 6, "y": 8, "z": 4}


def fine_faces(kind: str, dims: int, **batches: int) -> Field:
    return faces(kind, dtype=torch.float64, names="xyz"[:dims], cells=FINE, **batches)


def kinds(dims: int) -> list[str]:
    return list(BOUNDARIES) if dims == 2 else ["periodic", "closed", "open"]


FACES = [(kind, dims) for dims in (2, 3) for kind in kinds(dims)]


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_centred_values_are_block_means(factor: int) -> None:
    values = noise(3, 8, 4, 2, dtype=torch.float64)
    with math.precision(64):
        u = CenteredGrid(math.wrap(values, batch("b"), spatial("x,y"), channel(vector="x,y")), PERIODIC, Box(x=2, y=3))
        coarse = coarsen(u, factor)
        found = coarse.values.numpy("b,x,y,vector")
    assert coarse.bounds == u.bounds and coarse.boundary == u.boundary
    assert found.shape == (3, 8 // factor, 4 // factor, 2)
    for b, i, j, c in np.ndindex(*found.shape):
        block = [values[b, i * factor + p, j * factor + q, c].item() for p in range(factor) for q in range(factor)]
        assert found[b, i, j, c] == pytest.approx(sum(block) / factor**2, abs=1e-14)


@pytest.mark.parametrize("kind", BOUNDARIES)
def test_faces_carry_the_mean_flux(kind: str) -> None:
    """A coarse face shows the mean of the two fine faces that make it up; those between coarse faces are left out."""
    u = fine_faces(kind, 2, b=2)
    (fine_x, fine_y), (x, y) = component_values(u, "b"), component_values(coarsen(u, 2), "b")
    first_x, first_y = (1 - stored_faces(kind, n)[0] for n in "xy")  # face number of the first entry
    assert x.shape[1:] == (3 - 1 + sum(stored_faces(kind, "x")), 4)
    assert y.shape[1:] == (3, 4 - 1 + sum(stored_faces(kind, "y")))
    for i in range(x.shape[1]):
        face = 2 * (i + first_x) - first_x
        for j in range(4):
            torch.testing.assert_close(x[:, i, j], (fine_x[:, face, 2 * j] + fine_x[:, face, 2 * j + 1]) / 2)
    for j in range(y.shape[2]):
        face = 2 * (j + first_y) - first_y
        for i in range(3):
            torch.testing.assert_close(y[:, i, j], (fine_y[:, 2 * i, face] + fine_y[:, 2 * i + 1, face]) / 2)


def divergence_values(u: Field) -> torch.Tensor:
    with math.precision(64):
        return field.divergence(u).values.native(list(u.resolution.names))


@pytest.mark.parametrize(("kind", "dims"), FACES)
def test_divergence_is_averaged(kind: str, dims: int) -> None:
    u = fine_faces(kind, dims)
    coarse = coarsen(u, 2)
    assert coarse.boundary == u.boundary and coarse.bounds == u.bounds
    assert coarse.is_staggered and [coarse.resolution.get_size(n) for n in "xyz"[:dims]] == [
        FINE[n] // 2 for n in "xyz"[:dims]
    ]
    expected = divergence_values(u)
    for d in range(dims):
        expected = expected.unflatten(d, (-1, 2)).mean(d + 1)
    torch.testing.assert_close(divergence_values(coarse), expected, rtol=0, atol=1e-13)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("kind", ["periodic", "closed"])
def test_divergence_free_stays_so(kind: str) -> None:
    """Velocity of a stream function given at the corners of cells."""
    n, m = 8, 4
    psi = torch.zeros(n + 1, m + 1, dtype=torch.float64)
    if kind == "periodic":
        psi[:n, :m] = noise(n, m, dtype=torch.float64)
        psi[n], psi[:, m] = psi[0], psi[:, 0]
        keep_x, keep_y = slice(0, n), slice(0, m)
    else:
        psi[1:n, 1:m] = noise(n - 1, m - 1, dtype=torch.float64)
        keep_x, keep_y = slice(1, n), slice(1, m)
    dx, dy = 2.0 / n, 1.0 / m
    x, y = (psi[:, 1:] - psi[:, :-1]) / dy, -(psi[1:] - psi[:-1]) / dx
    with math.precision(64):
        components = {"x": math.wrap(x[keep_x], spatial("x,y")), "y": math.wrap(y[:, keep_y], spatial("x,y"))}
        u = StaggeredGrid(math.stack(components, math.dual("vector")), BOUNDARIES[kind], bounds=Box(x=2, y=1), x=n, y=m)
    assert divergence_values(u).abs().max() < 1e-12
    coarse = coarsen(u, 2)
    assert divergence_values(coarse).abs().max() < 1e-12
    assert max(float(c.abs().max()) for c in component_values(coarse)) > 0.1


@pytest.mark.parametrize("kind", BOUNDARIES)
def test_uniform_flow_stays_uniform(kind: str) -> None:
    u = StaggeredGrid(math.vec(x=0.25, y=1.0), BOUNDARIES[kind], x=8, y=4)
    assert same(coarsen(u, 4), StaggeredGrid(math.vec(x=0.25, y=1.0), BOUNDARIES[kind], x=2, y=1, bounds=u.bounds))


def test_twice_by_two_is_once_by_four() -> None:
    with math.precision(64):
        u = faces("open", dtype=torch.float64, cells={"x": 8, "y": 4})
        twice, once = coarsen(coarsen(u, 2), 2), coarsen(u, 4)
    for a, b in zip(component_values(twice), component_values(once)):
        torch.testing.assert_close(a, b)


def test_trees_tensors_and_parameters() -> None:
    """Everything with spatial dims is averaged, the rest stays as it is."""
    mask = math.wrap(noise(8, 4), spatial("x,y"))
    state = {"u": line(0, b=2), "mask": mask, "re": math.wrap(100.0), "list": [1.5, None]}
    coarse = coarsen(state, 4)
    torch.testing.assert_close(
        coarse["mask"].native("x,y"), noise(8, 4).reshape(2, 4, 1, 4).mean((1, 3)), rtol=0, atol=1e-6
    )
    expected = component_values(line(0, b=2), "b")[0].reshape(2, 2, 4, 1).mean(2)
    torch.testing.assert_close(component_values(coarse["u"], "b")[0], expected, rtol=0, atol=1e-6)
    assert float(coarse["re"]) == 100.0 and coarse["list"] == [1.5, None]


@pytest.mark.parametrize("factor", [3, 16])
def test_factor_that_does_not_divide(factor: int) -> None:
    for u in (line(0), faces("closed", cells={"x": 8, "y": 6}), faces("open", cells={"x": 6, "y": 8})):
        with pytest.raises(ph.StateError, match=f"cannot be coarsened by {factor}; use a divisor of"):
            coarsen(u, factor)
