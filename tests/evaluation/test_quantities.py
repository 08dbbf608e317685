"""Integrals, spectra and diagnostics of flows against NumPy by hand and answers that are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import component_values, faces, line, scalar
from phi.torch.flow import (
    PERIODIC,
    Box,
    CenteredGrid,
    Field,
    Obstacle,
    Sphere,
    StaggeredGrid,
    batch,
    dual,
    math,
    spatial,
    vec,
)

import phi_hybrid as ph
from phi_hybrid.bridge import flatten
from phi_hybrid.evaluation import quantities

CELLS = 16
X = 2 * np.pi * np.arange(CELLS) / CELLS


def waves(*rows: np.ndarray, length: float = 2 * np.pi) -> Field:
    """A periodic scalar `(trajectory, x)`, float64."""
    with math.precision(64):
        values = math.wrap(torch.tensor(np.array(rows)), batch("trajectory"), spatial("x"))
        return CenteredGrid(values, PERIODIC, bounds=Box(x=length))


def velocity(u: np.ndarray, v: np.ndarray, size: float = 2 * np.pi) -> Field:
    """A periodic staggered velocity on a square, float64; entry 0 lies on the lower sides."""
    parts = {n: math.wrap(torch.tensor(values), spatial("x,y")) for n, values in (("x", u), ("y", v))}
    with math.precision(64):
        bounds, cells = Box(x=size, y=size), dict(zip("xy", u.shape))
        return StaggeredGrid(math.stack(parts, dual("vector")), PERIODIC, bounds, **cells)


def curl_of_noise(cells: int) -> Field:
    """u = (δψ/δy, −δψ/δx) of random values at the corners: free of divergence."""
    psi = np.random.default_rng(0).standard_normal((cells, cells))
    return velocity(np.roll(psi, -1, 1) - psi, psi - np.roll(psi, -1, 0))


def values(found: Any) -> np.ndarray:
    (tensor,), _ = ph.bridge.flatten(found)
    return tensor.double().numpy()


def spectrum(u: Field) -> np.ndarray:
    return quantities.energy_spectrum(*ph.bridge.flatten(u)).numpy()


# --- integrals ---


def test_integrals() -> None:
    """Mass and energy of waves on an offset, those of u = (2, 3) on a box of 4 × 1.5."""
    f = waves(np.cos(X) + 2, np.cos(3 * X) - 1)
    np.testing.assert_allclose(values(quantities.total(f))[:, 0], [4 * np.pi, -2 * np.pi])
    np.testing.assert_allclose(values(quantities.energy(f)), [np.pi * 4.5, np.pi * 1.5])
    for grid in (CenteredGrid, StaggeredGrid):
        stream = grid(math.expand(math.vec(x=2.0, y=3.0), batch(trajectory=2)), PERIODIC, Box(x=4, y=1.5), x=8, y=4)
        np.testing.assert_allclose(values(quantities.total(stream)), [[12, 18]] * 2, rtol=1e-6)
        np.testing.assert_allclose(values(quantities.energy(stream)), [39] * 2, rtol=1e-6)


def test_faces_of_a_closed_box_are_counted_one_by_one() -> None:
    u = faces("closed", 0, trajectory=2)
    volume = float(u.dx.vector["x"] * u.dx.vector["y"])
    components = [c.double().flatten(1).numpy() for c in component_values(u, ("trajectory",))]
    assert components[0].shape != components[1].shape
    expected = np.stack([c.sum(1) * volume for c in components], 1)
    np.testing.assert_allclose(values(quantities.total(u)), expected, atol=1e-5)
    expected = 0.5 * sum((c**2).sum(1) for c in components) * volume
    np.testing.assert_allclose(values(quantities.energy(u)), expected, rtol=1e-5)


# --- spectra ---


def test_spectrum_of_one_wave() -> None:
    """a cos(3x) holds a²/4; the lowest wavenumber of a longer box is smaller, its number is not."""
    for length in (2 * np.pi, 5.0):
        expected = np.zeros((2, CELLS // 2 + 1))
        expected[0, 3], expected[1, 3], expected[1, 0] = 1.0, 0.25, 0.5
        found = spectrum(waves(2 * np.cos(3 * X), np.cos(3 * X) + 1, length=length))
        np.testing.assert_allclose(found, expected, atol=1e-14)


@pytest.mark.parametrize("size", [(2.0, 2.0), (2.0, 1.0), (1.0, 3.0)])
@pytest.mark.parametrize("staggered", [False, True])
def test_spectrum_by_hand(size: tuple[float, float], staggered: bool) -> None:
    """Mode by mode, of a velocity on 12 × 9 cells of any shape; shells stop where the first dim is resolved no more."""
    u = faces("periodic", 3, cells={"x": 12, "y": 9}, trajectory=2)
    u = StaggeredGrid(u.values, PERIODIC, Box(x=size[0], y=size[1]), x=12, y=9)
    u = u if staggered else u.at_centers()
    parts = component_values(u, ("trajectory",))
    parts = [p.double().numpy() for p in (parts if staggered else parts[0].unbind(-1))]
    modes = [np.abs(np.fft.fftn(p, axes=(1, 2)) / 108) ** 2 for p in parts]
    lowest = min(1 / size[0], 1 / size[1])
    expected = np.zeros((2, 100))
    for i, a in enumerate(np.fft.fftfreq(12, size[0] / 12)):
        for j, b in enumerate(np.fft.fftfreq(9, size[1] / 9)):
            expected[:, round(np.hypot(a, b) / lowest)] += 0.5 * sum(m[:, i, j] for m in modes)
    found = spectrum(u)
    assert found.shape[1] == int(min(6 / size[0], 4.5 / size[1]) / lowest) + 1 > 3
    np.testing.assert_allclose(found, expected[:, : found.shape[1]], rtol=1e-5)


def test_parseval() -> None:
    noise = np.random.default_rng(0).standard_normal((3, CELLS))
    np.testing.assert_allclose(spectrum(waves(*noise)).sum(1), 0.5 * (noise**2).mean(1))


# --- flows ---


def test_vorticity_of_taylor_green() -> None:
    """−2 cos x cos y of (cos x sin y, −sin x cos y): differences of faces are exact but for sin(dx/2)/(dx/2)."""
    cells = 32
    x = np.arange(cells)[:, None] * 2 * np.pi / cells
    half = np.pi / cells
    u, v = np.cos(x) * np.sin(x.T + half), -np.sin(x + half) * np.cos(x.T)
    with math.precision(64):
        found = quantities.vorticity(velocity(u, v))
    np.testing.assert_allclose(values(found), -2 * np.cos(x) * np.cos(x.T) * np.sin(half) / half, atol=1e-12)
    np.testing.assert_allclose(found.points.numpy("x,y,vector")[0, 3], [0, 3 * 2 * half], atol=1e-6)


def test_vorticity_of_centred_velocities() -> None:
    """Central differences along both dims, of two trajectories; the same if captured."""
    u = faces("periodic", 0, trajectory=2).at_centers()
    a, b = component_values(u, ["trajectory"])[0].double().numpy().transpose(3, 0, 1, 2)
    dx, dy = (float(u.dx.vector[n]) for n in "xy")
    expected = (np.roll(b, -1, 1) - np.roll(b, 1, 1)) / 2 / dx - (np.roll(a, -1, 2) - np.roll(a, 1, 2)) / 2 / dy
    for step in (quantities.vorticity, ph.capture(quantities.vorticity)):
        np.testing.assert_allclose(values(step(u)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("u", [line(0), faces("closed"), scalar()])
def test_vorticity_of_what_has_none(u: Field) -> None:
    expected = "vorticity takes a periodic velocity in the plane, got one along x|over x, y is no velocity"
    with pytest.raises(ph.StateError, match=expected):
        quantities.vorticity(u)


def test_vorticity_does_not_depend_on_the_order_of_dims() -> None:
    def of(order: str) -> np.ndarray:
        grid = dict(bounds=Box(**{d: 2 * np.pi for d in order}), **{d: 16 for d in order})
        u = CenteredGrid(lambda x: vec(x=math.cos(x.vector["y"]), y=math.sin(x.vector["x"])), PERIODIC, **grid)
        return quantities.vorticity(u).values.numpy("x,y")

    np.testing.assert_allclose(of("yx"), of("xy"), atol=1e-6)
    assert of("yx")[0, 0] > 0.8  # cos x + sin y


@pytest.mark.parametrize("quantity", [quantities.vorticity, quantities.divergence, quantities.largest_divergence])
def test_what_is_no_velocity(quantity: Callable) -> None:
    grid = dict(x=8, y=8)
    with pytest.raises(ph.StateError, match="over x, y is no velocity, which has a component along each"):
        quantity(CenteredGrid(1.0, PERIODIC, **grid))
    with pytest.raises(ph.StateError, match="of a dict or a tuple pick one"):
        quantity({"velocity": StaggeredGrid(1.0, PERIODIC, **grid)})


def test_spectra_of_several_batch_dims_and_of_none() -> None:
    u = faces("periodic", 0, torch.float64, time=2, trajectory=3)
    several = quantities.energy_spectrum(*flatten(u))
    assert several.shape[0] == 6
    alone = quantities.energy_spectrum(*flatten(u.time[1].trajectory[2]))
    torch.testing.assert_close(alone[0], several[5], rtol=1e-12, atol=0)
    with pytest.raises(ph.StateError, match="that of one field on a grid"):
        quantities.energy_spectrum(*flatten({"u": u}))


def test_divergence() -> None:
    """1 for a single face, 0 where an obstacle touches both of its cells, rounding for curls."""
    ramp = np.zeros((8, 8))
    ramp[3, 4] = 2.0
    u, obstacle = velocity(ramp, np.ones((8, 8)), size=2.0), Sphere(x=0.75, y=1.1, radius=0.3)
    assert quantities.largest_divergence(u) == pytest.approx(1.0)
    assert quantities.largest_divergence(u, obstacle) == quantities.largest_divergence(u, Obstacle(obstacle)) == 0
    with pytest.raises(ph.StateError, match="obstacle = 3: expected an obstacle or its geometry"):
        quantities.divergence(u, 3)
    assert quantities.largest_divergence(u, Sphere(x=1.35, y=1.1, radius=0.1)) == pytest.approx(1.0)  # 1.5 cells away
    expected = np.zeros((8, 8))
    expected[2, 4], expected[3, 4] = 8, -8
    np.testing.assert_allclose(values(quantities.divergence(u)), expected, atol=1e-12)
    assert quantities.largest_divergence(curl_of_noise(16)) < 1e-6 and quantities.largest_divergence(0 * u) == 0
    assert quantities.largest_divergence(u.at_centers()) == 0.5  # a face of 2 leaves 1 in two cells


def test_divergence_of_long_cells_by_hand() -> None:
    """A closed box, whose walls are zero; the longest edge of a cell counts."""
    u = faces("closed", 2)
    a, b = (c.double().numpy() for c in component_values(u))
    dx, dy = (float(u.dx.vector[n]) for n in "xy")
    expected = np.diff(np.pad(a, ((1, 1), (0, 0))), axis=0) / dx + np.diff(np.pad(b, ((0, 0), (1, 1))), axis=1) / dy
    largest = np.abs(expected).max() * max(dx, dy) / max(np.abs(a).max(), np.abs(b).max())
    np.testing.assert_allclose(values(quantities.divergence(u)), expected, atol=1e-5)
    assert quantities.largest_divergence(u) == pytest.approx(largest, rel=1e-5) and dx > 1.1 * dy


@pytest.mark.parametrize("frequency", [0.011, 0.0137, 0.02])
def test_strouhal_number_of_a_drifting_noisy_sine(frequency: float) -> None:
    t = np.arange(300)
    noise = 0.05 * np.random.default_rng(0).standard_normal((2, 300))
    signal = 0.7 * np.sin(2 * np.pi * frequency * t + np.array([[0.3], [2.0]])) + 0.2 + noise
    found = quantities.strouhal_number(signal, dt=0.5, length=20.0, speed=2.0)
    assert found == pytest.approx([20 * frequency] * 2, rel=0.02)


def test_strouhal_number_of_signals_without_an_oscillation() -> None:
    """The blown-up, the constant and the oscillating signal of one batch."""
    t = np.arange(100.0)
    broken = np.where(t == 60, np.nan, np.sin(t))
    found = quantities.strouhal_number(np.stack([broken, 0.3 + 0 * t, np.sin(0.2 * np.pi * t)]), 1, 1, 1)
    assert np.isnan(found[:2]).all() and found[2] == pytest.approx(0.1, rel=0.01)
    with pytest.raises(ph.StateError, match="signal = .complex128.: expected real"):
        quantities.strouhal_number(np.exp(1j * t), 1, 1, 1)
    with pytest.raises(ph.StateError, match=r"signal = \(4, 1\).*two periods"):
        quantities.strouhal_number(np.ones((4, 1)), 1, 1, 1)


def test_time_of_decorrelation() -> None:
    curves = np.array([[0.99, 0.9, 0.7, 0.9], [1.0, 1.0, 1.0, 1.0], [0.5, 0.9, 0.9, 0.9], [0.9, np.nan, 0.9, 0.9]])
    assert quantities.time_of_decorrelation(curves, 0.8, dt=0.5).tolist() == [1.0, 2.0, 0.0, 0.5]
