"""Find where a flow came from with a coarse solver that a network corrects.

The Burgers solvers of flows.py: a reference on 512 cells, the coarse solver on 64, and the same with a correction
that was trained through it. Observed is the reference after 16, 32 and 50 steps, on coarse cells, without and with noise; the
force is known. The initial state is searched by L-BFGS from fluid at rest, through the coarse solver and through the
corrected one, for trajectories not seen in training.

    python demos/studies/reconstruct_hybrid.py [--quick] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lab
import matplotlib.pyplot as plt
import numpy as np
import torch
from flows import LINE
from matplotlib.figure import Figure
from phi.field import Field
from phi.torch.flow import res_net
from reconstruct_burgers import LBFGS

import phi_hybrid as ph
from phi_hybrid.bridge import flatten, unflatten

STEPS, NOISE, ITERATIONS = (16, 32, 50), (0.0, 0.1), 20

Errors = dict[tuple[int, float, str], np.ndarray]
"""Steps, noise and solver ↦ ‖x − x*‖/‖x*‖, `(iteration, trajectory)`."""


def trained(data: ph.Trajectories, seed: int, share: float) -> dict[str, Callable]:
    """The coarse solver, bare and corrected; about a minute and a half of training."""
    torch.manual_seed(seed)
    source = LINE.physics(LINE.coarse)
    solver = ph.HybridSolver(source, res_net(2, 1, list(LINE.filters), in_spatial=1, periodic=True))
    stages = [(1, int(1000 * share), 2e-3, LINE.batch), (8, int(300 * share), 5e-4, LINE.batch)]
    lab.train(solver, data, stages, seed)
    return {"source": source, "hybrid": solver}


def noisy(state: Field, level: float, seed: int) -> Field:
    """With white noise whose standard deviation is a part of the root mean square of the state."""
    (values,), layout = flatten(state)
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed), dtype=values.dtype)
    return unflatten(layout, [values + level * values.square().mean().sqrt() * noise])


def search(solver: Callable, data: ph.Trajectories, steps: int, observed: Field, iterations: int) -> np.ndarray:
    """Errors of the iterates."""
    settings = dict(times=(steps,), optimizer=LBFGS, iterations=iterations, keep_path=True)
    try:
        path = ph.reconstruct(solver, observed, 0 * data.initial_state, *data.step_inputs, **settings).path
    except ph.NonFiniteError as error:
        print(f"stopped: {error}")
        path = error.trajectory.path
    found = path.values.numpy("iteration,trajectory,x,vector")[..., 0]
    truth = data.initial_state.values.numpy("trajectory,x,vector")[..., 0]
    return np.linalg.norm(found - truth, axis=-1) / np.linalg.norm(truth, axis=-1)


def run(seed: int, quick: bool) -> tuple[lab.Rows, Callable]:
    training, test = LINE.data(seed)
    solvers = trained(training, seed, 0.4 if quick else 1.0)
    print(ph.evaluate(solvers, test).table((50,)))
    errors = compare(solvers, test, (32,) if quick else STEPS, 12 if quick else ITERATIONS, seed)
    return summary(errors), lambda: {"errors": figure(errors)}


def compare(
    solvers: dict[str, Callable], test: ph.Trajectories, steps: Sequence[int], iterations: int, seed: int
) -> Errors:
    errors: Errors = {}
    for step in steps:
        for level in NOISE:
            observed = noisy(test.trajectory.time[step], level, seed)
            for name, solver in solvers.items():
                errors[step, level, name] = search(solver, test, step, observed, iterations)
    return errors


def summary(errors: Errors) -> dict[str, dict[str, float]]:
    """Median over the trajectories in the end and at its smallest, which the search itself cannot know; how many gain."""
    rows: dict[str, dict[str, float]] = {"source": {}, "hybrid": {}}
    for (steps, level, name), found in errors.items():
        medians, case = np.median(found, 1), f"x_{steps}_{level:g}"
        rows[name][case], rows[name][f"{case}_best"] = float(medians[-1]), float(medians.min())
    for steps, level, name in errors:
        gains = errors[steps, level, "hybrid"][-1] < errors[steps, level, "source"][-1]
        rows[name][f"gain_{steps}_{level:g}"] = float(gains.mean()) if name == "hybrid" else 0.0
    return rows


def figure(errors: Errors) -> Figure:
    """Error over the iterations, a panel per observation: median, and from the smallest to the largest."""
    steps, levels = (sorted({key[n] for key in errors}) for n in (0, 1))
    size = (3.3 * len(levels), 2.5 * len(steps))
    drawn, axes = plt.subplots(
        len(steps), len(levels), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for (step, level, name), found in errors.items():
        ax, colour = axes[steps.index(step)][levels.index(level)], {"source": "#D55E00", "hybrid": "#0072B2"}[name]
        ax.semilogy(np.median(found, 1), color=colour, label=name)
        ax.fill_between(range(len(found)), found.min(1), found.max(1), color=colour, alpha=0.15, linewidth=0)
        ax.set_title(f"step {step}, noise {100 * level:g} %", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("iteration of L-BFGS")
    for row in axes:
        row[0].set_ylabel("‖x − x*‖ / ‖x*‖")
    axes[0][0].legend(fontsize=8)
    return drawn


def main() -> None:
    options = lab.options(__doc__, "reconstruct_hybrid", long=False)
    steps = (32,) if options.quick else STEPS
    columns = [[f"{kind}_{n}_{level:g}" for kind in ("x", "gain") for level in NOISE] for n in steps]
    lab.study(options, lambda seed: run(seed, options.quick), *columns)


if __name__ == "__main__":
    main()
