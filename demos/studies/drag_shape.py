"""A body of given area with little drag in a channel, Re = 20: by the adjoint, by a trained surrogate, without gradients.

The shape is a polar radius with six cosine modes; all ways start from the disc, stay in the same box of coefficients, and are
counted in steps of the same flow solver (an adjoint step counts as one). Final shapes are verified on a grid twice as fine.

    python demos/studies/drag_shape.py [--quick | --full] [--seed N] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import lab
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from phi.math import precision
from scipy.optimize import Bounds, minimize
from scipy.stats.qmc import Sobol

import phi_hybrid as ph
from phi_hybrid.inverse import steady_state
from phi_hybrid.pde.penalized_flow import Channel, polar_radius

LARGEST = np.array([0.5, 1.0, 0.4, 0.4, 0.2, 0.2])
"""Bounds of the coefficients |a_k|."""
DISC = np.zeros(len(LARGEST))
BOX = Bounds(-LARGEST, LARGEST)
UNIT = Bounds(-np.ones(len(LARGEST)), np.ones(len(LARGEST)))
"""The box of a/LARGEST."""


@dataclass
class Tunnel:
    """Drag of shapes in steady flow, which starts from that of the shape before; counts what it does."""

    channel: Channel
    tolerance: float = 7e-5
    """‖Δu‖/‖u‖ per unit of time."""
    steps: int = 0
    """Steps of the solver and of its adjoint so far."""
    forward_steps: int = 0
    """Of these, steps of the solver itself."""
    solves: int = 0
    history: list[tuple[int, float, np.ndarray]] = field(default_factory=list)
    """Steps so far, drag and coefficients of every solve."""

    def __post_init__(self) -> None:
        with precision(64):
            velocity, positions = self.channel.rest(), self.channel.points()
            self.bound = ph.capture(self.channel.step()).bind(velocity, positions[0])
            self.flow, *points = (ph.bridge.flatten(u)[0] for u in (velocity, *positions))
            self.points = list(zip(*points))

    def mask(self, coefficients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.channel.body(coefficients, points) for points in self.points)

    def drag(self, coefficients: np.ndarray) -> float:
        with torch.no_grad():
            return float(self._solve(torch.as_tensor(coefficients)))

    def drag_and_slope(self, coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        a = torch.tensor(coefficients, requires_grad=True)
        drag = self._solve(a)
        drag.backward()
        return drag.item(), a.grad.numpy()

    def _solve(self, a: torch.Tensor) -> torch.Tensor:
        mask = self.mask(a)
        tolerance = self.tolerance * self.channel.dt
        state = steady_state(self.bound.native, self.flow, mask, tolerance, 5000, counted=self._count)
        self.flow = tuple(s.detach() for s in state)
        drag = self.channel.drag(state[0], mask[0])
        self.solves += 1
        self.history.append((self.steps, drag.item(), a.detach().numpy().copy()))
        return drag

    def _count(self, kind: str, steps: int) -> None:
        self.steps += steps
        if kind == "forward":
            self.forward_steps += steps

    @property
    def least(self) -> tuple[int, float, np.ndarray]:
        """Entry of the history with the least drag."""
        return min(self.history, key=lambda entry: entry[1])

    @property
    def best(self) -> np.ndarray:
        """Coefficients of least drag."""
        return self.least[2]


def by_adjoint(tunnel: Tunnel, solves: int, seed: int) -> None:
    """L-BFGS-B with gradients by implicit differentiation of the steady flow."""
    options = dict(maxfun=solves, ftol=1e-5, gtol=1e-3)
    minimize(tunnel.drag_and_slope, DISC, jac=True, method="L-BFGS-B", bounds=BOX, options=options)


def without_gradients(tunnel: Tunnel, solves: int, seed: int) -> None:
    """COBYLA: linear models through solved shapes in a trust region (Powell 1994)."""
    options = dict(maxiter=solves, rhobeg=0.3, tol=3e-3)
    minimize(lambda a: tunnel.drag(a * LARGEST), DISC, method="COBYLA", bounds=UNIT, options=options)


def by_surrogate(tunnel: Tunnel, solves: int, seed: int) -> None:
    """Five small networks learn ln(drag) of random shapes; their optimum is solved, learnt, and searched again."""
    torch.manual_seed(seed)
    tunnel.drag(DISC)
    for point in Sobol(len(DISC), seed=seed).random_base2(3 if solves < 24 else 4):
        tunnel.drag((2 * point - 1) * LARGEST)
    while tunnel.solves < solves:
        inputs = torch.tensor(np.array([a for *_, a in tunnel.history]) / LARGEST)
        targets = torch.tensor([drag for _, drag, _ in tunnel.history]).log()
        mean, scale = targets.mean(), targets.std()
        networks = [_fitted(inputs, (targets - mean) / scale) for _ in range(5)]

        def bound(a: np.ndarray, networks: list = networks) -> tuple[float, np.ndarray]:
            x = torch.tensor(a, requires_grad=True)
            predicted = torch.stack([network(x) for network in networks])
            value = predicted.mean() + predicted.std()
            value.backward()
            return value.item(), x.grad.numpy()

        found = minimize(bound, tunnel.best / LARGEST, jac=True, method="L-BFGS-B", bounds=UNIT)
        tunnel.drag(found.x * LARGEST)


def _fitted(inputs: torch.Tensor, targets: torch.Tensor, updates: int = 400) -> torch.nn.Module:
    width = 32
    layers = [torch.nn.Linear(inputs.shape[1], width), torch.nn.Tanh(), torch.nn.Linear(width, width), torch.nn.Tanh()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(width, 1), torch.nn.Flatten(0)).double()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        optimizer.zero_grad()
        (network(inputs) - targets).square().mean().backward()
        optimizer.step()
        schedule.step()
    return network


WAYS: dict[str, tuple[Callable[[Tunnel, int, int], None], int]] = {
    "adjoint": (by_adjoint, 1),
    "surrogate": (by_surrogate, 2),
    "gradient-free": (without_gradients, 3),
}
"""Name → search, and its solves in units of those of the adjoint."""


def histories(tunnels: dict[str, Tunnel]) -> Figure:
    """Lowest drag so far over steps of the solver."""
    drawn, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for number, (name, tunnel) in enumerate(tunnels.items()):
        steps, drags, _ = zip(*tunnel.history)
        ax.step(steps, np.minimum.accumulate(drags), where="post", label=name, color=f"C{number}")
        ax.plot(steps, drags, ".", color=f"C{number}", alpha=0.4, markersize=4)
    ax.set(xlabel="steps of the solver, adjoint steps included", ylabel="drag coefficient", xscale="log")
    ax.set_ylim(0.95 * min(min(d for _, d, _ in t.history) for t in tunnels.values()), 1.3 * tunnel.history[0][1])
    ax.grid(alpha=0.3)
    ax.legend()
    return drawn


def flows(fine: Tunnel, shown: dict[str, tuple[tuple[torch.Tensor, ...], np.ndarray, float]]) -> Figure:
    """Speed and streamlines on the fine grid, with the body."""
    drawn, axes = plt.subplots(len(shown), 1, figsize=(5.6, 2.4 * len(shown)), layout="constrained", sharex=True)
    phi = torch.linspace(0, 2 * np.pi, 400, dtype=torch.float64)
    for ax, (name, ((u, v), a, drag)) in zip(axes, shown.items()):
        u, v = (u[0] if u.ndim > 2 else u), (v[0] if v.ndim > 2 else v)
        x, y = (p[0] if p.ndim > 2 else p for p in fine.points[0])
        u = u[1:-1, 1:-1]
        v = (v[1:-1, 1:] + v[1:-1, :-1] + v[2:, 1:] + v[2:, :-1])[:, : u.shape[1]] / 4
        x, y = x[1:-1, 1].numpy(), y[1, 1:-1].numpy()
        speed = torch.hypot(u, v).T.numpy()
        image = ax.pcolormesh(x, y, speed, cmap="viridis", shading="gouraud", vmin=0, vmax=2.2, rasterized=True)
        ax.streamplot(x, y, u.T.numpy(), v.T.numpy(), color="white", density=(1.4, 0.8), linewidth=0.5, arrowsize=0.5)
        radius = polar_radius(torch.as_tensor(a), phi)
        ax.fill(radius * torch.cos(phi), radius * torch.sin(phi), color="0.85", edgecolor="black", zorder=3)
        ax.set(
            title=f"{name}: drag coefficient {drag:.3f}",
            ylabel="y/D",
            aspect="equal",
            xlim=(-1.8, 5),
            ylim=(y[0], y[-1]),
        )
    axes[-1].set_xlabel("x/D")
    drawn.colorbar(image, ax=axes, label="speed / mean inflow", shrink=0.5, pad=0.02)
    return drawn


def run(cells: int, solves: int, seed: int) -> tuple[lab.Rows, Callable]:
    tunnels = {name: Tunnel(Channel(cells)) for name in WAYS}
    for name, (search, factor) in WAYS.items():
        search(tunnels[name], factor * solves, seed)
        print(f"{name}: {tunnels[name].solves} solves, drag {tunnels[name].least[1]:.4f}", flush=True)
    fine, shown, metrics = Tunnel(Channel(2 * cells)), {}, {}
    steps, coarse, _ = tunnels["adjoint"].history[0]  # of the disc
    for name, a in {"source": DISC, **{name: tunnel.best for name, tunnel in tunnels.items()}}.items():
        drag, area = fine.drag(a), float(fine.mask(torch.as_tensor(a))[0].sum()) * fine.channel.dx**2 / (np.pi / 4)
        shown["disc" if name == "source" else name] = fine.flow, a, drag
        row = metrics[name] = {
            "fine_drag": drag,
            "fine_reduction": 1 - drag / shown["disc"][2],
            "fine_area_error": area - 1,
        }
        row |= {"coarse_drag": coarse, "steps": steps, "solves": 1}
        if name in tunnels:
            found = tunnels[name]
            row |= {"coarse_drag": found.least[1], "steps": found.steps, "solves": found.solves}
            row["forward_steps"] = found.forward_steps
        row["coarse_reduction"] = 1 - row["coarse_drag"] / coarse
        print(name, np.round(a, 3))
    return metrics, lambda: {"drag_histories": histories(tunnels), "drag_flows": flows(fine, shown)}


def main() -> None:
    options = lab.options(__doc__, "drag_shape")
    cells, solves = (24, 8) if options.quick else (48, 20)
    solves *= 3 if options.full else 1
    columns = ["coarse_drag", "coarse_reduction", "fine_drag", "fine_reduction", "solves", "steps"]
    lab.study(options, lambda seed: run(cells, solves, seed), columns)


if __name__ == "__main__":
    main()
