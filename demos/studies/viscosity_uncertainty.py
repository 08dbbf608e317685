"""An ensemble whose spread knows of viscosities that its members were not trained for.

Members of an ensemble over seeds see nothing of a viscosity that nobody tells them, see `burgers_uncertainty.py`. Here are
four ensembles of five members with equal numbers of updates, on viscosities between those of the training and beyond:

- `one`: today's. Solver and training at ν = 0.01, other initial weights.
- `own`: every member believes in a viscosity of its own, in its solver and in its training data.
- `told`: solver and network get the viscosity as an input; trained on all of them.
- `told, own range`: the same, each member trained on three neighbouring viscosities.

    python demos/studies/viscosity_uncertainty.py --seeds 3 [--quick] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import lab
import matplotlib.pyplot as plt
import numpy as np
import torch
from burgers_uncertainty import Kind, draw, forecast, scores
from flows import LINE, Burgers
from matplotlib.figure import Figure
from phi.field import Field
from phi.math import Tensor, batch, wrap
from phi.torch.flow import advect, diffuse, res_net

import phi_hybrid as ph
from phi_hybrid.evaluation import Spread

MEMBERS = 5
KNOWN = tuple(float(v) for v in np.geomspace(0.005, 0.04, MEMBERS))
"""Viscosities of the training."""
INSIDE, OUTSIDE = (0.01, 0.03), (0.003, 0.06, 0.1)
"""Those of the test, never trained on but for ν = 0.01 by `one`."""
COLUMNS = ["rmse", "crps", "spread_skill", "coverage_50", "coverage_90"]


drawn = cache(draw)


def solver_step(believed: float | None = None) -> ph.PhysicsBlock:
    """Coarse solver with the viscosity that it is given, or with the one that it believes in whatever it is given."""

    def step(u: Field, force: Field, viscosity: Tensor) -> Field:
        u = advect.mac_cormack(u, u, LINE.dt)
        return diffuse.explicit(u, viscosity if believed is None else believed, LINE.dt) + LINE.dt * force

    return ph.capture(step)


@dataclass(frozen=True)
class Belief:
    """How one member is made and trained."""

    viscosities: Sequence[float]
    """Of its training data."""
    solver: float | None
    """Viscosity of its solver; that of the data without."""

    def untrained(self, physics: ph.PhysicsBlock, case: Burgers) -> ph.HybridSolver:
        """The network sees the viscosity if the solver does."""
        told = self.solver is None
        network = res_net(3 if told else 2, 1, list(case.filters), in_spatial=1, periodic=True)
        return ph.HybridSolver(physics, network, sees=(0, 1) if told else 0)


def neighbours(number: int) -> tuple[float, ...]:
    """Three viscosities of the training around one of them."""
    first = min(max(number - 1, 0), MEMBERS - 3)
    return KNOWN[first : first + 3]


ENSEMBLES: dict[str, list[Belief]] = {
    "one": [Belief((LINE.viscosity,), LINE.viscosity)] * MEMBERS,
    "own": [Belief((viscosity,), viscosity) for viscosity in KNOWN],
    "told": [Belief(KNOWN, None)] * MEMBERS,
    "told, own range": [Belief(neighbours(n), None) for n in range(MEMBERS)],
}


def with_viscosity(data: ph.Trajectories, viscosities: Sequence[float]) -> ph.Trajectories:
    """The same trajectories with a viscosity each, behind the force."""
    (force,) = data.step_inputs
    return data.with_inputs(force, wrap(torch.tensor(viscosities), batch("trajectory")))


def trajectories(case: Burgers, viscosities: Sequence[float], count: int, seed: int) -> ph.Trajectories:
    """`count` trajectories, shared out among the viscosities; the initial states and forces do not depend on these."""
    parts, first = [], 0
    for number, viscosity in enumerate(viscosities):
        last = count * (number + 1) // len(viscosities)
        own = drawn(case, Kind(viscosity=viscosity), count, seed)[first:last]
        parts.append(with_viscosity(own, [viscosity] * (last - first)))
        first = last
    return ph.Trajectories.concat(*parts)


def trained(case: Burgers, beliefs: Sequence[Belief], seed: int, data: Callable) -> ph.Ensemble:
    """Members that differ in their initial weights, the order of the windows, and their beliefs."""
    blocks = {belief.solver: solver_step(belief.solver) for belief in beliefs}
    members = []
    for number, belief in enumerate(beliefs):
        torch.manual_seed(100 * seed + number)
        members.append(belief.untrained(blocks[belief.solver], case))
        stages = [(1, case.pretraining, 2e-3, case.batch), (4, case.updates, 5e-4, case.batch)]
        lab.train(members[-1], data(belief.viscosities), stages, 100 * seed + number)
    return ph.Ensemble(members)


def run(case: Burgers, seed: int) -> lab.Rows:
    """`ensemble, ν` → numbers."""
    known: dict[tuple[float, ...], ph.Trajectories] = {}

    def data(viscosities: Sequence[float]) -> ph.Trajectories:
        if viscosities not in known:
            known[viscosities] = trajectories(case, viscosities, case.trajectories, seed)
        return known[viscosities]

    tests = {v: trajectories(case, (v,), case.trajectories, 2000 + seed) for v in (*INSIDE, *OUTSIDE)}
    source, found = solver_step(), {}
    for name, beliefs in ENSEMBLES.items():
        ensemble = trained(case, beliefs, seed, data)
        for viscosity, test in tests.items():
            found[f"{name}, {viscosity:g}"] = scores(forecast(ensemble, source, test))
    return found


def median_and_range(per_seed: Sequence[lab.Rows], name: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Over the seeds, `(viscosity,)` and `(2, viscosity)`, in the order of the viscosities."""
    spreads = [
        Spread(tuple(rows[f"{name}, {viscosity:g}"][column] for rows in per_seed))
        for viscosity in sorted((*INSIDE, *OUTSIDE))
    ]
    return np.array([s.median for s in spreads]), np.array([[s.lowest for s in spreads], [s.highest for s in spreads]])


def curves(per_seed: Sequence[lab.Rows]) -> Figure:
    """Coverage, spread over error, error and CRPS over the viscosity of the test."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
    viscosities = sorted((*INSIDE, *OUTSIDE))
    titles = {"coverage_90": "coverage of 90 % intervals", "spread_skill": "spread over error", "rmse": "root mean square error", "crps": "CRPS"}  # fmt: skip
    for ax, (column, title) in zip(axes, titles.items()):
        ax.axvspan(KNOWN[0], KNOWN[-1], color="#eeeeee", lw=0)
        for colour, name in enumerate(ENSEMBLES):
            middle, (low, high) = median_and_range(per_seed, name, column)
            ax.plot(viscosities, middle, "o-", ms=3, color=f"C{colour}", label=name)
            ax.fill_between(viscosities, low, high, color=f"C{colour}", alpha=0.15, lw=0)
        ax.set(xscale="log", xlabel="viscosity of the test", title=title)
    for ax, wanted in zip(axes, (0.9, 1.0)):
        ax.axhline(wanted, color="#888888", lw=1)
        ax.set_ylim(bottom=0)
    for ax in axes[2:]:
        ax.set_yscale("log")
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def main() -> None:
    options = lab.options(__doc__, "viscosity_uncertainty")
    case = replace(LINE, pretraining=200, updates=40)
    if options.quick:
        case = replace(case, trajectories=6, steps=40, pretraining=20, updates=5)
    if options.full:
        case = replace(case, pretraining=600, updates=120)
    per_seed = lab.study(options, lambda seed: (run(case, seed), dict), COLUMNS)
    lab.save_figures(options.out, {"viscosities": curves(per_seed)})


if __name__ == "__main__":
    main()
