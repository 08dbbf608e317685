import numpy as np
import pytest
import torch
from cases.plots import frames_of, plane, vector_of
from phi.torch.flow import PERIODIC, Box, CenteredGrid, StaggeredGrid, batch, math, spatial, tensor
from phiml.math import extrapolation

import phi_hybrid as ph
from phi_hybrid.plot._data import centred, is_periodic, measure

SLIP = extrapolation.combine_by_direction(normal=0, tangential=extrapolation.ZERO_GRADIENT)


def rotation(p):
    return vector_of(x=-2 * p.vector["y"], y=3 * p.vector["x"])


def wave(p):
    return vector_of(x=math.sin(p.vector["y"]), y=math.cos(2 * p.vector["x"]))


def test_values_keep_axes_and_bounds():
    shown = measure(plane(), None)
    x, y = np.arange(4) + 0.5, np.arange(3) + 0.5
    np.testing.assert_allclose(shown.values[2], x[:, None] + 10 * y + 200)
    assert shown.axes == ("x", "y") and shown.bounds == ((0, 4), (0, 3))
    np.testing.assert_allclose(shown.centres(1), y)


@pytest.mark.parametrize(
    "boundary",
    [PERIODIC, extrapolation.ZERO_GRADIENT, extrapolation.combine_sides(x=PERIODIC, y=extrapolation.ZERO_GRADIENT)],
)
def test_centring_agrees_with_phiflow(boundary):
    field = StaggeredGrid(rotation, boundary, Box(x=2, y=1), x=5, y=4)
    ours, theirs = (f.values.numpy("x,y,vector") for f in (centred(field), field.at_centers()))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_centring_of_slip_walls():
    field = frames_of(
        StaggeredGrid(
            lambda p: vector_of(x=p.vector["x"] * (2 - p.vector["x"]), y=0 * p.vector["y"]),
            SLIP,
            Box(x=2, y=1),
            x=4,
            y=3,
        ),
        2,
    )
    shown = measure(field, "x")
    # the faces at x = 0 and 2 are walls with u = 0, the others hold 0.75, 1, 0.75
    np.testing.assert_allclose(shown.values[1], np.array([0.375, 0.875, 0.875, 0.375])[:, None].repeat(3, 1), atol=1e-6)


def test_vorticity_of_a_rotation_is_exact_on_open_grids():
    field = frames_of(StaggeredGrid(rotation, extrapolation.ZERO_GRADIENT, Box(x=2, y=1), x=6, y=5), 2)
    shown = measure(field, None)
    assert shown.signed and "vorticity" in shown.label
    np.testing.assert_allclose(shown.values, 5.0, atol=1e-5)


def test_vorticity_on_a_periodic_grid_has_the_modified_wavenumbers():
    n, box = 16, Box(x=2 * np.pi, y=2 * np.pi)
    shown = measure(frames_of(CenteredGrid(wave, PERIODIC, box, x=n, y=n), 1), "vorticity")
    h = 2 * np.pi / n
    x = y = (np.arange(n) + 0.5) * h
    expected = -np.sin(2 * h) / h * np.sin(2 * x)[:, None] - np.sin(h) / h * np.cos(y)
    np.testing.assert_allclose(shown.values[0], expected, atol=1e-5)


def test_components_magnitude_and_functions():
    field = frames_of(CenteredGrid(rotation, 0, Box(x=2, y=1), x=4, y=4), 1)
    u, v, size = (measure(field, name).values for name in ("x", "y", "magnitude"))
    np.testing.assert_allclose(size, np.hypot(u, v), rtol=1e-6)
    np.testing.assert_allclose(measure(field, lambda f: f.vector["y"] * 2).values, 2 * v, rtol=1e-6)

    def kinetic_energy(f):
        return f.vector["x"] ** 2 / 2

    assert measure(field, kinetic_energy).label == "kinetic energy"


def test_volumes_show_their_middle_plane():
    values = tensor(np.arange(2 * 4 * 4 * 5, dtype=float).reshape(2, 4, 4, 5), batch("time"), spatial("x,y,z"))
    shown = measure(CenteredGrid(values, 0, x=4, y=4, z=5), None)
    np.testing.assert_allclose(shown.values, values.numpy("time,x,y,z")[..., 2])


def test_values_that_require_grad():
    values = torch.ones(2, 4, requires_grad=True)
    shown = measure(CenteredGrid(tensor(values, batch("time"), spatial("x")), 0, x=4) * 3, None)
    np.testing.assert_allclose(shown.values, 3)


def test_an_open_left_and_closed_right_side_is_not_periodic():
    # such a staggered grid stores as many faces as a periodic one
    mixed = extrapolation.combine_sides(x=(extrapolation.ZERO_GRADIENT, 0), y=PERIODIC)
    field = StaggeredGrid(1, mixed, x=4, y=4)
    assert not is_periodic(field, "x") and is_periodic(field, "y")


@pytest.mark.parametrize("quantity", ["z", "vorticity", "", "speed"])
def test_unknown_quantities_are_named(quantity):
    with pytest.raises(ph.StateError, match=f"unknown quantity '{quantity}'.*magnitude"):
        measure(plane(), quantity)


def test_functions_must_return_scalars():
    field = frames_of(CenteredGrid(rotation, 0, x=4, y=4), 1)
    with pytest.raises(ph.StateError, match="must return a scalar"):
        measure(field, lambda f: f * 2)
