"""Draws the figure of update_rules.md: python docs/draw_rules.py

L(y) = y₁² + y₂² with y = (x₁, x₂²), searched from x = (3, 3): ten steps of each rule, in x and in y.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from phi_hybrid.optim import Chain, Damped, GaussNewton, Gradient, Inverse, Link, Newton

COLOURS = {"gradient": "#4a86c5", "Newton": "#e08a2c", "Gauss–Newton": "#6aa84f", "inverse": "#c0392b"}


def physics(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, 0], x[:, 1] ** 2], 1)


def inverse(y: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    return torch.stack([y[:, 0], y[:, 1].sqrt()], 1)


def loss(y: torch.Tensor) -> torch.Tensor:
    return (y**2).sum(1)


def path(chain: Chain, rate: float) -> torch.Tensor:
    """x before the first step and after each, `(iteration, 2)`."""
    points = [torch.tensor([[3.0, 3.0]], dtype=torch.float64)]
    for _ in range(10):
        points.append(points[-1] + rate * chain.update(points[-1]).update)
    return torch.cat(points)


def main() -> None:
    last = Link(loss, Damped(Newton(), 0.3))
    paths = {
        "gradient": path(Chain(Link(physics, Gradient()), Link(loss, Gradient())), 0.01),
        "Newton": path(Chain(Link(lambda x: loss(physics(x)), Newton())), 1 / 3),
        "Gauss–Newton": path(Chain(Link(physics, GaussNewton(1e-6)), last), 1.0),
        "inverse": path(Chain(Link(physics, Inverse(inverse)), last), 1.0),
    }
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.4), layout="constrained")
    side = torch.linspace(-0.4, 3.4, 200, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    levels = loss(physics(grid)).reshape(200, 200).T
    axes[0].contour(side, side, levels, levels=[0.1, 1, 4, 10, 25, 50, 90], colors="0.85", linewidths=0.8)
    for name, points in paths.items():
        for ax, shown in zip(axes, (points, physics(points))):
            ax.plot(*shown.T, "o-", color=COLOURS[name], markersize=3.5, linewidth=1.2, label=name)
    axes[0].set(title="x: what is searched", xlabel="x₁", ylabel="x₂")
    axes[1].set(title="y = (x₁, x₂²): what the loss sees", xlabel="y₁", ylabel="y₂")
    for ax in axes:
        ax.plot(0, 0, "kx")
        ax.title.set_fontsize(10)
    axes[1].legend(fontsize=8, frameon=False)
    figure.savefig(Path(__file__).parent / "figures" / "update_rules.png", dpi=90)


if __name__ == "__main__":
    main()
