"""How far can a trained solver be trusted? An ensemble over seeds, on held-out data and far from the training data.

The Burgers correction of burgers_correction.py is trained several times, from other initial weights and with another
order of the windows. The spread of the members' rollouts is compared with the error of their mean: on trajectories like
those of the training, with a stronger force, with shorter waves, and with a viscosity that the coarse solver does not
know of. One number, the scale of the spread, is fitted on validation trajectories: such that 90 % intervals hold 90 %
(`covering`), or that its mean square is that of the error (`rms`).

    python demos/studies/burgers_uncertainty.py [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import lab
import matplotlib.pyplot as plt
import numpy as np
import torch
from flows import LINE, Burgers
from matplotlib.figure import Figure
from phi.field import Field
from phi.math import batch, expand
from phi.torch.flow import res_net
from scipy.stats import spearmanr

import phi_hybrid as ph
from phi_hybrid.evaluation import calibration

MEMBERS, LEVELS, EARLY = 8, (0.5, 0.9), 50

captured = cache(Burgers.physics)  # once for all data of one viscosity


@dataclass(frozen=True)
class Kind:
    """How trajectories are drawn; the training has the defaults."""

    amplitude: float = 0.5
    modes: tuple[int, int] = (3, 6)
    viscosity: float = LINE.viscosity


KINDS = {
    "held_out": Kind(),
    "strong_force": Kind(amplitude=1.0),
    "short_waves": Kind(modes=(9, 12)),
    "unknown_viscosity": Kind(viscosity=0.05),
}


@dataclass(frozen=True)
class Forecast:
    """States of an ensemble for some trajectories, without the common initial state."""

    members: Field
    """`(member, time, trajectory, x, vector)`."""
    truth: Field
    source: Field
    """Of the uncorrected solver."""

    def rescaled(self, factor: float) -> Forecast:
        return replace(self, members=calibration.rescale(self.members, factor))


def draw(case: Burgers, kind: Kind, count: int, seed: int) -> ph.Trajectories:
    """Reference trajectories, coarsened."""
    case = replace(case, viscosity=kind.viscosity)
    return case.waves(count, seed, kind.modes, kind.amplitude, fine=captured(case, case.fine))


def trained_ensemble(case: Burgers, data: ph.Trajectories, members: int, seed: int, device: str) -> ph.Ensemble:
    """Members that differ in their initial weights and in the order of the windows."""
    source, solvers = captured(case, case.coarse), []
    for number in range(members):
        own_seed = 100 * seed + number
        torch.manual_seed(own_seed)
        network = res_net(2 * case.dim, case.dim, list(case.filters), in_spatial=case.dim, periodic=True)
        solvers.append(ph.HybridSolver(source, network).to(device))
        stages = [(1, case.pretraining, 2e-3, case.batch), (4, case.updates, 5e-4, case.batch)]
        lab.train(solvers[-1], data, stages, own_seed)
    return ph.Ensemble(solvers)


def forecast(ensemble: ph.Ensemble, source: ph.PhysicsBlock, data: ph.Trajectories) -> Forecast:
    start = data.initial_state, data.steps, *data.step_inputs
    after_first = dict(time=slice(1, None))
    states = ensemble.rollout(*start), data.trajectory, ph.rollout(source, *start)
    return Forecast(*(state[after_first] for state in states))


def single(state: Field) -> Field:
    """A state as an ensemble of one, whose score is its mean absolute error."""
    return expand(state, batch(member=1))


def scores(found: Forecast) -> dict[str, float]:
    members, truth = found.members, found.truth
    result = {
        "mae": calibration.crps(single(calibration.mean(members)), truth),
        "rmse": calibration.skill(members, truth),
        "crps": calibration.crps(members, truth),
        "spread_skill": calibration.spread_skill(members, truth),
    }
    result |= {f"coverage_{100 * level:.0f}": calibration.coverage(members, truth, level) for level in LEVELS}
    return {name: float(value) for name, value in result.items()}


def of_singles(score: Callable, found: Forecast) -> float:
    """Mean score of the members taken one by one."""
    count = found.members.shape.get_size("member")
    return float(np.mean([float(score(found.members.member[[n]], found.truth)) for n in range(count)]))


def warnings(found: Forecast, threshold: float) -> dict[str, float]:
    """Share of the trajectories whose spread in the first steps exceeds the threshold, and whether the spread ranks
    trajectories by their errors."""
    early, per_trajectory = found.members.time[:EARLY], ("trajectory",)
    announced = calibration.expected_skill(found.members, per_trajectory).numpy("trajectory")
    error = calibration.skill(found.members, found.truth, per_trajectory).numpy("trajectory")
    flagged = calibration.expected_skill(early, per_trajectory).numpy("trajectory") > threshold
    return {"flagged": float(flagged.mean()), "rank_correlation": float(spearmanr(announced, error).statistic)}


def scales(validation: Forecast) -> dict[str, float]:
    """Method → factor of the spread."""
    return {
        "ensemble": 1.0,
        "covering": calibration.covering_scale(validation.members, validation.truth, LEVELS[-1]),
        "rms": 1 / float(calibration.spread_skill(validation.members, validation.truth)),
    }


def evaluate(forecasts: dict[str, Forecast], validation: Forecast) -> dict[str, dict[str, float]]:
    """Method → metric → number; methods on data unlike those of the training are named `method, kind`."""
    usual = calibration.expected_skill(validation.members.time[:EARLY], ("trajectory",)).numpy("trajectory")
    threshold, factors, metrics = float(np.quantile(usual, 0.95)), scales(validation), {}
    for kind, found in forecasts.items():
        end, source = "" if kind == "held_out" else f", {kind}", replace(found, members=single(found.source))
        for name, own in {"source": source, "single": found}.items():
            metrics[name + end] = {"mae": of_singles(calibration.crps, own), "rmse": of_singles(calibration.skill, own)}
        for name, factor in factors.items():
            metrics[name + end] = {"factor": factor} | scores(found.rescaled(factor))
        metrics["ensemble" + end] |= warnings(found, threshold)
    return metrics


# --- figures ---


def bands(forecasts: dict[str, Forecast], case: Burgers) -> Figure:
    """One trajectory per kind at several times: reference, mean of the members and ±2 s."""
    x = (np.arange(case.coarse) + 0.5) * case.length / case.coarse
    times = [case.steps // 8, case.steps // 4, case.steps // 2, case.steps - 1]
    size = dict(figsize=(12, 2.3 * len(forecasts)), sharex=True, sharey="row", layout="constrained")
    figure, axes = plt.subplots(len(forecasts), len(times), **size)
    for row, (kind, found) in zip(axes, forecasts.items()):
        mean, spread, true = pictures(found)
        for ax, n in zip(row, times):
            ax.fill_between(x, (mean - 2 * spread)[:, n], (mean + 2 * spread)[:, n], color="C0", alpha=0.35, lw=0)
            ax.plot(x, true[:, n], color="#222222", lw=1.3, label="reference")
            ax.plot(x, mean[:, n], color="C0", lw=1.3, label="mean ± 2 s")
            ax.set_title(f"{kind.replace('_', ' ')}, t = {(n + 1) * case.dt:.1f}", fontsize=9)
        row[0].set_ylabel("u")
    axes[0, 0].legend(fontsize=7, frameon=False)
    return figure


def pictures(found: Forecast) -> list[np.ndarray]:
    """Mean, spread and truth of the first trajectory, `(x, time)`."""
    members, truth = found.members.trajectory[0], found.truth.trajectory[0]
    states = calibration.mean(members), calibration.spread(members), truth
    return [u.values.numpy("x,time,vector")[..., 0] for u in states]


def spacetime(forecasts: dict[str, Forecast], case: Burgers) -> Figure:
    """|ū − u*| of one trajectory per kind above its spread."""
    figure, axes = plt.subplots(2, len(forecasts), figsize=(12, 5), sharex=True, sharey=True, layout="constrained")
    extent = (0, case.steps * case.dt, 0, case.length)
    for column, (kind, found) in zip(axes.T, forecasts.items()):
        mean, spread, true = pictures(found)
        top = np.quantile(abs(mean - true), 0.99)
        for ax, name, shown in zip(column, (f"error, {kind.replace('_', ' ')}", "spread"), (abs(mean - true), spread)):
            image = ax.imshow(shown, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=0, vmax=top)
            ax.set_title(name, fontsize=9)
        figure.colorbar(image, ax=column, location="bottom", shrink=0.8)
        column[1].set_xlabel("t")
    for ax in axes[:, 0]:
        ax.set_ylabel("x")
    return figure


def reliability(forecasts: dict[str, Forecast], factor: float, case: Burgers) -> Figure:
    """Error and announced error over time, coverage over time, and nominal against observed coverage."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    t, levels, over_time = (np.arange(case.steps) + 1) * case.dt, np.linspace(0.05, 0.95, 19), ("time",)
    for colour, (kind, found) in enumerate(forecasts.items()):
        style, both = dict(color=f"C{colour}", lw=1.5), (found.members, found.truth)
        left.semilogy(t, calibration.skill(*both, over_time).numpy("time"), label=kind.replace("_", " "), **style)
        left.semilogy(t, calibration.expected_skill(found.members, over_time).numpy("time"), ls="--", **style)
        middle.plot(t, calibration.coverage(*both, LEVELS[-1], over_time).numpy("time"), **style)
        for own, dash in ((found, "-"), (found.rescaled(factor), ":")):
            seen = [float(calibration.coverage(own.members, own.truth, float(level))) for level in levels]
            right.plot(levels, seen, dash, **style)
    middle.axhline(LEVELS[-1], color="#888888", lw=1)
    right.plot([0, 1], [0, 1], color="#888888", lw=1)
    left.set(title="error (solid) and announced error (dashed)", xlabel="t", ylabel="root mean square")
    middle.set(title="coverage of 90 % intervals", xlabel="t", ylim=(0, 1.02))
    right.set(title="raw (solid), spread of rms error (dotted)", xlabel="nominal", ylabel="observed coverage")
    left.legend(fontsize=8, frameon=False)
    return figure


def run(case: Burgers, members: int, seed: int, device: str) -> tuple[lab.Rows, Callable]:
    """Training, validation and test data are drawn from different seeds."""
    metrics, forecasts = forecasts_of(case, members, seed, device)
    return metrics, lambda: {
        "rollout": bands(forecasts, case),
        "spacetime": spacetime(forecasts, case),
        "calibration": reliability(forecasts, metrics["rms"]["factor"], case),
    }


def forecasts_of(case: Burgers, members: int, seed: int, device: str) -> tuple[lab.Rows, dict[str, Forecast]]:
    """Metrics and forecasts of every kind of data."""
    ensemble = trained_ensemble(case, draw(case, Kind(), case.trajectories, seed), members, seed, device).cpu()
    source = captured(case, case.coarse)
    validation = forecast(ensemble, source, draw(case, Kind(), case.trajectories, 1000 + seed))
    test = {name: draw(case, kind, case.trajectories, 2000 + seed) for name, kind in KINDS.items()}
    forecasts = {name: forecast(ensemble, source, data) for name, data in test.items()}
    return evaluate(forecasts, validation), forecasts


COLUMNS = (
    ["mae", "rmse"],
    ["factor", "crps", "spread_skill", "coverage_50", "coverage_90"],
    ["flagged", "rank_correlation"],
)
"""Errors, spread, and warnings from the first steps."""


def main() -> None:
    options = lab.options(__doc__, "burgers_uncertainty", ["cpu", "cuda"])
    case, members = replace(LINE, pretraining=1000, updates=300), MEMBERS
    if options.quick:
        case, members = replace(case, trajectories=8, pretraining=150, updates=20), 5
    if options.full:
        case = replace(case, pretraining=3000, updates=900)
    lab.study(options, lambda seed: run(case, members, seed, options.device), *COLUMNS)


if __name__ == "__main__":
    main()
