"""Find where a flow came from with a coarse solver that a network corrects.

The solvers of demos/burgers_correction.py: a reference on 512 cells, the coarse solver on 64, and the same with a correction
that was trained through it. Observed is the reference after 16, 32 and 50 steps, on coarse cells, without and with noise; the
force is known. The initial state is searched by L-BFGS from fluid at rest, through the coarse solver and through the
corrected one, for trajectories not seen in training.

    python demos/reconstruct_hybrid.py [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from burgers_correction import LINE, physics, reference_data
from common import arguments, require_cpu, save_figures, seed_table, train, write_metrics
from matplotlib.figure import Figure
from phi.field import Field
from phiml.nn import res_net

import phi_hybrid as ph
from phi_hybrid.bridge import flatten, unflatten

LBFGS = partial(torch.optim.LBFGS, max_iter=1, max_eval=26, line_search_fn="strong_wolfe")
STEPS, NOISE, ITERATIONS = (16, 32, 50), (0.0, 0.1), 20

Errors = dict[tuple[int, float, str], np.ndarray]
"""Steps, noise and solver ↦ ‖x − x*‖/‖x*‖, `(iteration, trajectory)`."""


def trained(data: ph.Trajectories, seed: int, share: float) -> dict[str, Callable]:
    """The coarse solver, bare and corrected; about a minute and a half of training."""
    torch.manual_seed(seed)
    source = physics(LINE, LINE.coarse)
    solver = ph.HybridSolver(source, res_net(2, 1, list(LINE.filters), in_spatial=1, periodic=True))
    train(solver, data, 1, int(1000 * share), 2e-3, LINE.batch, seed)
    train(solver, data, 8, int(300 * share), 5e-4, LINE.batch, seed)
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
    found, truth = (u.values.numpy([*dims, "x", "vector"])[..., 0] for u, dims in (
        (path, ("iteration", "trajectory")), (data.initial_state, ("trajectory",))
    ))  # fmt: skip
    return np.linalg.norm(found - truth, axis=-1) / np.linalg.norm(truth, axis=-1)


def run(seed: int, quick: bool) -> Errors:
    """Training, and errors of all searches on held-out trajectories."""
    training, test = reference_data(LINE, seed)
    solvers = trained(training, seed, 0.4 if quick else 1.0)
    print(ph.evaluate(solvers, test).table((50,)))
    return compare(solvers, test, (32,) if quick else STEPS, 12 if quick else ITERATIONS, seed)


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
    options = arguments(__doc__, "reconstruct_hybrid").parse_args()
    require_cpu(options.device)
    torch.set_num_threads(1)
    began, per_seed = time.perf_counter(), []
    for seed in range(options.seed, options.seed + options.seeds):
        errors = run(seed, options.quick)
        per_seed.append(summary(errors))
        if seed == options.seed:
            save_figures(options.out, {"errors": figure(errors)})
    for name in per_seed[0]["source"]:
        print(f"\n{seed_table(per_seed, [name])}")
    write_metrics(options.out, per_seed, (time.perf_counter() - began) / options.seeds)


if __name__ == "__main__":
    main()
