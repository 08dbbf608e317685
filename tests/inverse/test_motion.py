"""Estimates of motion from blobs that were moved and turned analytically, and by plain PhiFlow advection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases.derivatives import check_derivatives, check_vmap
from cases.small import component_values
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Field,
    StaggeredGrid,
    Tensor,
    advect,
    batch,
    math,
    spatial,
    stack,
    wrap,
)

import phi_hybrid as ph
from phi_hybrid.inverse.motion import estimate_flow, estimate_motion, solenoidal_waves
from phi_hybrid.pde import heat

LENGTHS, LOWER = np.array([8.0, 6.0]), np.array([1.0, -3.0])
BOX = Box(x=(1.0, 9.0), y=(-3.0, 3.0))


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with math.precision(64):
        yield


def grid(x: int = 64, y: int = 48) -> Field:
    return CenteredGrid(0.0, PERIODIC, x=x, y=y, bounds=BOX)


def blob(centre: Any, angle: float, widths: tuple[float, float] = (0.5, 0.3), on: Field | None = None) -> Field:
    """A Gaussian of these standard deviations along its axes, the first one at this angle to x."""
    on = grid() if on is None else on
    d = on.points.numpy("x,y,vector") - np.array(centre)
    d -= LENGTHS * np.round(d / LENGTHS)
    along, across = np.cos(angle) * d[..., 0] + np.sin(angle) * d[..., 1], np.cos(angle) * d[..., 1]
    across = across - np.sin(angle) * d[..., 0]
    values = np.exp(-(along**2) / (2 * widths[0] ** 2) - across**2 / (2 * widths[1] ** 2))
    return on.with_values(wrap(torch.as_tensor(values), spatial("x,y")))


def numbers(motion: tuple[Tensor, Tensor]) -> tuple[np.ndarray, float]:
    return motion[0].numpy("vector"), float(motion[1])


# --- rigid motion ---


@pytest.mark.parametrize(
    ("start", "shift"), [((5.0, 0.0), (0.33, -0.71)), ((2.0, 2.8), (-3.9, 2.9)), ((1.0, -3.0), (0.0, 0.0))]
)
def test_moved_blobs(start: tuple, shift: tuple) -> None:
    """Also across the sides of the periodic box, up to half of its length."""
    u, omega = numbers(estimate_motion(blob(start, 0.4), blob(np.add(start, shift), 0.4), 2.0))
    np.testing.assert_allclose(u, np.array(shift) / 2, rtol=0, atol=1e-8)
    assert omega == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize(("angle", "shift"), [(-1.5, (0.0, 0.0)), (0.01, (-1.3, 2.2)), (0.8, (-1.3, 2.2))])
def test_turned_blobs(angle: float, shift: tuple) -> None:
    """By less than a quarter turn; the axes of an ellipse do not show more."""
    u, omega = numbers(estimate_motion(blob((3.0, 1.0), 0.6), blob(np.add((3.0, 1.0), shift), 0.6 + angle), 0.5))
    np.testing.assert_allclose(u, 2 * np.array(shift), rtol=0, atol=1e-7)
    assert omega == pytest.approx(2 * angle, abs=1e-7)


def test_a_blob_of_several_moves_about_its_centre_of_mass() -> None:
    """Three blobs of different mass, turned together about a point beside them."""
    masses, places, angle = (1.0, 2.0, 0.5), np.array([[3.0, 0.0], [4.0, 0.7], [4.2, -0.6]]), 0.7
    pivot, rotation = np.array([4.5, 0.3]), np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def cluster(positions: np.ndarray, turned: float) -> Field:
        return sum(m * blob(p, turned, (0.3, 0.2)) for m, p in zip(masses, positions))

    moved = (places - pivot) @ rotation.T + pivot
    u, omega = numbers(estimate_motion(cluster(places, 0.0), cluster(moved, angle), 1.0))
    np.testing.assert_allclose(u, np.average(moved - places, axis=0, weights=masses), rtol=0, atol=1e-8)
    assert omega == pytest.approx(angle, abs=1e-7)


@pytest.mark.smoke
def test_round_blobs_do_not_turn() -> None:
    round_blob = blob((5.0, 0.0), 0.0, (0.4, 0.4))
    u, omega = numbers(estimate_motion(round_blob, round_blob, 1.0))
    assert not u.any() and omega == 0


def test_units() -> None:
    """Twice the time, half the velocities; amounts of the marker do not matter."""
    a, b = blob((2.0, 1.0), 0.0), blob((2.5, 0.0), 0.5)
    once, twice = numbers(estimate_motion(a, b, 1.0)), numbers(estimate_motion(a * 3.0, b * 7.0, 2.0))
    np.testing.assert_allclose(once[0], 2 * twice[0], rtol=1e-12)
    assert once[1] == pytest.approx(2 * twice[1], rel=1e-12)


def test_marker_carried_by_a_solid_body() -> None:
    """u = v + ω×(x − c) by plain PhiFlow: to the error of Euler's trajectories, ω·dt = 0.6 % of the way at most."""
    v, spin, dt, marker = np.array([0.4, -0.2]), 0.6, 0.01, blob((4.0, 0.5), 0.2)
    d = grid().points.numpy("x,y,vector") - np.array([4.0, 0.5])
    wind = np.stack([v[0] - spin * d[..., 1], v[1] + spin * d[..., 0]], -1)
    wind = CenteredGrid(wrap(torch.as_tensor(wind), spatial("x,y"), math.channel(vector="x,y")), PERIODIC, BOX)
    after = marker
    for _ in range(40):
        after = advect.mac_cormack(after, wind, dt)
    u, omega = numbers(estimate_motion(marker, after, 0.4))
    # the pivot rests where u = 0; the centre turns about it
    pivot = np.array([-v[1], v[0]]) / spin
    turn = np.exp(0.4j * spin) - 1
    moved = -(complex(*pivot)) * turn
    np.testing.assert_allclose(u * 0.4, [moved.real, moved.imag], rtol=0, atol=5e-4)
    assert omega == pytest.approx(spin, abs=1e-3)


# --- flows ---


def test_waves_are_solenoidal_and_have_unit_speed() -> None:
    """In a box that is not square; against curls of cos and sin, to the second order of differences."""
    distances = []
    for refined in (1, 2):
        x, y = solenoidal_waves(grid(32 * refined, 24 * refined), 3).vector
        u, v = (c.values.numpy("wave,x,y") for c in (x, y))
        dx, dy = LENGTHS / (32 * refined, 24 * refined)
        divergence = (np.roll(u, -1, 1) - u) / dx + (np.roll(v, -1, 2) - v) / dy
        assert len(u) == 2 + 28 and abs(divergence).max() < 1e-12  # 28 whole vectors in a disk of radius 3 but for 0
        assert (u[0] == 1).all() and (v[1] == 1).all() and not u[1].any() and not v[0].any()
        assert max(abs(u).max(), abs(v).max()) <= 1
        k = 2 * np.pi * np.array([1.0, -2.0]) / LENGTHS
        phase = k[0] * np.arange(32 * refined)[:, None] * dx + k[1] * (np.arange(24 * refined) + 0.5) * dy
        exact = -k[1] * np.sin(phase) / np.hypot(*k)  # ∂/∂y of cos(k·x)/|k|
        distances.append(min(abs(wave - exact).max() for wave in u))
    assert distances[0] < 0.1 and distances[0] / distances[1] == pytest.approx(4, rel=0.1)


def test_flow_of_a_moved_blob_is_uniform() -> None:
    shift = (-2.7, 1.9)
    flow = estimate_flow(blob((4.0, 1.0), 0.3), blob(np.add((4.0, 1.0), shift), 0.3), 2.0)
    for component, expected in zip(flow.vector, np.array(shift) / 2):
        np.testing.assert_allclose(component.values.numpy("x,y"), expected, rtol=0, atol=1e-6)


def test_small_deformations_are_found(amplitude: float = 0.02) -> None:
    """A marker everywhere, m(x − s(x)) with a wave s; the marker is no function of waves that short, whose flow would not
    show. Without the error of ∇m, that of the estimate is of second order in s."""

    def marker(x: np.ndarray, y: np.ndarray) -> Field:
        kx, ky = 2 * np.pi * (x - 1) / 8, 2 * np.pi * (y + 3) / 6
        values = np.cos(kx) + np.sin(ky + 0.4) + np.cos(kx + ky) + np.sin(2 * kx - ky) + np.cos(2 * ky + kx)
        return grid().with_values(wrap(torch.as_tensor(np.exp(values / 2)), spatial("x,y")))

    points = grid().points
    x, y = (points.vector[d].numpy("x,y") for d in "xy")
    k = 2 * np.pi * np.array([1.0, 1.0]) / LENGTHS
    speed = amplitude * np.sin(k[0] * (x - 1) + k[1] * (y + 3) + 0.5) / np.hypot(*k)
    s = np.stack([-k[1] * speed, k[0] * speed], -1)
    flow = estimate_flow(marker(x, y), marker(x - s[..., 0], y - s[..., 1]), 1.0, 2, 1e-6).at_centers()
    error = np.sqrt(np.mean((flow.values.numpy("x,y,vector") - s) ** 2) / np.mean(s**2))
    assert error < 0.03 + 2 * amplitude, error  # 64×48 cells resolve ∇m of the finest wave to 2 %


@pytest.mark.parametrize("smoothness", [1e-4, 0.5])
def test_least_squares_of_a_turned_blob(smoothness: float) -> None:
    """Against a dense solution of the same equations by NumPy; the blob stays in its place."""
    on = grid(24, 18)
    a, b = (blob((5.0, 0.0), angle, (0.8, 0.5), on).values.numpy("x,y") for angle in (0.2, 0.5))
    mean, d = (a + b) / 2, LENGTHS / (24, 18)
    slope = [(np.roll(mean, -1, i) - np.roll(mean, 1, i)) / (2 * d[i]) for i in (0, 1)]
    u, v = (c.values.numpy("wave,x,y") for c in solenoidal_waves(on, 2).vector)
    images = (u + np.roll(u, -1, 1)) / 2 * slope[0] + (v + np.roll(v, -1, 2)) / 2 * slope[1]
    squares = np.repeat([0, 1, 4, 2, 1, 2, 4], 2)  # |k|² of (0, 0), (0, 1), (0, 2), (1, −1), (1, 0), (1, 1), (2, 0)
    weight = smoothness * np.mean(np.sum(images**2, (1, 2))) * np.exp(0.2 * squares)
    matrix = np.concatenate([images.reshape(14, -1).T, np.diag(np.sqrt(weight))])
    c = np.linalg.lstsq(matrix, np.concatenate([(a - b).ravel(), np.zeros(14)]), rcond=None)[0]
    before, after = (on.with_values(wrap(torch.as_tensor(m), spatial("x,y"))) for m in (a, b))
    found = estimate_flow(before, after, 2.0, 2, smoothness).vector
    for component, waves in zip(found, (u, v)):
        np.testing.assert_allclose(component.values.numpy("x,y"), np.tensordot(c, waves, 1) / 2, rtol=0, atol=1e-9)


def test_captured_with_batches_in_any_global_precision() -> None:
    on = grid(16, 12)
    befores = [blob((2.0 + n, 1.0), 0.1 * n, (1.0, 0.6), on) for n in range(2)]
    afters = [blob((2.5, n), 0.3, (1.0, 0.6), on) for n in range(2)]
    a, b = (stack(list(s), batch("trajectory")) for s in (befores, afters))
    with math.precision(32):
        u, omega = ph.capture(lambda p, q: estimate_motion(p, q, 0.5))(a, b)
        flow = ph.capture(lambda p, q: estimate_flow(p, q, 0.5, 2))(a, b)
    assert flow.values.dtype.precision == u.dtype.precision == omega.dtype.precision == 64
    for n in range(2):
        alone = numbers(estimate_motion(befores[n], afters[n], 0.5))
        np.testing.assert_allclose(u.trajectory[n].numpy("vector"), alone[0], rtol=0, atol=1e-12)
        assert float(omega.trajectory[n]) == pytest.approx(alone[1], abs=1e-12)
        expected = estimate_flow(befores[n], afters[n], 0.5, 2)
        for a, b in zip(component_values(flow.trajectory[n]), component_values(expected)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_derivatives() -> None:
    small = grid(4, 3)
    a, b = blob((4.6, 0.4), 0.2, (1.5, 1.0), small), blob((5.1, 0.7), 0.5, (1.5, 1.0), small)
    a, b = (m.with_values(math.expand(m.values, batch(trajectory=1))) for m in (a, b))
    block = ph.capture(lambda p, q: estimate_motion(p, q, 0.5))
    check_derivatives(block.native, block.flatten(a, b))
    check_vmap(block.native, block.flatten(a, b))


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (1.0, "before.*float"),
        (StaggeredGrid(0.0, PERIODIC, x=4, y=4), "before.*staggered"),
        (CenteredGrid(0.0, ZERO_GRADIENT, x=4, y=4), "before.*zero-gradient"),
        (CenteredGrid(0.0, PERIODIC, x=4), "before.*x.*=4"),
        (CenteredGrid(math.vec(x=0.0, y=1.0), PERIODIC, x=4, y=4), "before.*vector"),
    ],
)
def test_wrong_markers(marker: Any, message: str) -> None:
    with pytest.raises(ph.StateError, match=message):
        estimate_motion(marker, heat.square(4), 1.0)


@pytest.mark.parametrize("time", [0, float("nan"), None, "1"])
@pytest.mark.parametrize("estimate", [estimate_motion, estimate_flow])
def test_times_in_which_nothing_moves(estimate: Any, time: Any) -> None:
    m = blob(1.0, 1.0)
    with pytest.raises(ph.StateError, match="time = "):
        estimate(m, m, time)


def test_different_grids() -> None:
    with pytest.raises(ph.StateError, match="before .*=8.*after .*=4"):
        estimate_motion(heat.square(8), heat.square(4), 1.0)


def test_a_uniform_marker_shows_no_motion() -> None:
    marker = CenteredGrid(1.0, PERIODIC, x=16, y=16)
    with pytest.raises(ph.StateError, match="the same everywhere shows no motion"):
        estimate_flow(marker, marker, 1.0)
