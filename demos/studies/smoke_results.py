"""Errors and figures of networks that find the flow that carried smoke."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from smoke_inversion import Simulation, Smoke


def errors(simulation: Simulation, velocity: torch.Tensor, smoke: Smoke) -> dict[str, float]:
    """‖v₀ − v₀*‖/‖v₀*‖ and ‖m(t) − m*‖/‖m₀ − m*‖, means over the samples."""
    found = simulation.marker(velocity, smoke.before)
    pairs = {
        "velocity": (velocity - smoke.velocity, smoke.velocity),
        "marker": (found - smoke.after, smoke.before - smoke.after),
    }
    return {k: float((norms(a) / norms(b)).mean()) for k, (a, b) in pairs.items()}


def norms(x: torch.Tensor) -> torch.Tensor:
    """Of every sample."""
    return x.flatten(1).norm(dim=1)


def seconds_to(history: dict[str, list[float]], goal: dict[str, float]) -> dict[str, float]:
    """When the marker error has first been as small as there; infinite if never."""
    times = [s for s, error in zip(history["seconds"], history["marker"]) if error <= goal["marker"]]
    return {"seconds_to_adam": min(times, default=math.inf)}


def curves(histories: dict[str, dict[str, list[float]]]) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    for name, history in histories.items():
        for ax, over, of in zip(axes, ("seconds", "updates", "seconds"), ("marker", "marker", "velocity")):
            ax.plot(history[over], history[of], label=name.replace("_", " "))
            ax.set(xlabel=over, ylabel=f"held-out error of the {of}", yscale="log")
    axes[1].set_xscale("symlog", linthresh=10)
    axes[0].legend()
    figure.tight_layout()
    return figure


def pictures(simulation: Simulation, smoke: Smoke, shown: dict[str, torch.Tensor]) -> Figure:
    """One sample: vorticity and arrows of every v₀ above the marker to which it leads; m₀ and m* on the left."""
    figure, axes = plt.subplots(2, len(shown) + 1, figsize=(2.3 * (len(shown) + 1), 4.9))
    images = dict(vmin=0, vmax=float(smoke.before.max()), cmap="Greys", origin="lower")
    largest = float(_vorticity(shown["true"]).abs().max())
    axes[0, 0].imshow(smoke.before[0].T, **images)
    axes[0, 0].set_title("m₀")
    axes[1, 0].imshow(smoke.after[0].T, **images)
    axes[1, 0].set_title("m*")
    for column, (name, velocity) in zip(axes.T[1:], shown.items()):
        column[0].imshow(_vorticity(velocity)[0].T, vmin=-largest, vmax=largest, cmap="RdBu", origin="lower")
        at = torch.arange(4, simulation.cells, 8)
        u, v = velocity[0][:, at][:, :, at]
        column[0].quiver(at, at, u.T, v.T, scale=120)
        column[1].imshow(simulation.marker(velocity, smoke.before)[0].T, **images)
        column[1].contour(smoke.after[0].T, [0.5], colors="tab:red", linewidths=1)
        column[0].set_title(name.replace("_", " "))
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.tight_layout()
    return figure


def _vorticity(velocity: torch.Tensor) -> torch.Tensor:
    u, v = velocity.unbind(1)
    return v - v.roll(1, 1) - u + u.roll(1, 2)
