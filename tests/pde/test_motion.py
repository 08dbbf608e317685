"""Estimates of motion from blobs that were moved and turned analytically, and by plain PhiFlow advection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from derivative_checks import check_derivatives, check_vmap
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
from phi_hybrid.pde import heat
from phi_hybrid.pde.motion import estimate_motion

torch.set_num_threads(1)

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


@pytest.mark.parametrize("start", [(5.0, 0.0), (2.0, 2.8), (1.0, -3.0)])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.33, -0.71), (-3.9, 2.9)])
def test_moved_blobs(start: tuple, shift: tuple) -> None:
    """Also across the sides of the periodic box, up to half of its length."""
    u, omega = numbers(estimate_motion(blob(start, 0.4), blob(np.add(start, shift), 0.4), 2.0))
    np.testing.assert_allclose(u, np.array(shift) / 2, rtol=0, atol=1e-8)
    assert omega == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("angle", [-1.5, -0.3, 0.01, 0.8, 1.5])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (-1.3, 2.2)])
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


# --- captured ---


def test_captured_with_batches_in_any_global_precision() -> None:
    befores, afters = [blob((2.0 + n, 1.0), 0.1 * n) for n in range(3)], [blob((2.5, n), 0.3) for n in range(3)]
    a, b = (stack(list(s), batch("trajectory")) for s in (befores, afters))
    for bits in (32, 64):
        with math.precision(bits):
            u, omega = ph.capture(lambda p, q: estimate_motion(p, q, 0.5))(a, b)
            assert u.dtype.precision == omega.dtype.precision == 64
    for n in range(3):
        alone = numbers(estimate_motion(befores[n], afters[n], 0.5))
        np.testing.assert_allclose(u.trajectory[n].numpy("vector"), alone[0], rtol=0, atol=1e-12)
        assert float(omega.trajectory[n]) == pytest.approx(alone[1], abs=1e-12)


def test_derivatives() -> None:
    small = grid(4, 3)
    a, b = blob((4.6, 0.4), 0.2, (1.5, 1.0), small), blob((5.1, 0.7), 0.5, (1.5, 1.0), small)
    a, b = (m.with_values(math.expand(m.values, batch(trajectory=1))) for m in (a, b))
    block = ph.capture(lambda p, q: estimate_motion(p, q, 0.5))
    check_derivatives(block.native, block.flatten(a, b))
    check_vmap(block.native, block.flatten(a, b))


# --- wrong arguments ---


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (1.0, "before is a float: expected a centred periodic scalar"),
        (StaggeredGrid(0.0, PERIODIC, x=4, y=4), "before is staggered with shape"),
        (CenteredGrid(0.0, ZERO_GRADIENT, x=4, y=4), "before is centred .* and boundary zero-gradient"),
        (CenteredGrid(0.0, PERIODIC, x=4), r"before is centred with shape .*x.*=4"),
        (CenteredGrid(math.vec(x=0.0, y=1.0), PERIODIC, x=4, y=4), "before is centred with shape .*vector"),
    ],
)
def test_wrong_markers(marker: Any, message: str) -> None:
    with pytest.raises(ph.StateError, match=message):
        estimate_motion(marker, heat.square(4), 1.0)


def test_different_grids() -> None:
    with pytest.raises(ph.StateError, match="before has .*=8.* and after .*=4.* resample one of them"):
        estimate_motion(heat.square(8), heat.square(4), 1.0)
