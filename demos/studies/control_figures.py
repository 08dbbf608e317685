"""Figures of controlled flows: where they go, the forces, and the error over solver calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import phi_hybrid as ph

States = tuple[torch.Tensor, ...]
NAMES = {"source": "without control"}


def figures(
    case: Any, curves: dict, states: dict[str, States], held_out: ph.Trajectories, out: Path
) -> dict[str, Figure]:
    """By name, to be saved."""
    drawn = {"training": training(curves)}
    if case.dims == 1:
        return {"spacetime": spacetime(case, states, held_out), **drawn}
    missed = (states["source"][-1][:, -1] - states["data"][-1][:, -1]).flatten(1).norm(dim=1)
    sample = int(missed.argmax())  # where there is most to do
    movie(case, states, held_out, out / "smoke.gif", sample)
    return {"smoke": frames(case, states, held_out, sample), **drawn}


def training(curves: dict[str, list[dict[str, float]]]) -> Figure:
    """Held-out error and force over the solver calls of the training, data included."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for ax, key, label in zip(axes, ("error", "force"), ("‖u_T − u*‖ / that without control", "∫∫ |f|² dx dt")):
        for name, rows in curves.items():
            marker = "o" if len(rows) == 1 else "."
            ax.loglog([r["calls"] for r in rows], [r[key] for r in rows], marker=marker, label=name)
        ax.set(xlabel="solver calls in training", ylabel=label)
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(True, which="both", alpha=0.2)
    axes[0].legend()
    figure.tight_layout()
    return figure


def spacetime(case: Any, states: dict[str, States], held_out: ph.Trajectories, sample: int = 0) -> Figure:
    """u(x, t) beside its target, and below it the force, for every controller."""
    start, target = (held_out.states[-1][sample, n, :, 0] for n in (0, -1))
    shown = {"data": states["data"], **states}
    figure, axes = plt.subplots(2, len(shown), figsize=(2.1 * len(shown), 4.8), sharey="row", layout="compressed")
    u_max = max(float(s[-1][sample].abs().max()) for s in shown.values())
    f_max = max(float(s[0][sample].abs().max()) for n, s in shown.items() if n != "source")
    extent = (0, case.steps * case.dt, 0, 1)
    for column, (name, (force, u)) in zip(axes.T, shown.items()):
        u = torch.cat([start[None], u[sample, :, :, 0], target[None].expand(3, -1)])
        wide = (0, (case.steps + 4) * case.dt, 0, 1)
        top = column[0].imshow(u.T, origin="lower", extent=wide, aspect="auto", cmap="RdBu_r", vmin=-u_max, vmax=u_max)
        column[0].axvline((case.steps + 1) * case.dt, color="black", linewidth=1)
        values = force[sample, :, :, 0].T
        low = column[1].imshow(
            values, origin="lower", extent=extent, aspect="auto", cmap="PuOr_r", vmin=-f_max, vmax=f_max
        )
        column[0].set_xticks([])
        column[0].set_title(NAMES.get(name, name), fontsize=10)
        column[1].set_xlabel("t")
    for row, image, label in zip(axes, (top, low), ("u, behind the line u*", "force f")):
        row[0].set_ylabel("x")
        figure.colorbar(image, ax=list(row), label=label, shrink=0.9)
    return figure


def frames(
    case: Any, states: dict[str, States], held_out: ph.Trajectories, sample: int = 0, columns: int = 5
) -> Figure:
    """Smoke at some times under every controller, the target as outline, forces as arrows in the band."""
    shown = {"data": states["data"], **states}
    times = np.linspace(0, case.steps, columns).round().astype(int)
    figure, axes = plt.subplots(len(shown), columns, figsize=(1.7 * columns, 1.75 * len(shown)))
    for row, (name, state) in zip(axes, shown.items()):
        for ax, time in zip(row, times):
            _draw(ax, case, state, held_out, sample, time)
        row[0].set_ylabel(NAMES.get(name, name))
    for ax, time in zip(axes[0], times):
        ax.set_title(f"step {time}", fontsize=10)
    figure.tight_layout()
    return figure


def movie(case: Any, states: dict[str, States], held_out: ph.Trajectories, path: Path, sample: int = 0) -> None:
    """The same as GIF."""
    figure, axes = plt.subplots(1, len(states), figsize=(2.0 * len(states), 2.3))

    def draw(time: int) -> None:
        for ax, (name, state) in zip(axes, states.items()):
            ax.clear()
            _draw(ax, case, state, held_out, sample, min(time, case.steps))
            ax.set_title(NAMES.get(name, name), fontsize=9)

    draw(0)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    FuncAnimation(figure, draw, case.steps + 8).save(path, PillowWriter(fps=8), dpi=80)
    plt.close(figure)
    print(f"wrote {path}")


def _draw(ax: Any, case: Any, states: States, held_out: ph.Trajectories, sample: int, time: int) -> None:
    smoke = held_out.states[-1][sample, 0] if time == 0 else states[-1][sample, time - 1]
    extent = (0, case.cells, 0, case.cells)
    ax.imshow(smoke.T, origin="lower", cmap="Greys", vmin=0, vmax=1, extent=extent)
    band = np.ma.masked_less(case.in_band().T.numpy(), 0.5)
    ax.imshow(band, origin="lower", cmap="Blues", vmin=0, vmax=4, alpha=0.35, extent=extent)
    middle = np.arange(case.cells) + 0.5
    ax.contour(middle, middle, held_out.states[-1][sample, -1].T, levels=[0.5], colors="crimson", linewidths=1.2)
    force = [f[sample, max(0, time - 1)] for f in states[:2]]
    fx, fy = (torch.nn.functional.pad(f, pad) for f, pad in zip(force, ((0, 0, 1, 0), (1, 0))))
    x, y = np.meshgrid(middle, middle, indexing="ij")
    pushed = (fx**2 + fy**2 > 0).numpy()
    pushed[np.arange(case.cells) % 3 != 1] = False
    pushed[:, np.arange(case.cells) % 3 != 1] = False
    ax.quiver(x[pushed], y[pushed], fx[pushed], fy[pushed], color="tab:blue", scale=2.0, width=0.008)
    ax.set(xticks=[], yticks=[])
