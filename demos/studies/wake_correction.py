"""Correct a coarse solver of the flow past a cylinder with a network that is trained through the solver.

Solver in the loop (Um et al. 2020): the reference has 256×128 cells and MacCormack advection, whose numerical viscosity
is small enough for the Reynolds number to matter; the coarse solver has 64×32 cells and semi-Lagrangian advection. Re is
100·2^k (k = 0…5) in training, 100·2^(k + ¼) (k = 0…4) in the validation, by which the recipe was chosen, 150·2^k
(k = 0…4) in the test, and an input of the network. After a shared one-step training, equal numbers of further updates are
spent on one step, with and without noise, and on up to 4, 16 and 32 unrolled steps; `one_step_long` takes as long as the
last, and `network_alone` learns to replace the solver. Trainings are kept in DIR and go on where they were.
The long version trains on Re = 100·2^(k/2) (k = 0…10), by Muon, and looks at 1000 steps.

    python demos/studies/wake_correction.py [--quick | --full] [--seed N] [--seeds N] [--tune] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path

import lab
import matplotlib.pyplot as plt
import numpy as np
import torch
from flows import (
    DENSE_RE,
    REFERENCE,
    SOURCE,
    TEST_RE,
    TRAINING_RE,
    VALIDATION_RE,
    WAKE,
    WAKE_DT,
    wake_data,
    wake_physics,
)
from matplotlib.figure import Figure
from muon import Muon
from phi import math
from phi.field import Field
from phi.geom import Box, UniformGrid
from phi.math import Tensor, batch, spatial, wrap

import phi_hybrid as ph
from phi_hybrid.evaluation import Evaluation, quantities
from phi_hybrid.pde.navier_stokes import numerical_viscosity
from phi_hybrid.studies import Stage, StudyResult

Sets = dict[str, ph.Trajectories]
STAGES: dict[str, dict[int, float]] = {
    "one_step": {1: 1.0},
    "unrolled_4": {4: 1.0},
    "unrolled_16": {4: 0.57, 16: 0.43},
    "unrolled_32": {4: 0.57, 16: 0.29, 32: 0.14},
}
"""Method → unrolled steps → share of its updates, after the shared one-step training."""
RATES = {1: 1e-3, 4: 1e-3, 16: 5e-4, 32: 3e-4}
"""Unrolled steps → learning rate at the start of a stage."""
LONG = {1: (6000, 5e-3), 4: (1500, 2e-3), 16: (500, 1e-3), 32: (120, 5e-4)}
"""Unrolled steps → updates and rate of the long version, one after the other."""
FACTORS, SIGMAS = (1 / 3, 1, 3), (1e-3, 1e-2, 3e-2, 1e-1)
"""On the learning rates after the shared training, and noise, that are tried by --tune."""
SHOWN = 2
"""Test trajectory in the figures, Re = 600."""


@dataclass(frozen=True)
class Case:
    """Sizes of one experiment."""

    fine: int = 256
    coarse: int = 64
    spin_up: int = 500  # steps on half the fine resolution, until vortices are shed
    settle: int = 100  # steps on the fine grid before the first stored one
    steps: int = 500
    horizon: int = 250  # steps of the test
    pretraining: int = 1500  # updates, one step, twice the batch
    updates: int = 800  # of each method, from the same weights on
    long: int = 10000  # of `one_step_long`, in the time of the longest unrolling
    batch: int = 6
    width: int = 48
    sigma: float = 1e-3  # of the noise, in standard deviations of the data
    compiled: bool = True  # the physics in the training
    training_re: tuple[float, ...] = TRAINING_RE

    @property
    def reynolds(self) -> dict[str, tuple[float, ...]]:
        """Reynolds numbers of each set."""
        return {"training": self.training_re, "validation": VALIDATION_RE, "test": TEST_RE}

    def methods(self) -> dict[str, list[Stage]]:
        """Stages of each method. Those that begin alike are trained together."""
        start = Stage(ph.Unrolled(1), self.pretraining, lr=2e-3, batch_size=2 * self.batch)
        found = {}
        for name, shares in STAGES.items():
            found[name] = [start, *(self.stage(n, round(share * self.updates)) for n, share in shares.items())]
        found["noise"] = [start, lab.noisy(self.stage(1, self.updates), self.sigma)]
        return {**found, "one_step_long": [start, self.stage(1, self.long)]}

    def candidates(self) -> dict[str, list[Stage]]:
        """One step and four at several rates, one step with several levels of noise."""
        start, found = self.methods()["one_step"][0], {}
        for steps in (1, 4):
            stage = self.stage(steps, self.updates)
            found |= {
                f"{steps} steps, rate {f * stage.lr:.2g}": [start, replace(stage, lr=f * stage.lr)] for f in FACTORS
            }
        return {**found, **{f"noise {s:g}": [start, lab.noisy(self.stage(1, self.updates), s)] for s in SIGMAS}}

    def stage(self, unrolled: int, updates: int) -> Stage:
        """Updates over so many steps, at the rate for these."""
        return Stage(ph.Unrolled(unrolled), updates, lr=RATES[unrolled], batch_size=self.batch)


@dataclass(frozen=True)
class LongCase(Case):
    """The long version: each method goes on from the one before it."""

    steps: int = 1000
    horizon: int = 1000
    training_re: tuple[float, ...] = DENSE_RE
    long: int = 15000

    def methods(self) -> dict[str, list[Stage]]:
        stages = [self.by_muon(n, *settings) for n, settings in LONG.items()]
        names = ["one_step", *(f"unrolled_{n}" for n in LONG if n > 1)]
        found = dict(zip(names, accumulate([stage] for stage in stages)))
        return {**found, "one_step_long": [stages[0], self.by_muon(1, self.long, LONG[1][1])]}

    def by_muon(self, unrolled: int, updates: int, rate: float) -> Stage:
        return Stage(ph.Unrolled(unrolled), updates, lr=rate, batch_size=self.batch, optimizer=Muon)


class Correction(torch.nn.Module):
    """Residual network that works on blocks of 2×2 cells: a quarter of the places, each seen twice as far.

    Args:
        channels: of velocity, Reynolds number and features, in this order.
        width: channels inside.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(4 * channels, width, 3, padding=1)
        self.blocks = torch.nn.ModuleList([block(width) for _ in range(3)])
        self.last = torch.nn.Conv2d(width, 4 * 2, 1)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """`(batch, channel, x, y)`: what corrects the velocity, from velocity, Reynolds number and features."""
        velocity, reynolds, features = seen[:, :2], seen[:, 2:3], seen[:, 3:]
        inside = torch.cat([velocity, torch.log(reynolds) / 2, features], 1)
        inside = self.first(torch.nn.functional.pixel_unshuffle(inside, 2))
        for residual in self.blocks:
            inside = inside + residual(inside)
        return torch.nn.functional.pixel_shuffle(self.last(torch.relu(inside)), 2)


def block(width: int) -> torch.nn.Module:
    """Two convolutions, each after its activation."""
    layers = [torch.nn.Conv2d(width, width, 3, padding=1) for _ in range(2)]
    return torch.nn.Sequential(torch.nn.ReLU(), layers[0], torch.nn.ReLU(), layers[1])


def places(cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the network is, which convolutions do not know.

    Share of the cylinder, smoothed over a cell; how near it is, 1 inside; coordinates in [−1, 1].
    """
    across = round(cells * WAKE.width / WAKE.length)
    box = Box(x=WAKE.width, y=WAKE.length)
    centres = UniformGrid(spatial(x=across, y=cells), box).center
    distance = WAKE.obstacle.geometry.approximate_signed_distance(centres)
    solid = math.sigmoid(-2 * distance * cells / WAKE.length)
    near = math.exp(-2 * math.maximum(distance, 0) / WAKE.diameter)
    return solid, near, (centres - box.center) / box.half_size


@dataclass(frozen=True)
class Study:
    """Trainings of the network with the solver, or in its place."""

    case: Case
    data: Sets
    options: lab.Options

    def run(
        self, methods: dict[str, list[Stage]], coupling: ph.coupling.Coupling, folder: str, test: str = "test"
    ) -> StudyResult:
        """All methods and seeds."""
        case = self.case
        source, compiled = (wake_physics(case.coarse, SOURCE, compile=c) for c in (False, case.compiled))
        features = places(case.coarse)

        def hybrid(seed: int) -> ph.HybridSolver:
            network = Correction(7, case.width).to(memory_format=torch.channels_last)  # faster
            return ph.HybridSolver(compiled, network, coupling, features=features).to(self.options.device)

        data = self.data["training"], self.data[test]
        settings = {**lab.study_settings(self.options, quick=1), "folder": self.options.out / folder, "budget": 1}
        settings |= dict(steps=case.horizon, summary=lambda e: e.summary((50,)))
        return ph.study({"source": source, "hybrid": hybrid}, data, methods, **settings)

    def trained(self) -> list[StudyResult]:
        """With the solver, by all methods, and in its place."""
        methods = self.case.methods()
        alone = {"network_alone": methods["unrolled_4"]}
        return [
            self.run(methods, ph.Additive(), "training"),
            self.run(alone, ph.coupling.Replacement(), "network_alone"),
        ]


def wake_measures(trajectory: Field, reference: Field) -> dict[str, float]:
    """Numbers that a wake is judged by besides point-wise errors, mean over the test trajectories.

    Strouhal number and mean profile 2.5 diameters behind the axis of the cylinder; log-spectral distance of the
    fluctuations; divergence as max |∇·u|·dx / max|u|.
    """
    own, true = (components(t) for t in (trajectory, reference))
    strouhal = [strouhal_number(c) for c in (own, true)]
    profile = [c["y"][..., c["y"].shape[-1] // 2].mean(1) for c in (own, true)]
    spectra = [wake_spectrum(c["y"] - true["y"].mean(1, keepdims=True)) for c in (own, true)]
    return {
        "strouhal": float(strouhal[0].mean()),
        "strouhal_error": float(np.abs(strouhal[0] / strouhal[1] - 1).mean()),
        "profile_error": float(np.abs(profile[0] - profile[1]).mean()),
        "spectrum_error": float(np.abs(np.log10(spectra[0] / spectra[1])).mean()),
        "divergence": quantities.largest_divergence(trajectory.time[-1], WAKE.obstacle),
    }


def components(velocity: Field) -> dict[str, np.ndarray]:
    """Component → `(trajectory, time, x, y)`."""
    return {d: velocity.values[{"~vector": d}].numpy("trajectory,time,x,y") for d in "xy"}


def probe(velocity: dict[str, np.ndarray]) -> np.ndarray:
    """Transverse velocity on the centre line half way down the box, `(trajectory, time)`."""
    across = velocity["x"]
    return across[:, :, across.shape[2] // 2, across.shape[3] // 2]


def strouhal_number(velocity: dict[str, np.ndarray], dt: float = WAKE_DT) -> np.ndarray:
    """Frequency of the vortices in units of speed over diameter, `(trajectory)`."""
    return quantities.strouhal_number(probe(velocity), dt, WAKE.diameter, WAKE.speed)


def wake_spectrum(fluctuation: np.ndarray) -> np.ndarray:
    """Energy over the wavenumber along the stream behind the cylinder, `(trajectory, wavenumber)`."""
    behind = fluctuation[..., fluctuation.shape[-1] * 3 // 8 :]
    windowed = behind * np.hanning(behind.shape[-1])
    return (np.abs(np.fft.rfft(windowed)) ** 2).mean((1, 2))[:, 1:]


def measured(study: Study, found: list[StudyResult], seed: int) -> tuple[lab.Rows, Callable]:
    """All methods on one seed: numbers, and figures to draw."""
    solvers, rows, histories, test, horizon = {}, {}, {}, study.data["test"], study.case.horizon
    for result in found:
        solvers |= {row: result.solver(row, seed) for row in result.runs[seed].rows}
        rows |= result.runs[seed].rows
        histories |= result.runs[seed].histories
    reference = test.trajectory.time[: horizon + 1]
    evaluation, validation = (ph.evaluate(solvers, study.data[name], horizon) for name in ("test", "validation"))
    rollouts, metrics = {"reference": reference}, {m: dict(row) for m, row in rows.items()}
    for method, row in metrics.items():
        for name, errors in (("relative", evaluation.mae), ("relative_validation", validation.mae)):
            row[name] = float(errors[method].mean() / errors["source"].mean())
        row["mae_Re"] = {f"{re:.0f}": float(m) for re, m in zip(TEST_RE, evaluation.mae[method].mean(1))}
        if row["blow_up"] == 0:
            solver = solvers[method].to("cpu")
            rollouts[method] = ph.rollout(solver, test.initial_state, horizon, *test.step_inputs)
            row.update(wake_measures(rollouts[method], reference))
    return metrics, lambda: figures(evaluation, rollouts, histories, study.options.out)


def describe_reference(case: Case, data: Sets) -> None:
    """Prints what shows that Re matters and that vortices are shed."""
    print("numerical viscosity of the reference for waves of one diameter, and ν at the lowest and the highest Re:")
    added = numerical_viscosity(REFERENCE, WAKE.length / 256, WAKE_DT, WAKE.speed, WAKE.diameter)
    print(f"  {added:.4f}, {WAKE.viscosity(TRAINING_RE[0]):.4f}, {WAKE.viscosity(TRAINING_RE[-1]):.4f}")
    for name, numbers in case.reynolds.items():
        velocity = components(data[name].trajectory)
        for re, st, s in zip(numbers, strouhal_number(velocity), probe(velocity)):
            print(f"  {name} Re {re:6.0f}: Strouhal number {st:.3f}, transverse velocity ±{np.abs(s).max():.2f}")


def strouhal_by_resolution(reynolds: float, resolutions: tuple[int, ...] = (128, 256, 512)) -> None:
    """Prints the Strouhal number of the reference solver on several grids, at the same CFL number."""
    re, state = wrap([reynolds], batch("trajectory")), WAKE.disturbed(resolutions[0], 1)
    for cells in resolutions:
        dt = WAKE_DT * 256 / cells
        block = ph.capture(WAKE.step(dt, WAKE.substeps(dt, cells, reynolds), REFERENCE))
        settle = 500 if cells == resolutions[0] else 150
        state = ph.repeat(block, state.at(WAKE.grid(cells)), round(settle * WAKE_DT / dt), re)
        flow = ph.rollout(block, state, round(250 * WAKE_DT / dt), re)
        found = float(strouhal_number(components(flow), dt)[0])
        print(f"Re {reynolds:.0f}, {cells}×{cells // 2} cells: Strouhal number {found:.4f}")
        state = flow.time[-1]


def figures(evaluation: Evaluation, rollouts: dict[str, Field], histories: dict, out: Path) -> dict[str, Figure]:
    """Figures by name; the animation is written at once."""
    trajectories = {k: v for k, v in rollouts.items() if k in ("reference", "source", "unrolled_32")}
    show = dict(reference="reference", dt=WAKE_DT, quantity="vorticity", example=SHOWN)
    title = f"Wake of a cylinder, unseen Re = {TEST_RE[SHOWN]:.0f}, vorticity"
    curves, (panels, axes) = evaluation.curves(), plt.subplots(1, len(TEST_RE), figsize=(16, 3.4))
    largest = max(float(curve[torch.isfinite(curve)].max()) for curve in curves.values())
    for n, (re, ax) in enumerate(zip(TEST_RE, axes)):
        ph.plot.errors({name: curve[n] for name, curve in curves.items()}, dt=WAKE_DT, ax=ax)
        ax.set(title=f"Re {re:.0f}", ylim=(largest / 300, 1.2 * largest))
    panels.tight_layout()
    lab.animate(trajectories, out, **show, stride=4, fps=12)
    return {
        "rollout": ph.plot.rollout(trajectories, **show, times=4, title=title),
        "errors": ph.plot.errors(curves, dt=WAKE_DT),
        "errors_Re": panels,
        "training": ph.plot.history(histories),
    }


def sets(case: Case) -> Sets:
    """Trajectories of all Reynolds numbers, which are generated together."""
    numbers = [re for part in case.reynolds.values() for re in part]
    everything = iter(wake_data(numbers, case.fine, case.coarse, case.spin_up, case.settle, case.steps))
    return {name: ph.Trajectories.concat(*islice(everything, len(part))) for name, part in case.reynolds.items()}


def main() -> None:
    options = lab.options(
        __doc__,
        "wake_correction",
        ["cpu", "cuda"],
        threads=2,
        convergence=dict(action="store_true", help="Strouhal number on 128, 256, 512 cells, and no more"),
        tune=dict(action="store_true", help="rates and noise, compared on the validation, and no more"),
    )
    if options.convergence:
        strouhal_by_resolution(300.0)
        return
    if options.full and options.tune:
        raise SystemExit("--full is one recipe, chosen by hand on the validation: leave out --tune")
    case = LongCase() if options.full else Case()
    if options.quick:
        small = dict(fine=128, spin_up=250, settle=30, steps=80, horizon=80, pretraining=250, updates=30, long=60)
        case = replace(case, **small, compiled=False)
    study = Study(case, sets(case), options)
    if options.tune:
        tried = study.run(case.candidates(), ph.Additive(), "tuning", "validation")
        print(tried.table(["mae", "mae_50", "nrmse", "blow_up", "seconds"]))
        return
    describe_reference(case, study.data)
    columns = ["relative", "relative_validation", "mae", "mae_50", "nrmse", "strouhal_error", "seconds", "blow_up"]
    found = study.trained()
    lab.study(options, lambda seed: measured(study, found, seed), columns)


if __name__ == "__main__":
    main()
