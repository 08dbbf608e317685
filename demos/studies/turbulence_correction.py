"""Correct a coarse solver of two-dimensional turbulence with a network that is trained through the solver.

Kolmogorov flow: a sinusoidal force with four waves drives a periodic square of length 2π against a weak drag, as in
Kochkov et al. (2021). With --case decaying there is neither. The reference has 128² cells and four steps for each of the
coarse solver, which has 32². Trajectories of training, validation and test start from other random states; the recipe was
chosen on the validation. After a shared one-step training, equal numbers of further updates are spent on one step, with
and without noise, on 4 and on up to 16 unrolled steps, and the time of the latter on one step; `network_alone` learns to
replace the solver. The long version has four times the data and trains a wider network by Muon.

    python demos/studies/turbulence_correction.py [--case kolmogorov|decaying] [--quick | --full] [--seed N] [--seeds N]
        [--validation] [--tune] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import lab
import numpy as np
import torch
from matplotlib.figure import Figure
from muon import Muon
from phi.field import Field
from phi.torch.flow import advect

import phi_hybrid as ph
from phi_hybrid import quantities
from phi_hybrid.evaluation import Evaluation
from phi_hybrid.pde import navier_stokes as ns
from phi_hybrid.steps import Step
from phi_hybrid.studies import Stage, StudyResult

VISCOSITY, DT, WAVES = 2e-3, 0.05, 4
METHODS = {"one_step": (1, 1), "unrolled_4": (4, 4), "unrolled_16": (4, 16)}
"""Method → unrolled steps in the first and in the second part of its updates, after the shared one-step training."""
RATES = 3e-3, 1e-3
"""Learning rates at the start of the two parts."""
LONG = {1: (6000, 4e-3), 4: (2800, 3e-3), 16: (800, 1e-3)}
"""Unrolled steps → updates and rate of the long version, one after the other."""
TRAINING, VALIDATION, TEST = 0, 1000, 2000
"""Seeds of the initial states, the same for all seeds of a study."""
FACTORS, SIGMAS = (1 / 3, 1, 3), (1e-3, 1e-2, 3e-2, 1e-1)
"""On the learning rates of the second and third part, and noise, that are tried by --tune."""


@dataclass(frozen=True)
class Case:
    """Sizes of one experiment."""

    force: float = 1.0  # amplitude
    drag: float = 0.1
    fine: int = 128
    coarse: int = 32
    every: int = 4  # fine steps per coarse step
    spin_up: int = 100  # coarse steps before the first stored one
    trajectories: int = 16  # of training
    steps: int = 160
    held_out: int = 8  # trajectories of validation and test, each
    horizon: int = 200  # steps of these
    pretraining: int = 3000  # updates, one step
    updates: tuple[int, int] = 1400, 400  # of each method, from the same weights on, in two parts
    long: int = 9000  # updates of `one_step_long`, in about the time of `unrolled_16`
    batch: int = 4  # windows, twice as many of one step
    width: int = 32
    sigma: float = 1e-2  # of the noise, in standard deviations of the data

    def methods(self) -> dict[str, list[Stage]]:
        """Stages of each method. Those that begin alike are trained together."""
        start = self.stage(1, self.pretraining, 4e-3)
        found = {m: [start, *map(self.stage, steps, self.updates, RATES)] for m, steps in METHODS.items()}
        found["noise"] = [start, *(lab.noisy(stage, self.sigma) for stage in found["one_step"][1:])]
        return {**found, "one_step_long": [start, self.stage(1, self.long, RATES[0])]}

    def candidates(self) -> dict[str, list[Stage]]:
        """One step and four at several rates, one step with several levels of noise."""
        methods, found = self.methods(), {}
        for name in ("one_step", "unrolled_4"):
            start, *others = methods[name]
            for factor in FACTORS:
                rates = [replace(stage, lr=factor * stage.lr) for stage in others]
                found[f"{name}, {factor:.2g} × rates"] = [start, *rates]
        start, *others = methods["one_step"]
        return {**found, **{f"noise {s:g}": [start, *(lab.noisy(stage, s) for stage in others)] for s in SIGMAS}}

    def stage(self, unrolled: int, updates: int, rate: float) -> Stage:
        """So many updates over so many steps."""
        batch = 2 * self.batch if unrolled == 1 else self.batch
        return Stage(ph.Unrolled(unrolled), updates, lr=rate, batch_size=batch)


@dataclass(frozen=True)
class LongCase(Case):
    """The long version: each method goes on from the one before it, or with one step for as long as the last one takes."""

    trajectories: int = 64
    width: int = 48
    long: int = 14000  # updates of `one_step_long` after those of `one_step`

    def methods(self) -> dict[str, list[Stage]]:
        stages = [self.stage(n, *settings) for n, settings in LONG.items()]
        found = dict(zip(METHODS, accumulate([stage] for stage in stages)))
        return {**found, "one_step_long": [stages[0], self.stage(1, self.long, RATES[0])]}

    def stage(self, unrolled: int, updates: int, rate: float) -> Stage:
        return replace(super().stage(unrolled, updates, rate), optimizer=Muon)


CASES = {
    "kolmogorov": Case(),
    "decaying": Case(force=0.0, drag=0.0, spin_up=30, pretraining=1500, updates=(700, 200), long=4500, sigma=3e-2),
}


class Correction(torch.nn.Module):
    """Residual network of products on blocks of 2×2 cells: a quarter of the places, each seen twice as far.

    What a coarse solver leaves out, u·∇u of small scales and truncation errors, are products of velocities and their
    slopes; a network with a product in each block has not to build them of kinks.

    Args:
        channels: of velocity and features.
        width: channels inside.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = convolution(4 * channels, width)
        self.blocks = torch.nn.ModuleList([Product(width) for _ in range(3)])
        self.last = torch.nn.Conv2d(width, 4 * 2, 1)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """`(batch, channel, x, y)`: what corrects the velocity, from velocity and features."""
        inside = self.first(torch.nn.functional.pixel_unshuffle(seen, 2))
        for block in self.blocks:
            inside = inside + block(inside)
        return torch.nn.functional.pixel_shuffle(self.last(inside), 2)


class Product(torch.nn.Module):
    """Convolution of a · silu(b), a and b being convolutions of the input (gated linear unit, Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factors, self.last = convolution(width, 2 * width), convolution(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch, width, x, y)`, in and out."""
        a, b = self.factors(x).chunk(2, 1)
        return self.last(a * torch.nn.functional.silu(b))


def convolution(inputs: int, outputs: int) -> torch.nn.Module:
    """3×3, periodic."""
    return torch.nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular")


def hybrid(case: Case, source: ph.PhysicsBlock, coupling: ph.coupling.Coupling) -> ph.HybridSolver:
    """The coarse solver with an untrained network, which is told the force: convolutions do not know where they are."""
    force = ns.kolmogorov_force(ns.periodic_square(case.coarse), WAVES, case.force).values[{"~vector": "x"}]
    network = Correction(3, case.width).to(memory_format=torch.channels_last)  # faster
    return ph.HybridSolver(source, network, coupling, features=(force,))


# --- data ---


def physics(case: Case, cells: int, dt: float) -> ph.PhysicsBlock:
    """The solver on this many cells per dim: MacCormack advection, explicit diffusion, projection."""
    grid = ns.periodic_square(cells)
    substeps = ns.diffusion_substeps(VISCOSITY, dt, float(grid.dx.vector["x"]), 2)
    force = ns.kolmogorov_force(grid, WAVES, case.force)
    flow = ns.navier_stokes_step(dt, substeps, advect.mac_cormack, force, case.drag)
    return ph.capture(lambda velocity: flow(velocity, VISCOSITY))


def trajectories(case: Case, count: int, steps: int, seed: int) -> ph.Trajectories:
    """So many trajectories of the reference after the spin-up, coarsened."""
    fine = physics(case, case.fine, DT / case.every)
    start = ns.divergence_free_noise(ns.periodic_square(case.fine), count, 4, 1.5, seed)
    start = ph.repeat(fine, start, case.spin_up * case.every)
    return ph.Trajectories.generate(
        fine,
        start,
        steps,
        coarsen=case.fine // case.coarse,
        every=case.every,
        metadata={"dt": DT, "viscosity": VISCOSITY, "seed": seed},
    )


def training_data(case: Case) -> ph.Trajectories:
    """Trajectories to train on, and all that follow from them by symmetry."""
    return with_symmetries(trajectories(case, case.trajectories, case.steps, TRAINING))


def held_out_data(case: Case, seed: int = TEST) -> ph.Trajectories:
    """Trajectories to test on, or to choose by."""
    return trajectories(case, case.held_out, case.horizon, seed)


def with_symmetries(data: ph.Trajectories) -> ph.Trajectories:
    """Trajectories and what else must be solutions: mirrored in x and half a wave up in y, turned by π, and both."""
    half = data.states[0].shape[3] // (2 * WAVES)
    turned = reflected(data, "xy")
    return ph.Trajectories.concat(data, reflected(data, "x", half), turned, reflected(turned, "x", half))


def reflected(data: ph.Trajectories, dims: str, up: int = 0) -> ph.Trajectories:
    """Velocities on the faces of a periodic square with some dims reversed, then moved up in y by so many cells."""
    axes, states = {"x": 2, "y": 3}, []
    for own, values in zip("xy", data.states):
        values = values.flip([axes[d] for d in dims])
        if own in dims:  # the lower face of a cell has become its upper one
            values = -values.roll(1, axes[own])
        states.append(values.roll(up, axes["y"]))
    return replace(data, states=tuple(states))


# --- what is measured ---


CORRELATION = ph.metrics.Correlation(of=ph.capture(quantities.vorticity))
"""Of the vorticity."""


def spectrum_error(trajectory: Field, reference: Field) -> float:
    """Mean |log₁₀ E/E_ref| over the wavenumbers of the second half of the time."""
    half = trajectory.shape.get_size("time") // 2
    (_, own), (_, true) = (ph.plot.energy_spectrum(t.time[half:], complete=False) for t in (trajectory, reference))
    return float(np.abs(np.log10(own[1:] / true[1:])).mean())


def numbers(evaluation: Evaluation) -> lab.Rows:
    """Summary, and how many times as `longer` as the source the vorticity stays correlated (> 0.8)."""
    rows = evaluation.summary((40,), (0.8, 0.95), correlation="vorticity", dt=DT)
    return {name: {**row, "longer": row["time_to_0.8"] / rows["source"]["time_to_0.8"]} for name, row in rows.items()}


def flow_numbers(solvers: Mapping[str, Step], test: ph.Trajectories) -> dict[str, dict[str, float]]:
    """Distance of the spectra, and divergence at the end as max |∇·u|·dx / max|u|; infinite after a blow-up."""
    found = {}
    for method, solver in solvers.items():
        try:
            trajectory = ph.rollout(solver.to("cpu"), test.initial_state, test.steps)
        except (ph.NonFiniteError, ph.SolveError):
            found[method] = {"spectrum_error": np.inf, "divergence": np.inf}
            continue
        divergence = quantities.largest_divergence(trajectory.time[-1])
        found[method] = {"spectrum_error": spectrum_error(trajectory, test.trajectory), "divergence": divergence}
    return found


def study(
    case: Case,
    data: tuple[ph.Trajectories, ph.Trajectories],
    methods: dict[str, list[Stage]],
    coupling: ph.coupling.Coupling,
    device: str,
    **settings: Any,
) -> StudyResult:
    """Trainings of the network with the solver, or in its place."""
    source = physics(case, case.coarse, DT)
    solvers = {"source": source, "hybrid": lambda seed: hybrid(case, source, coupling).to(device)}
    measures = dict(metrics={"vorticity": CORRELATION}, summary=numbers, extra=flow_numbers, dt=DT)
    return ph.study(solvers, data, methods, **measures, **settings)


def figures(test: ph.Trajectories, found: StudyResult, options: lab.Options) -> dict[str, Figure]:
    """Figures of the first seed by name; the animation is written at once."""
    rollouts = {"reference": test.trajectory}
    for name, row in found.runs[options.seed].rows.items():
        if row["blow_up"] == 0:
            solver = found.solver(name, options.seed).to("cpu")
            rollouts[name] = ph.rollout(solver, test.initial_state, test.steps)
    shown = {k: rollouts[k] for k in ("reference", "source", "unrolled_16") if k in rollouts}
    show = dict(reference="reference", dt=DT, quantity="vorticity")
    correlation = found.curves("vorticity", start=1.0)
    lab.animate(shown, options.out, **show, stride=2, fps=15)
    title = f"{'Kolmogorov flow' if options.case == 'kolmogorov' else 'Decaying turbulence'}, unseen initial state"
    return {
        "rollout": ph.plot.rollout(shown, **show, times=5, title=title),
        "correlation": ph.plot.errors(correlation, dt=DT, quantity="correlation of vorticity", log=False),
        "spectrum": ph.plot.spectrum(rollouts, reference="reference"),
    }


def chosen_case(options: lab.Options) -> Case:
    """Sizes by the options."""
    if options.full and (options.tune or options.case == "decaying"):
        raise SystemExit("--full is one recipe, of Kolmogorov flow: leave out --tune and --case decaying")
    case = LongCase() if options.full else CASES[options.case]
    small = dict(fine=64, trajectories=3, held_out=3, spin_up=60, steps=80, horizon=80)
    return replace(case, **small) if options.quick else case


def main() -> None:
    options = lab.options(
        __doc__,
        "turbulence_correction",
        ["cpu", "cuda"],
        threads=2,
        case=dict(choices=list(CASES), default="kolmogorov"),
        validation=dict(action="store_true", help="held-out trajectories are those that the recipe was chosen on"),
        tune=dict(action="store_true", help="rates and noise, compared on the validation, and no more"),
    )
    case = chosen_case(options)
    if options.case == "decaying":
        options.out /= options.case
    settings = lab.study_settings(options, quick=0.06)
    if options.full:
        settings["budget"] = 1  # is in the case
    test = held_out_data(case, VALIDATION if options.validation or options.tune else TEST)
    data = training_data(case), test
    columns = [["mae", "mae_40", "nrmse", "vorticity", "time_to_0.8", "time_to_0.95", "blow_up"],
               ["longer", "spectrum_error", "divergence", "updates", "seconds"]]  # fmt: skip
    if options.tune:
        settings["folder"] = options.out / "tuning"
        print(study(case, data, case.candidates(), ph.Additive(), options.device, **settings).table(columns[0]))
        return
    found = study(case, data, case.methods(), ph.Additive(), options.device, **settings)
    settings["folder"] = options.out / "network_alone"
    alone = {"network_alone": case.methods()["unrolled_4"]}
    replaced = study(case, data, alone, ph.coupling.Replacement(), options.device, **settings)
    for result in (found, replaced):
        print(*map(result.table, columns), sep="\n\n")
    lab.save_figures(options.out, figures(test, found, options))


if __name__ == "__main__":
    main()
