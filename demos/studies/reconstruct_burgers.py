"""Find where a Burgers flow came from: rules and optimizers on a published problem.

128 cells on −1 … 1, time step 1/32, ν = 0.01/(128π), the truth −sin πx, which steepens to a shock at t = 1/π, between steps
10 and 11 (Thuerey et al., Physics-based Deep Learning, arXiv 2109.05237). Observed is the flow after 8 steps, when nothing is
lost yet, and after 16, as in the book; the search begins with fluid at rest. Reported is the mean square of what is left of the
observation, and ‖x − x*‖/‖x*‖, which the search does not see.

    python demos/studies/reconstruct_burgers.py [--quick] [--out DIR]
"""

from __future__ import annotations

import math as pymath
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lab
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from phi import math
from phi.field import CenteredGrid, Field
from phi.geom import Box
from phi.math import batch, channel, spatial, wrap
from phi.math.extrapolation import PERIODIC
from phi.physics import advect, diffuse

import phi_hybrid as ph
from phi_hybrid.inverse.flow import local_inverse
from phi_hybrid.optim import GaussNewton, GaussNewtonCG, HalfInverse, Inverse, TrustRegion

CELLS, DT = 128, 1 / 32
MEAN_SQUARE = 2 / CELLS
"""Of ½ Σ e². Learning rates of gradients are for the mean square."""


def step(u: Field) -> Field:
    """Diffusion, then advection."""
    u = diffuse.explicit(u, 0.01 / (CELLS * pymath.pi), DT)
    return advect.semi_lagrangian(u, u, DT)


def sine() -> Field:
    """The truth."""
    x = (torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS * 2 - 1
    values = wrap(-torch.sin(pymath.pi * x)[:, None], spatial("x"), channel(vector="x"))
    return CenteredGrid(values, PERIODIC, bounds=Box(x=(-1, 1)))


BLOCK = ph.capture(step)


# --- rules ---


@dataclass(frozen=True)
class Search:
    """Settings of `reconstruct`, and for how many iterations."""

    iterations: int
    settings: dict[str, Any] = field(default_factory=dict)


LBFGS = partial(torch.optim.LBFGS, max_iter=1, max_eval=26, line_search_fn="strong_wolfe")


def searches(steps: int) -> dict[str, Search]:
    """Entrants, tuned a little for 16 steps; iterations are such that all have come to an end."""
    return {
        "gradient descent, lr 5": Search(100, dict(lr=5 * MEAN_SQUARE)),
        "gradient descent, lr 20": Search(100, dict(lr=20 * MEAN_SQUARE)),
        "Adam": Search(100, dict(lr=0.03, optimizer=torch.optim.Adam)),
        "L-BFGS": Search(50, dict(optimizer=LBFGS)),
        "Gauss–Newton": Search(40, dict(rule=GaussNewton(0.3))),
        "Gauss–Newton, lr 0.3": Search(40, dict(rule=GaussNewton(0.3), lr=0.3)),
        "Gauss–Newton CG, lr 0.3": Search(20, dict(rule=GaussNewtonCG(0.3, tolerance=1e-2), lr=0.3)),
        "Gauss–Newton, ‖Δx‖ ≤ 1": Search(40, dict(rule=TrustRegion(GaussNewton(0.3), 1.0))),
        "half-inverse, lr 0.3": Search(40, dict(rule=HalfInverse(0.5, 1e-2), lr=0.3)),
        "inverse simulator": Search(10, dict(rule=Inverse(backwards(steps)))),
    }


def backwards(steps: int) -> Callable[..., tuple[torch.Tensor, ...]]:
    """`(y, x) -> x̃`: advection along −u corrected once by the forward solver."""

    def back(u: Field) -> Field:
        return repeated(lambda v: advect.semi_lagrangian(v, -v, DT), u, steps)

    one = sine().with_values(math.expand(sine().values, batch(sample=1)))
    return ph.capture(local_inverse(lambda u: repeated(step, u, steps), back)).bind(one, one).native


def repeated(function: Callable[[Field], Field], u: Field, steps: int) -> Field:
    for _ in range(steps):
        u = function(u)
    return u


@dataclass(frozen=True)
class Found:
    """A search that has come to its end, or to where it fails."""

    result: ph.inverse.Reconstruction
    seconds: float  # of the CPU
    losses: np.ndarray  # mean square over cells, times and samples
    errors: np.ndarray  # ‖x − x*‖/‖x*‖, (iteration, sample)

    def at(self, iteration: int) -> dict[str, float]:
        n = min(iteration, len(self.losses) - 1)
        return {"loss": float(self.losses[n]), "x": float(np.median(self.errors[n]))}


def search(observed: Field, times: Sequence[int], wanted: Search, quick: bool) -> Found:
    iterations = max(4, wanted.iterations // 8) if quick else wanted.iterations
    settings = dict(times=tuple(times), iterations=iterations, keep_path=True, **wanted.settings)
    began = time.process_time()
    try:
        result = ph.reconstruct(BLOCK, observed, 0 * sine(), **settings)
    except (ph.NonFiniteError, ph.SolveError) as error:
        print(f"stopped: {error}")
        result = error.trajectory
    seconds = time.process_time() - began
    losses = np.array(result.losses) * MEAN_SQUARE / len(times)
    return Found(result, seconds, losses, errors(result.path))


def errors(path: Field) -> np.ndarray:
    """‖x − x*‖/‖x*‖, `(iteration, sample)`."""
    others, count = path.shape.batch.without("iteration").names, path.shape.get_size("iteration")
    values = path.values.numpy(["iteration", *others, "x", "vector"]).reshape(count, -1, CELLS)
    truth = sine().values.numpy("x,vector")[:, 0]
    return np.linalg.norm(values - truth, axis=2) / np.linalg.norm(truth)


# --- figures ---


def curves(by_steps: dict[int, dict[str, Found]]) -> Figure:
    """A row per observed step: loss over iterations and over time, distance to the truth over iterations."""
    figure, axes = plt.subplots(
        len(by_steps), 3, figsize=(12, 3.1 * len(by_steps)), squeeze=False, layout="constrained"
    )
    for row, (steps, found) in zip(axes, by_steps.items()):
        for n, (name, one) in enumerate(found.items()):
            style = dict(color=f"C{n}", linestyle="--" if n % 2 else "-", linewidth=1.3, label=name)
            seconds = np.linspace(0, one.seconds, len(one.losses))
            for ax, over, shown in zip(row, (None, seconds, None), (one.losses, one.losses, one.errors[:, 0])):
                ax.semilogy(*([shown] if over is None else [over, shown]), **style)
        row[0].set(xlabel="iteration", ylabel=f"loss, observed at step {steps}", xlim=(0, 60))
        row[1].set(xlabel="CPU seconds", xlim=(0, 2.5))
        row[2].set(xlabel="iteration", ylabel="‖x − x*‖ / ‖x*‖", xlim=(0, 60), ylim=(None, 3))
    axes[0][2].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def states(observed: Field, found: dict[str, Found], shown: Sequence[str]) -> Figure:
    """States found, next to the truth."""
    figure, axes = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 2.6), sharey=True, layout="constrained")
    x = (np.arange(CELLS) + 0.5) / CELLS * 2 - 1
    for ax, name in zip(axes, shown):
        for label, u, colour in (("truth", sine(), "#222222"), ("observed", observed, "#E69F00")):
            ax.plot(x, u.values.numpy("x,vector"), color=colour, linewidth=1, label=label)
        ax.plot(x, found[name].result.state.values.numpy("x,vector"), color="#0072B2", linewidth=1.3, label="found")
        ax.set(title=f"{name}: {found[name].errors[-1, 0]:.2f}", xlabel="x")
    axes[0].legend(fontsize=7)
    return figure


def landscape(observed: Field, steps: int, found: dict[str, Found], shown: Sequence[str]) -> Figure:
    def loss(u: Field) -> math.Tensor:
        return MEAN_SQUARE * math.l2_loss((ph.rollout(BLOCK, u, steps).time[steps] - observed).values)

    return ph.plot.descent({name: found[name].result.path for name in shown}, loss, marks={"truth": sine()})


def run(quick: bool) -> tuple[lab.Rows, Callable]:
    rows, by_steps = {}, {}
    with math.precision(64):
        trajectory = ph.rollout(BLOCK, sine(), 16)
        for steps in (8, 16):
            by_steps[steps] = found = {
                name: search(trajectory.time[steps], (steps,), wanted, quick)
                for name, wanted in searches(steps).items()
            }
            rows["source"] = found["L-BFGS"].at(0)
            for name, one in found.items():
                row = {**one.at(10_000), "seconds": one.seconds, "iterations": len(one.losses) - 1}
                row |= {f"{key}_{n}": one.at(n)[key] for n in (10, 20, 40) for key in ("loss", "x")}
                rows[f"step {steps}: {name}"] = row
    return rows, lambda: figures(trajectory.time[16], by_steps)


def figures(observed: Field, by_steps: dict[int, dict[str, Found]]) -> dict[str, Figure]:
    """Figures by name; states and landscape of the later observation."""
    shown = ["gradient descent, lr 5", "L-BFGS", "Gauss–Newton", "half-inverse, lr 0.3"]
    paths = ["gradient descent, lr 20", "L-BFGS", "Gauss–Newton, ‖Δx‖ ≤ 1"]
    with math.precision(64):
        return {
            "curves": curves(by_steps),
            "states": states(observed, by_steps[16], shown),
            "landscape": landscape(observed, 16, by_steps[16], paths),
        }


def main() -> None:
    options = lab.options(__doc__, "reconstruct_burgers", long=False)
    lab.study(
        options, lambda seed: run(options.quick), ["loss", "x"], ["loss_10", "x_10", "loss_40", "x_40", "iterations"]
    )


if __name__ == "__main__":
    main()
