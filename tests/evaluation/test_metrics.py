"""Metrics against NumPy by hand and states whose numbers are known."""

from __future__ import annotations

import math as m
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import BOX, component_values, faces, noise, scalar
from phi.torch.flow import PERIODIC, Box, CenteredGrid, Field, Sphere, StaggeredGrid, batch, channel, math, spatial

import phi_hybrid as ph
from phi_hybrid.evaluation import metrics, quantities
from phi_hybrid.evaluation.metrics import MAE, NRMSE, Correlation, Divergence, Drift, Frame, Part, SpectrumError

CELLS = 16
X = 2 * np.pi * np.arange(CELLS) / CELLS


def frame(state: Any) -> Frame:
    return Frame(*ph.bridge.flatten(state))


def waves(*rows: np.ndarray) -> Field:
    """A periodic scalar `(trajectory, x)`, float64."""
    with math.precision(64):
        values = math.wrap(torch.tensor(np.array(rows)), batch("trajectory"), spatial("x"))
        return CenteredGrid(values, PERIODIC, bounds=Box(x=2 * np.pi))


def numbers(state: Any) -> np.ndarray:
    """All values of every trajectory, float64."""
    return np.concatenate([c.double().flatten(1).numpy() for c in component_values(state, ("trajectory",))], 1)


# --- errors and correlations ---


@pytest.mark.parametrize("kind", ["periodic", "closed", "open"])
def test_errors_by_hand(kind: str) -> None:
    own, true = faces(kind, 0, trajectory=3), faces(kind, 1, trajectory=3)
    a, b = numbers(own), numbers(true)
    mae, nrmse, cosine = (metrics.DEFAULT[n](frame(own), frame(true)) for n in ("mae", "nrmse", "cosine"))
    np.testing.assert_allclose(mae, np.abs(a - b).mean(1), rtol=1e-12)
    np.testing.assert_allclose(nrmse, np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1), rtol=1e-12)
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(cosine, expected, rtol=1e-12)


def complex_waves(seed: int) -> Field:
    """A periodic complex scalar `(trajectory, x)`, complex128."""
    rng = np.random.default_rng(seed)
    return waves(*(rng.normal(size=(3, CELLS)) + 1j * rng.normal(size=(3, CELLS)) + 0.3 * seed))


def test_errors_of_complex_states_by_hand() -> None:
    """Moduli of errors; correlations and norms as of real and imaginary part beside each other."""
    own, true = complex_waves(1), complex_waves(2)
    a, b = (ph.bridge.flatten(u)[0][0].numpy() for u in (own, true))
    found = {name: metric(frame(own), frame(true)) for name, metric in metrics.DEFAULT.items()}
    assert all(f.dtype == torch.float64 for f in found.values())
    np.testing.assert_allclose(found["mae"], np.abs(a - b).mean(1), rtol=1e-12)
    pairs = [np.stack([u.real, u.imag], 1) for u in (a, b)]
    centred = [p - p.mean(2, keepdims=True) for p in pairs]
    for name, (p, q) in {"cosine": pairs, "correlation": centred}.items():
        norms = [np.sqrt((x**2).sum((1, 2))) for x in (p, q)]
        np.testing.assert_allclose(found[name], (p * q).sum((1, 2)) / norms[0] / norms[1], rtol=1e-12)
    relative = [np.sqrt((x**2).sum((1, 2))) for x in (pairs[0] - pairs[1], pairs[1])]
    np.testing.assert_allclose(found["nrmse"], relative[0] / relative[1], rtol=1e-12)


def test_energy_of_complex_states() -> None:
    """½ ∫ |u|², and the same from the spectrum by Parseval's theorem."""
    u = complex_waves(1)
    values = ph.bridge.flatten(u)[0][0].numpy()
    expected = 0.5 * (np.abs(values) ** 2).sum(1) * 2 * np.pi / CELLS
    with math.precision(64):
        np.testing.assert_allclose(quantities.energy(u).numpy("trajectory"), expected, rtol=1e-12)
    spectrum = quantities.energy_spectrum(*ph.bridge.flatten(u), complete=False)
    np.testing.assert_allclose(spectrum.sum(1) * 2 * np.pi, expected, rtol=1e-12)


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
    together = Correlation(centred=False)(frame(own + stream), frame(true + stream))
    assert float(still.abs().max()) < 0.4 < 0.9 < float(together.min())


def test_nothing_correlates_with_a_constant() -> None:
    own, true = frame(waves(np.sin(X), 0 * X)), frame(waves(0 * X + 3, np.sin(X)))
    assert Correlation()(own, true).abs().max() < 1e-12
    assert Correlation(centred=False)(own, true)[1] == 0


def test_states_without_space() -> None:
    """Vectors of numbers have the mean of their entries, single numbers none."""
    a, b = (np.random.default_rng(s).standard_normal((3, 5)) for s in (0, 1))
    own, true = (frame(math.wrap(torch.tensor(v), batch("trajectory"), channel("vector"))) for v in (a, b))
    np.testing.assert_allclose(Correlation()(own, true), [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b)])
    single = frame(math.wrap(torch.tensor([1.0, 2.0]), batch("trajectory")))
    assert Correlation()(single, single).tolist() == [0, 0] and MAE()(single, single).tolist() == [0, 0]


# --- spectra, divergence, conserved quantities ---


def test_spectrum_error_of_damped_and_lost_waves() -> None:
    """Decades between energies: a tenth of the amplitude is two of them, in one of eight shells; the phase is nothing."""
    noise = np.random.default_rng(1).standard_normal(CELLS)
    own = waves(noise / 10, np.roll(noise, 3), 0.1 * np.cos(3 * X) + np.sin(X), np.sin(X), np.sin(X))
    true = waves(noise, noise, np.cos(3 * X) + np.sin(X), np.cos(X), np.sin(X) + np.cos(2 * X))
    found = SpectrumError()(frame(own), frame(true))
    lost = 12 - np.log10(2)  # the energy of cos 2x, half of all, against a floor of 1e-12 of all
    np.testing.assert_allclose(found, [2, 0, 2 / np.sqrt(8), 0, lost / np.sqrt(8)], atol=1e-6)
    found = SpectrumError(floor=1e-3)(frame(own), frame(true))
    np.testing.assert_allclose(found[4], (3 - np.log10(2)) / np.sqrt(8), atol=1e-6)


def test_spectrum_of_what_is_not_one_periodic_field() -> None:
    wave = waves(np.sin(X), np.cos(X))
    closed, both = frame(faces("closed", trajectory=2)), frame((wave, wave))
    with pytest.raises(ph.StateError, match=r"periodic fields, but .* boundaries x- .*SpectrumError\(of=…"):
        SpectrumError()(closed, closed)
    with pytest.raises(
        ph.StateError, match=r"SpectrumError takes one field on a grid, got \(trajectory=any, x=16\), .*Part\('vel"
    ):
        SpectrumError()(both, both)
    assert SpectrumError(of=lambda s: s[1])(both, both).tolist() == [0, 0]


def test_divergence_is_the_largest_of_each_trajectory() -> None:
    u = faces("closed", 2, trajectory=3)
    obstacle = Sphere(x=1.0, y=0.7, radius=0.2)
    everywhere, outside = Divergence(), Divergence(obstacle=obstacle)
    for metric, around in ((everywhere, None), (outside, obstacle)):
        expected = [quantities.largest_divergence(u.trajectory[n], around) for n in range(3)]
        np.testing.assert_allclose(metric(frame(u), frame(u)), expected, rtol=1e-5)
    assert outside(frame(u), frame(u))[0] < everywhere(frame(u), frame(u))[0]
    assert everywhere(frame(0 * u), frame(u)).tolist() == [0, 0, 0]
    with pytest.raises(ph.StateError, match="Divergence takes one field"):
        everywhere(frame(math.wrap(torch.ones(2, 4), batch("trajectory"), channel("vector"))), frame(u))


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


# --- quantities of states ---


@pytest.mark.parametrize("quantity", [quantities.energy, quantities.vorticity])
def test_captured_quantities_give_the_same(quantity: Any) -> None:
    own, true = (frame(faces("periodic", seed, trajectory=3)) for seed in (0, 1))
    captured = ph.capture(quantity)
    for make in (Drift, lambda q: MAE(of=q), lambda q: NRMSE(of=q), lambda q: Correlation(of=q)):
        torch.testing.assert_close(make(captured)(own, true), make(quantity)(own, true))
    assert len(captured.known) == 1


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
    assert (
        len({Drift(quantities.energy), Drift(quantities.energy), SpectrumError(), Part(0, MAE()), Part(0, MAE())}) == 3
    )
    with pytest.raises(TypeError):
        metrics.DEFAULT["mae"] = Drift(quantities.energy)  # type: ignore[index]


# --- parts ---


def plume(seed: int) -> dict[str, Field]:
    """Periodic faces on 8 × 8 cells and smoke on 16 × 16, of two trajectories."""
    box = Box(**{n: BOX[n] for n in "xy"})
    smoke = math.wrap(noise(2, 16, 16, seed=seed + 10), batch("trajectory"), spatial("x,y"))
    velocity = faces("periodic", seed, cells={"x": 8, "y": 8}, trajectory=2)
    return {"velocity": velocity, "smoke": CenteredGrid(smoke, PERIODIC, bounds=box)}


OF_BOTH = [
    MAE(),
    NRMSE(),
    Correlation(),
    MAE(of=lambda u: u * 2),
    Correlation(of=ph.capture(lambda u: u * u)),
    SpectrumError(),
    Drift(quantities.energy),
    Drift(quantities.total, scale=2.0),
]
OF_VELOCITY = [Divergence(), Correlation(of=quantities.vorticity), MAE(of=quantities.divergence)]


@pytest.mark.parametrize(
    ("name", "metric"),
    [*[(n, metric) for n in ("velocity", "smoke") for metric in OF_BOTH], *[("velocity", v) for v in OF_VELOCITY]],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_part_is_the_metric_of_this_part_alone(name: str, metric: Any) -> None:
    """Of dicts by name, of tuples by index; quantities get the field of the part."""
    own, true = plume(0), plume(1)
    for a, b, part in ((own, true, name), (tuple(own.values()), tuple(true.values()), list(own).index(name))):
        found = Part(part, metric)(frame(a), frame(b))
        assert torch.equal(found, metric(frame(own[name]), frame(true[name]))) and found.abs().min() > 0


def test_parts_of_parts_and_plain_functions() -> None:
    own, true = ({"gas": plume(seed), "ash": scalar(seed, trajectory=2)} for seed in (0, 1))
    part = Part("gas", Part("smoke", lambda a, b: (a.rows - b.rows).abs().amax(1)))
    expected = (own["gas"]["smoke"] - true["gas"]["smoke"]).values.numpy("trajectory,x,y")
    np.testing.assert_allclose(part(frame(own), frame(true)), np.abs(expected).max((1, 2)), rtol=1e-6)
    assert part.failure == m.inf == -Part("ash", Part(0, Correlation())).failure


def test_default_metrics_of_several_parts() -> None:
    """Errors of every part that has values; a dict of a single one is not divided."""
    assert list(metrics.defaults(frame(plume(0)).layout))[4:] == [
        f"{name} {part}" for name in ("mae", "nrmse") for part in ("velocity", "smoke")
    ]
    own = scalar(trajectory=2)
    assert [n for n in metrics.defaults(frame((own, None, own)).layout) if " " in n] == [
        "mae 0", "mae 2", "nrmse 0", "nrmse 2"
    ]  # fmt: skip
    for single in (own, {"u": own}, (own, 3.0)):
        assert metrics.defaults(frame(single).layout) == dict(metrics.DEFAULT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Part("heat", MAE())(*[frame(plume(0))] * 2),
            r"no part 'heat', only \['velocity', 'smoke'\]: name a key",
        ),
        (lambda: Part(0, MAE())(*[frame(plume(0))] * 2), r"no part 0, only \['velocity', 'smoke'\]"),
        (lambda: Part(2, MAE())(*[frame((scalar(trajectory=1),) * 2)] * 2), r"no part 2, only \[0, 1\]"),
        (
            lambda: Part("u", MAE())(*[frame(scalar(trajectory=1))] * 2),
            "no part 'u', for it is a single field or tensor",
        ),
        (lambda: Part("smoke", MAE), "metric = the class MAE: expected a metric, e.g. MAE\\(\\)"),
        (lambda: Part("smoke", "mae"), "metric = 'mae': expected a metric"),
    ],
)
def test_parts_that_are_not_there(make: Any, message: str) -> None:
    with pytest.raises(ph.StateError, match=message):
        make()
