"""What noise does to a recovered initial state, and what helps: early stopping, damping, more observation times.

The Burgers problem of reconstruct_burgers.py, observed at one or at several times, with white noise of 0, 1 and 10 % of
the root mean square of what is seen, in several samples that are searched side by side. A search is stopped where the mean
square of what is left falls to the variance of the noise (Morozov's discrepancy principle), or goes on to the end.

    python demos/studies/reconstruct_noise.py [--quick | --full] [--seed N] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lab
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from phi import math
from phi.field import Field
from phi.math import batch
from reconstruct_burgers import BLOCK, MEAN_SQUARE, Found, Search, search, sine

import phi_hybrid as ph
from phi_hybrid.bridge import flatten, unflatten
from phi_hybrid.optim import GaussNewton, HalfInverse

TIMES: Sequence[tuple[int, ...]] = ((8,), (16,), (8, 16, 24))
LEVELS = (0.0, 0.01, 0.1)


def searches(times: tuple[int, ...]) -> dict[str, Search]:
    """With more observations, gradients add up, and gradient descent needs a smaller rate."""
    return {
        "gradient descent": Search(100, dict(lr=20 * MEAN_SQUARE / len(times))),
        "Gauss–Newton, λ 0.3": Search(24, dict(rule=GaussNewton(0.3), lr=0.3)),
        "Gauss–Newton, λ 1": Search(24, dict(rule=GaussNewton(1.0), lr=0.3)),
        "half-inverse": Search(24, dict(rule=HalfInverse(0.5, 1e-2), lr=0.3)),
    }


def observe(times: tuple[int, ...], level: float, samples: int, seed: int) -> tuple[Field, float]:
    """Noisy observations `(noise, [time], x, vector)` and the standard deviation of their noise."""
    trajectory = ph.rollout(BLOCK, sine(), times[-1])
    seen = trajectory.time[list(times)] if len(times) > 1 else trajectory.time[times[0]]
    (values,), layout = flatten(seen.with_values(math.expand(seen.values, batch(noise=samples))))
    sigma = level * float(values.square().mean().sqrt())
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed), dtype=values.dtype)
    return unflatten(layout, [values + sigma * noise]), sigma


def stopped(found: Found, sigma: float) -> int:
    """First iteration at which no more than the noise is left; the last one if there is none."""
    reached = np.flatnonzero(found.losses <= sigma**2)
    return int(reached[0]) if len(reached) else len(found.losses) - 1


def figure(all_found: dict[tuple, tuple[Found, float]]) -> Figure:
    """Error over iterations, a row per observation, a column per level of noise; a dot where it would be stopped."""
    rows, columns, names = (list(dict.fromkeys(key[n] for key in all_found)) for n in range(3))
    size = (3.4 * len(columns), 2.2 * len(rows))
    drawn, axes = plt.subplots(
        len(rows), len(columns), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for (times, level, name), (found, sigma) in all_found.items():
        ax, colour = axes[rows.index(times)][columns.index(level)], f"C{names.index(name)}"
        medians, stop = np.median(found.errors, 1), stopped(found, sigma)
        ax.loglog(range(1, len(medians)), medians[1:], color=colour, label=name, linewidth=1.2)
        if sigma and stop:
            ax.plot(stop, medians[stop], "o", color=colour, markersize=5)
        ax.set_title(f"steps {', '.join(map(str, times))}, noise {100 * level:g} %", fontsize=9)
        ax.set_ylim(5e-4, 3)
    axes[0][0].legend(fontsize=6.5)
    for row in axes:
        row[0].set_ylabel("‖x − x*‖ / ‖x*‖")
    for ax in axes[-1]:
        ax.set_xlabel("iteration")
    return drawn


def summary(found: Found, sigma: float) -> dict[str, Any]:
    """Median error of x in the end, where it is stopped, and at its smallest, which the search itself cannot know."""
    medians, stop = np.median(found.errors, 1), stopped(found, sigma)
    return {"x": float(medians[-1]), "x_stopped": float(medians[stop]), "stop": stop, "x_best": float(medians.min())}


def run(samples: int, quick: bool, seed: int) -> tuple[lab.Rows, Callable]:
    all_found, rows = {}, {"source": {"x": 1.0}}
    with math.precision(64):
        for times in TIMES[:2] if quick else TIMES:
            for level in LEVELS[::2] if quick else LEVELS:
                observed, sigma = observe(times, level, samples, seed)
                for name, wanted in searches(times).items():
                    found = search(observed, times, wanted, quick)
                    all_found[times, level, name] = found, sigma
                    rows[f"{times} {level:g} {name}"] = summary(found, sigma)
    return rows, lambda: {"noise": figure(all_found)}


def main() -> None:
    options = lab.options(__doc__, "reconstruct_noise")
    samples = 16 if options.full else 4
    lab.study(options, lambda seed: run(samples, options.quick, seed), ["x_stopped", "x", "stop", "x_best"])


if __name__ == "__main__":
    main()
