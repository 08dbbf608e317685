"""Rising smoke against balances and a mode whose motion is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from phi.torch.flow import Box, Field, Obstacle, Sphere, batch, channel, math, spatial, vec, wrap

import phi_hybrid as ph
from phi_hybrid.bridge import flatten
from phi_hybrid.pde import smoke

torch.set_num_threads(1)


def test_a_lying_layer_rests_and_grows() -> None:
    """Smoke that is the same at equal heights is carried by pressure; what flows in stays."""
    with math.precision(64):
        state = smoke.still_air(6, 8)
        heights = wrap(torch.linspace(1, 0, 8, dtype=torch.float64), spatial("y"))
        inflow = state["smoke"].with_values(math.expand(heights, spatial(x=6)))
        after = ph.rollout(ph.capture(smoke.smoke_step(0.5, buoyancy=2.0)), state, 4, inflow)
    for component in flatten(after["velocity"].time[4])[0]:
        assert component.abs().max() < 1e-12
    assert torch.allclose(flatten(after["smoke"].time[4])[0][0], 4 * 0.5 * flatten(inflow)[0][0], rtol=1e-12)


@pytest.mark.parametrize(("cells", "tolerance"), [(16, 0.02), (32, 0.005)])
def test_first_motion_of_a_mode(cells: int, tolerance: float) -> None:
    """Pressure takes half of the lift of s = cos(πx/L) sin(πy/L), whose curl is β ∂s/∂x: v_y = ½ β t s, to second order."""
    dt, beta = 0.01, 3.0
    with math.precision(64):
        state = smoke.still_air(cells, cells)
        x = (np.arange(cells) + 0.5) * np.pi / cells
        inflow = state["smoke"].with_values(wrap(torch.from_numpy(np.outer(np.cos(x), np.sin(x)) / dt), spatial("x,y")))
        after = ph.capture(smoke.smoke_step(dt, beta))(state, inflow)["velocity"]
        found = after.values[{"~vector": "y"}].native("x,y").numpy()
    face = np.arange(1, cells) * np.pi / cells
    expected = 0.5 * beta * dt * np.outer(np.cos(x), np.sin(face))
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


PLACES = [(5.0, 4.0), (5.3, 4.0), (6.13, 4.57)]


def inflow(*places: tuple[float, float]) -> torch.Tensor:
    """q of circles of radius 3 and rate 0.25, `(place, x, y)`."""
    where = wrap(places, batch("place"), channel(vector="x,y"))
    return flatten(smoke.inflow_at(where, 3.0, 0.25, smoke.still_air(12, 10)["smoke"]))[0][0]


@pytest.mark.parametrize(("bits", "dtype"), [(32, torch.float32), (64, torch.float64)])
def test_inflow_is_the_share_of_cells_inside(bits: int, dtype: torch.dtype) -> None:
    """Against shares by 50×50 points per cell; PhiFlow's are linear in the distance from the edge."""
    with math.precision(bits):
        found = inflow(*PLACES)
    x, y = np.meshgrid((np.arange(600) + 0.5) / 50, (np.arange(500) + 0.5) / 50, indexing="ij")
    for values, (a, b) in zip(found, PLACES):
        inside = (x - a) ** 2 + (y - b) ** 2 <= 9
        expected = 0.25 * inside.reshape(12, 50, 10, 50).mean((1, 3))
        assert np.abs(values.numpy() - expected).max() < 0.15 * 0.25
        assert values.sum() == pytest.approx(0.25 * 9 * np.pi, rel=0.03)
    assert found.dtype == dtype


def test_inflow_changes_smoothly_with_the_place() -> None:
    """A circle that moves by a hundredth of a cell changes no cell by much more than a hundredth of the rate."""
    found = inflow(*((5 + 0.01 * n, 4.0) for n in range(101)))
    assert 0 < found.diff(dim=0).abs().max() < 1.5 * 0.01 * 0.25


def speed(velocity: Field) -> np.ndarray:
    """On the faces across x, `(x, y)`."""
    return velocity.values[{"~vector": "x"}].native("x,y").numpy()


def test_air_rests_in_obstacles_and_goes_around_them() -> None:
    centre, radius = (4.0, 6.0), 2.0
    ball = Obstacle(Sphere(vec(x=centre[0], y=centre[1]), radius=radius))
    with math.precision(64):
        state = smoke.still_air(16, 20, 0.5)
        inflow = smoke.inflow_at(math.vec(x=3.5, y=2.0), 1.0, 0.2, state["smoke"])
        after = ph.repeat(ph.capture(smoke.smoke_step(0.5, obstacles=[ball])), state, 12, inflow)["velocity"]
        free = ph.repeat(ph.capture(smoke.smoke_step(0.5)), state, 12, inflow)["velocity"]
        left = ph.quantities.divergence(after, ball.geometry).values.numpy("x,y")
    left = left[left != 0]  # not of cells that touch the ball: what leaks through their faces is spread over all others
    assert left.size == 240 and np.ptp(left) < 1e-10 and 0.5 * abs(left.mean()) < 1e-3 * np.abs(speed(after)).max()
    x, y = np.meshgrid(np.arange(1, 16) * 0.5, (np.arange(20) + 0.5) * 0.5, indexing="ij")  # inner faces across x
    inside = np.hypot(x - centre[0], y - centre[1]) < radius - 0.5
    found, through = speed(after), speed(free)
    assert np.abs(found[inside]).max() < 1e-12 < 1e-3 < np.abs(through[inside]).max()


def test_cells_have_the_edge_that_is_asked_for() -> None:
    state = smoke.still_air(4, 6, 0.5)
    assert state["smoke"].bounds == state["velocity"].bounds == Box(x=2.0, y=3.0)
    assert state["smoke"].resolution.sizes == (4, 6)


def test_circles_that_the_grid_does_not_resolve() -> None:
    """The smoke of all cells together would be none, or three times too much."""
    with pytest.raises(ph.StateError, match="radius = 0.3: expected at least 1, the edge of a cell"):
        smoke.inflow_at(vec(x=8.0, y=8.0), 0.3, 1.0, smoke.still_air(16, 16)["smoke"])
    total = float(smoke.inflow_at(vec(x=8.3, y=8.1), 3.0, 1.0, smoke.still_air(16, 16)["smoke"]).values.sum)
    assert total == pytest.approx(np.pi * 9, rel=0.03)
