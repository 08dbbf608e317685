"""Metrics against NumPy by hand and states whose numbers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases.small import component_values, faces, scalar
from phi.torch.flow import (
    PERIODIC,
    Box,
    CenteredGrid,
    Field,
    Sphere,
    StaggeredGrid,
    batch,
    channel,
    field,
    math,
    spatial,
)

import phi_hybrid as ph
from phi_hybrid.bridge.layout import flatten
from phi_hybrid.evaluation import metrics, quantities
from phi_hybrid.evaluation import quantities as diagnostics
from phi_hybrid.evaluation.metrics import Correlation, Divergence, Drift, Frame, SpectrumError
from phi_hybrid.pde import navier_stokes as ns

CELLS = 16
X = 2 * np.pi * np.arange(CELLS) / CELLS


def frame(state: Any) -> Frame:
    return Frame(*flatten(state))


def waves(*rows: np.ndarray, length: float = 2 * np.pi) -> Field:
    """A periodic scalar `(trajectory, x)`, float64."""
    with math.precision(64):
        values = math.wrap(torch.tensor(np.array(rows)), batch("trajectory"), spatial("x"))
        return CenteredGrid(values, PERIODIC, bounds=Box(x=length))


def numbers(state: Any) -> np.ndarray:
    """All values of every trajectory, float64."""
    return np.concatenate([c.double().flatten(1).numpy() for c in component_values(state, ("trajectory",))], 1)


# --- point-wise errors and correlations ---


@pytest.mark.parametrize("kind", ["periodic", "closed", "open"])
def test_errors_by_hand(kind: str) -> None:
    own, true = faces(kind, 0, trajectory=3), faces(kind, 1, trajectory=3)
    a, b = numbers(own), numbers(true)
    mae = metrics.DEFAULT["mae"](frame(own), frame(true))
    nrmse = metrics.DEFAULT["nrmse"](frame(own), frame(true))
    cosine = metrics.DEFAULT["cosine"](frame(own), frame(true))
    np.testing.assert_allclose(mae, np.abs(a - b).mean(1), rtol=1e-12)
    np.testing.assert_allclose(nrmse, np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1), rtol=1e-12)
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(cosine, expected, rtol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1.0, -5.0])
def test_correlation_of_shifted_sines(offset: float) -> None:
    """Pearson: cos φ, whatever the offset c. Uncentred: (½ cos φ + c²) / (½ + c²)."""
    shifts = np.array([0.0, 0.5, np.pi / 2, 2.5, np.pi])
    own = frame(waves(*(np.sin(X + s) + offset for s in shifts)))
    true = frame(waves(*(np.sin(X) + offset for _ in shifts)))
    np.testing.assert_allclose(Correlation()(own, true), np.cos(shifts), atol=1e-13)
    expected = (np.cos(shifts) / 2 + offset**2) / (0.5 + offset**2)
    np.testing.assert_allclose(Correlation(centred=False)(own, true), expected, atol=1e-13)


def test_correlation_is_that_of_numpy_and_ignores_scale() -> None:
    own, true = scalar(0, trajectory=3), scalar(1, trajectory=3)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(numbers(own), numbers(true))]
    np.testing.assert_allclose(Correlation()(frame(own), frame(true)), expected, rtol=1e-6)
    np.testing.assert_allclose(Correlation()(frame(3 * own + 2), frame(true)), expected, rtol=1e-5)


def test_each_component_has_its_own_mean() -> None:
    """A stream along y alone correlates two unrelated flows if one mean is taken for both components."""
    own, true = faces("periodic", 0, trajectory=2), faces("periodic", 1, trajectory=2)
    stream = StaggeredGrid(math.vec(x=0.0, y=7.0), PERIODIC, own.bounds, own.resolution)
    still, moving = (Correlation()(frame(own + s), frame(true + s)) for s in (0 * stream, stream))
    np.testing.assert_allclose(still, moving, atol=1e-5)
    assert (
        float(still.abs().max())
        < 0.4
        < 0.9
        < float(Correlation(centred=False)(frame(own + stream), frame(true + stream)).min())
    )


def test_nothing_correlates_with_a_constant() -> None:
    own, true = frame(waves(np.sin(X), 0 * X)), frame(waves(0 * X + 3, np.sin(X)))
    assert Correlation()(own, true).abs().max() < 1e-12
    assert Correlation(centred=False)(own, true)[1] == 0


def test_correlation_of_a_quantity_of_the_state() -> None:
    """Vorticity of a staggered velocity, beside a scalar that does not count."""
    own, true = (ns.divergence_free_noise(ns.periodic_square(16), 2, 3, 1.0, seed=s) for s in (0, 1))
    smoke = scalar(0, trajectory=2)
    found = Correlation(centred=False, of=lambda state: field.curl(state[0]))(frame((own, smoke)), frame((true, smoke)))
    expected = []
    for t in range(2):
        (u, v), (p, q) = ([c.double().numpy()[t] for c in component_values(w, ("trajectory",))] for w in (own, true))
        a, b = (y - np.roll(y, 1, 0) - x + np.roll(x, 1, 1) for x, y in ((u, v), (p, q)))
        a, b = (np.pad(w, (0, 1), "wrap") for w in (a, b))  # PhiFlow has the corners on either side
        expected.append((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    np.testing.assert_allclose(found, expected, atol=1e-5)


# --- spectra ---


def test_spectrum_of_one_wave() -> None:
    """a cos(3x) holds a²/4; the lowest wavenumber of a longer box is smaller, its number is not."""
    for length in (2 * np.pi, 5.0):
        f = frame(waves(2 * np.cos(3 * X), np.cos(3 * X) + 1, length=length))
        expected = np.zeros((2, CELLS // 2 + 1))
        expected[0, 3], expected[1, 3], expected[1, 0] = 1.0, 0.25, 0.5
        np.testing.assert_allclose(quantities.energy_spectrum(f.tensors, f.layout), expected, atol=1e-14)


@pytest.mark.parametrize("size", [(2.0, 2.0), (2.0, 1.0), (1.0, 3.0)])
@pytest.mark.parametrize("staggered", [False, True])
def test_spectrum_is_the_one_that_is_plotted(size: tuple[float, float], staggered: bool) -> None:
    """The figures have their own implementation, in NumPy."""
    u = faces("periodic", 3, cells={"x": 12, "y": 9}, trajectory=2)
    u = StaggeredGrid(u.values, PERIODIC, Box(x=size[0], y=size[1]), x=12, y=9)
    u = u if staggered else u.at_centers()
    f = frame(u)
    found = quantities.energy_spectrum(f.tensors, f.layout)
    _, expected = ph.plot.energy_spectrum(u)
    np.testing.assert_allclose(found.mean(0), expected[: found.shape[1]], rtol=1e-5)
    assert found.shape[1] > 3


def test_parseval() -> None:
    values = np.random.default_rng(0).standard_normal((3, CELLS))
    f = frame(waves(*values))
    np.testing.assert_allclose(quantities.energy_spectrum(f.tensors, f.layout).sum(1), 0.5 * (values**2).mean(1))


def test_log_spectral_distance() -> None:
    """Ten times the amplitude is two decades of energy, at all wavenumbers or at one of eight."""
    noise = np.random.default_rng(0).standard_normal(CELLS)
    own = waves(10 * noise, noise + 5, 10 * np.cos(3 * X) + np.sin(X), np.sin(X), np.sin(X))
    true = waves(noise, noise, np.cos(3 * X) + np.sin(X), np.cos(X), np.sin(X) + np.cos(2 * X))
    found = SpectrumError()(frame(own), frame(true))
    lost = 12 - np.log10(2)  # the energy of cos 2x, half of all, against a floor of 1e-12 of all
    np.testing.assert_allclose(found, [2, 0, 2 / np.sqrt(8), 0, lost / np.sqrt(8)], atol=1e-6)
    found = SpectrumError(floor=1e-3)(frame(own), frame(true))
    np.testing.assert_allclose(found[4], (3 - np.log10(2)) / np.sqrt(8), atol=1e-6)


def test_spectrum_of_what_is_not_one_periodic_field() -> None:
    wave = waves(np.sin(X), np.cos(X))
    closed, both = frame(faces("closed", trajectory=2)), frame((wave, wave))
    with pytest.raises(
        ph.StateError, match=r"periodic fields, but this one has the boundaries x- .*SpectrumError\(of=…"
    ):
        SpectrumError()(closed, closed)
    with pytest.raises(ph.StateError, match=r"SpectrumError takes one field on a grid, got TreeLayout .*state\[0\]"):
        SpectrumError()(both, both)
    assert SpectrumError(of=lambda s: s[1])(both, both).tolist() == [0, 0]


# --- divergence and conserved quantities ---


def test_divergence_is_the_largest_of_each_trajectory() -> None:
    u = faces("closed", 2, trajectory=3)
    obstacle = Sphere(x=1.0, y=0.7, radius=0.2)
    for metric, around in ((Divergence(), None), (Divergence(obstacle=obstacle), obstacle)):
        expected = [diagnostics.largest_divergence(u.trajectory[n], around) for n in range(3)]
        np.testing.assert_allclose(metric(frame(u), frame(u)), expected, rtol=1e-5)
    assert Divergence(obstacle=obstacle)(frame(u), frame(u))[0] < Divergence()(frame(u), frame(u))[0]


def test_divergence_of_centred_velocities_and_of_part_of_a_state() -> None:
    """Central differences of sin x along x, none along y."""
    values = np.sin(X)[:, None] * np.ones((CELLS, 4))
    parts = {"x": math.wrap(torch.tensor(values)[None], batch("trajectory"), spatial("x,y")), "y": 0}
    with math.precision(64):
        u = CenteredGrid(
            math.stack(parts, channel("vector"), expand_values=True), PERIODIC, Box(x=2 * np.pi, y=2 * np.pi)
        )
    dx = 2 * np.pi / CELLS
    central = np.abs(np.roll(np.sin(X), -1) - np.roll(np.sin(X), 1)).max() / (2 * dx)
    state = frame({"u": u, "s": u})
    found = Divergence(of=lambda s: s["u"])(state, state)
    assert float(found) == pytest.approx(central * 2 * np.pi / 4, rel=1e-6)  # cells are longest along y
    with pytest.raises(ph.StateError, match="Divergence takes one field"):
        Divergence()(frame(math.wrap(torch.ones(2, 4), batch("trajectory"), channel("vector"))), state)


def test_projected_flows_are_free_of_divergence() -> None:
    u = ns.divergence_free_noise(ns.periodic_square(16), 2, 3, 1.0, seed=0)
    assert Divergence()(frame(u), frame(u)).max() < 1e-5 and Divergence()(frame(0 * u), frame(u)).tolist() == [0, 0]


def test_integrals() -> None:
    """Mass and momentum of waves on an offset, energy of u = (2, 3) on a box of 4 × 1.5."""
    f = frame(waves(np.cos(X) + 2, np.cos(3 * X) - 1))
    np.testing.assert_allclose(f.of(quantities.total).rows[:, 0], [4 * np.pi, -2 * np.pi])
    np.testing.assert_allclose(f.of(quantities.energy).rows[:, 0], [np.pi * 4.5, np.pi * 1.5])
    for grid in (CenteredGrid, StaggeredGrid):
        stream = math.expand(math.vec(x=2.0, y=3.0), batch(trajectory=2))
        u = frame(grid(stream, PERIODIC, Box(x=4, y=1.5), x=8, y=4))
        np.testing.assert_allclose(u.of(quantities.total).rows, [[12, 18]] * 2, rtol=1e-6)
        np.testing.assert_allclose(u.of(quantities.energy).rows, [[39]] * 2, rtol=1e-6)


def test_faces_of_a_closed_box_are_counted_one_by_one() -> None:
    u = faces("closed", 0, trajectory=2)
    volume = float(u.dx.vector["x"] * u.dx.vector["y"])
    components = [c.double().flatten(1).numpy() for c in component_values(u, ("trajectory",))]
    assert components[0].shape != components[1].shape
    found = frame(u).of(quantities.total).rows
    np.testing.assert_allclose(found, np.stack([c.sum(1) * volume for c in components], 1), atol=1e-5)
    found = frame(u).of(quantities.energy).rows[:, 0]
    np.testing.assert_allclose(found, 0.5 * sum((c**2).sum(1) for c in components) * volume, rtol=1e-5)


def test_drift_of_a_damped_wave() -> None:
    """e^(−γt) cos(x − ct) beside the undamped one: the energy has lost 1 − e^(−2γt), the mass stays, both vanish or not."""
    damping, speed, times = 0.3, 2.0, np.arange(5) * 0.25
    own = waves(*(np.exp(-damping * t) * np.cos(X - speed * t) + 1 for t in times))
    true = waves(*(np.cos(X - speed * t) + 1 for t in times))
    lost = 1 - np.exp(-2 * damping * times)
    found = Drift(quantities.energy)(frame(own), frame(true))
    np.testing.assert_allclose(found, lost * 0.5 / 1.5, atol=1e-12)  # of ½·½ + ½ per length, the wave is a third
    assert Drift(quantities.total)(frame(own), frame(true)).max() < 1e-12
    with math.precision(64):
        own, true = (u - 1 for u in (own, true))
        raised = own + 3
    np.testing.assert_allclose(Drift(quantities.energy)(frame(own), frame(true)), lost, atol=1e-12)
    found = Drift(quantities.total, scale=2.0)(frame(raised), frame(true))
    np.testing.assert_allclose(found, [3 * 2 * np.pi / 2.0] * 5)  # the reference has no mass to relate it to


def test_captured_quantities_give_the_same() -> None:
    own, true = frame(faces("open", 0, trajectory=3)), frame(faces("open", 1, trajectory=3))
    captured = ph.capture(quantities.energy)
    for metric in (Drift, lambda q: metrics.MAE(of=q), lambda q: metrics.NRMSE(of=q)):
        torch.testing.assert_close(metric(captured)(own, true), metric(quantities.energy)(own, true))
    assert len(captured.graphs) == 1


@pytest.mark.parametrize(
    "quantity",
    [
        lambda u: math.sum(u.values, u.values.shape),
        lambda u: 3.0,
        lambda u: math.expand(u.values, batch(time=2)),
    ],
)
def test_quantities_that_are_not_one_per_trajectory(quantity: Any) -> None:
    f = frame(scalar(trajectory=2))
    with pytest.raises(ph.StateError, match="'trajectory' returned .*: keep 'trajectory' and no other batch dim"):
        Drift(quantity)(f, f)


def test_metrics_are_values() -> None:
    assert Correlation() == Correlation(centred=True) != Correlation(centred=False)
    assert len({Drift(quantities.energy), Drift(quantities.energy), SpectrumError(), Divergence()}) == 3
    with pytest.raises(TypeError):
        metrics.DEFAULT["mae"] = Drift(quantities.energy)  # type: ignore[index]


def test_states_without_space() -> None:
    """Vectors of numbers have the mean of their entries, single numbers none."""
    a, b = (np.random.default_rng(s).standard_normal((3, 5)) for s in (0, 1))
    own, true = (frame(math.wrap(torch.tensor(v), batch("trajectory"), channel("vector"))) for v in (a, b))
    np.testing.assert_allclose(Correlation()(own, true), [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b)])
    single = frame(math.wrap(torch.tensor([1.0, 2.0]), batch("trajectory")))
    assert Correlation()(single, single).tolist() == [0, 0] and metrics.MAE()(single, single).tolist() == [0, 0]
