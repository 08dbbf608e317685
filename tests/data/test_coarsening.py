"""Coarsening against explicit loops, and its promise that divergence is averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases.bodies import BODIES, FIELDS
from cases.small import same
from cases.states import BOUNDARIES, component_values, faces, line, names, noise, stored_faces
from phi.torch.flow import PERIODIC, Box, CenteredGrid, Field, batch, channel, field, math, spatial

import phi_hybrid as ph
from phi_hybrid.data import coarsen

FINE = {"x": 6, "y": 8, "z": 4}


def fine_faces(kind: str, dims: int, **batches: int) -> Field:
    return faces(kind, dtype=torch.float64, cells={n: FINE[n] for n in names(dims)}, **batches)


FACES = [(kind, dims) for dims in (2, 3) for kind in BOUNDARIES]


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
    first_x, first_y = (1 - stored_faces(kind, 2, n)[0] for n in "xy")  # face number of the first entry
    assert x.shape[1:] == (3 - 1 + sum(stored_faces(kind, 2, "x")[:2]), 4)
    assert y.shape[1:] == (3, 4 - 1 + sum(stored_faces(kind, 2, "y")[:2]))
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
    assert coarse.is_staggered and list(coarse.resolution.sizes) == [FINE[n] // 2 for n in names(dims)]
    expected = divergence_values(u)
    for d in range(dims):
        expected = expected.unflatten(d, (-1, 2)).mean(d + 1)
    torch.testing.assert_close(divergence_values(coarse), expected, rtol=0, atol=1e-13)
    assert expected.abs().max() > 0.1


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


@pytest.mark.parametrize("factor", [3, 16, 0])
def test_factor_that_does_not_divide(factor: int) -> None:
    for u in (line(0), faces("closed", cells={"x": 8, "y": 6}), faces("open", cells={"x": 6, "y": 8})):
        with pytest.raises(ph.StateError, match=f"{factor}"):
            coarsen(u, factor)


def test_integers_have_no_cell_means() -> None:
    with pytest.raises(ph.StateError, match="int64"):
        coarsen(math.wrap(torch.arange(8), spatial("x")), 2)


def test_bodies_stay_and_fields_beside_tensors_are_refused() -> None:
    u, body = line(0), BODIES["moving obstacle"]()
    coarse = coarsen({"u": u, "body": body}, 2)
    assert same(coarse["body"], body) and same(coarse["u"], coarsen(u, 2))
    with pytest.raises(ph.StateError, match="no cell means.*constant boundaries"):
        coarsen(FIELDS["number at all sides"](), 2)
