"""Find the motion of the air at the start from where the smoke is in the end.

Smoke flows into a closed box of 32×40 cells at four places and rises for 20 steps. Three of the plumes are to end where the
fourth does: wanted is the velocity at the start, which changes nothing but the first push. The set-up, gradient descent with
learning rate 1e-3 and the loss ½ Σ (s − s*)² over all cells and plumes are those of Thuerey et al., Physics-based Deep
Learning (arXiv 2109.05237), where the loss falls from 298.3 to 233.7, 178.2, 169.9 after 9, 29, 79 iterations.

    python demos/studies/reconstruct_smoke.py [--quick | --full] [--out DIR]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lab
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from phi import math
from phi.field import Field, resample
from phi.geom import Sphere
from phi.math import batch, channel, wrap

import phi_hybrid as ph
from phi_hybrid.pde import smoke

STEPS, PLACES = 20, [(12.0, 4.0), (13.0, 6.0), (14.0, 5.0), (16.0, 5.0)]
PUBLISHED = {0: 298.3, 9: 233.7, 29: 178.2, 79: 169.9}

SEARCHES: dict[str, dict[str, Any]] = {
    "gradient descent": dict(lr=1e-3),
    "Adam": dict(lr=0.02, optimizer=torch.optim.Adam),
}
"""Settings of `reconstruct`."""


def rise(velocity: Field, inflow: Field) -> Field:
    """Smoke after all steps, from air without smoke that moves like this."""
    state = {"velocity": velocity, "smoke": 0 * inflow}
    step = smoke.smoke_step(dt=1.0)
    for _ in range(STEPS):
        state = step(state, inflow)
    return state["smoke"]


def plumes() -> tuple[Field, Field]:
    """Air at rest, and the inflow at all places, `(plume, x, y)`."""
    still = smoke.still_air(32, 40)
    places = wrap(PLACES, batch("plume"), channel(vector="x,y"))
    return still["velocity"], resample(Sphere(places, radius=3.0), still["smoke"]) / 3


def search(
    physics: ph.PhysicsBlock, iterations: int, settings: dict[str, Any]
) -> tuple[ph.inverse.Reconstruction, float]:
    """What was found, and the CPU seconds of it."""
    air, inflow = plumes()
    target = physics(air, inflow).plume[-1]
    began = time.process_time()
    return ph.reconstruct(physics, target, air, inflow, iterations=iterations, **settings), time.process_time() - began


def total(result: ph.inverse.Reconstruction) -> list[float]:
    """Losses, summed over the plumes as in the book."""
    return [len(PLACES) * loss for loss in result.losses]


def curves(found: dict[str, tuple[ph.inverse.Reconstruction, float]]) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for name, (result, seconds) in found.items():
        losses = total(result)
        axes[0].semilogy(losses, label=name)
        axes[1].semilogy(np.linspace(0, seconds, len(losses)), losses)
    axes[0].plot(*zip(*PUBLISHED.items()), "kx", label="gradient descent, published")
    axes[0].set(xlabel="iteration", ylabel="½ Σ (s − s*)²")
    axes[1].set(xlabel="CPU seconds")
    axes[0].legend(fontsize=8)
    return figure


def pictures(before: Field, after: Field, velocity: Field) -> Figure:
    """Per plume that was moved: smoke from air at rest, smoke from the air that was found, the target, and that air."""
    target, count = before.plume[-1], len(PLACES) - 1
    figure, axes = plt.subplots(count, 4, figsize=(8.4, 2.45 * count), sharex=True, sharey=True, layout="constrained")
    for n, row in enumerate(axes):
        shown = {"air at rest": before.plume[n], "air as found": after.plume[n], "target": target}
        for ax, (title, state) in zip(row, shown.items()):
            ax.imshow(state.values.numpy("y,x"), origin="lower", cmap="magma", vmin=0, vmax=2.2, extent=(0, 32, 0, 40))
            ax.set_title(title if n == 0 else "", fontsize=9)
        arrows(row[3], velocity.plume[n])
        row[0].set_ylabel(f"inflow at {tuple(int(c) for c in PLACES[n])}", fontsize=9)
    axes[0][3].set_title("velocity found", fontsize=9)
    return figure


def arrows(ax: Any, velocity: Field) -> None:
    """Every second cell, in units of the fastest one."""
    u, v = (velocity.at_centers().values.vector[d].numpy("y,x")[1::2, 1::2] for d in "xy")
    speed = np.hypot(u, v).max()
    x, y = np.meshgrid(np.arange(1, 32, 2) + 0.5, np.arange(1, 40, 2) + 0.5)
    ax.quiver(x, y, u / speed, v / speed, scale=12, width=0.006, color="#0072B2")
    ax.set(aspect="equal", xlim=(0, 32), ylim=(0, 40))
    ax.text(1, 38, f"longest {speed:.2f}", fontsize=7, va="top")


def run(iterations: int) -> tuple[lab.Rows, Callable]:
    with math.precision(64):
        physics = ph.capture(rise)
        found = {name: search(physics, iterations, settings) for name, settings in SEARCHES.items()}
        best = min((result for result, _ in found.values()), key=lambda result: result.losses[-1])
        air, inflow = plumes()
        shown = physics(air, inflow), physics(best.state, inflow), best.state
    rows = {"source": {"loss": total(best)[0]}}
    for name, (result, seconds) in found.items():
        losses = total(result)
        rows[name] = {f"loss_{n}": losses[n] for n in PUBLISHED if n < len(losses)}
        rows[name] |= {"loss": losses[-1], "seconds": seconds}
    return rows, lambda: {"curves": curves(found), "smoke": pictures(*shown)}


def main() -> None:
    options = lab.options(__doc__, "reconstruct_smoke")
    iterations = 12 if options.quick else 240 if options.full else 80
    reached = [f"loss_{n}" for n in PUBLISHED if n < iterations]
    lab.study(options, lambda seed: run(iterations), ["loss"], [*reached, "seconds"])


if __name__ == "__main__":
    main()
