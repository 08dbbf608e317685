"""Draws the figure of training.md: python docs/draw_unrolling.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

PHYSICS, NETWORK, PLAIN = "#cfe2f3", "#fbd9b5", "white"
FORWARD, BACK = "0.3", "#c0392b"
STEPS = 3

# gradient mode: links between steps that the loss of u₃ passes, and whether it passes what the networks see
MODES = {
    "Full()": ((1, 2), True),
    "Truncated(2)": ((2,), True),
    "Detached()": ((), True),
    "Paths(network=0)": ((1, 2), False),
}


def box(ax: Axes, x: float, y: float, label: str, colour: str) -> None:
    shape = "circle,pad=0.2" if colour == PLAIN else "round,pad=0.35"
    ax.text(x, y, label, ha="center", va="center", fontsize=11, bbox=dict(boxstyle=shape, fc=colour, ec="0.3"))


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0.0) -> None:
    style = dict(arrowstyle="-|>", color=colour, shrinkA=12, shrinkB=12, lw=1.4, connectionstyle=f"arc3,rad={bend}")
    ax.annotate("", end, start, arrowprops=style)


def forward(ax: Axes) -> None:
    """u⁺ = P(u) + C(P(u)), three times, every state compared with the reference."""
    box(ax, 0, 0, "u₀", PLAIN)
    for n in range(STEPS):
        x = 3 * n
        box(ax, x + 1, 0, "P", PHYSICS)
        box(ax, x + 1.75, 0.85, "C", NETWORK)
        box(ax, x + 3, 0, f"u{'₁₂₃'[n]}", PLAIN)
        arrow(ax, (x, 0), (x + 1, 0), FORWARD)
        arrow(ax, (x + 1, 0), (x + 3, 0), FORWARD)
        arrow(ax, (x + 1, 0), (x + 1.75, 0.85), FORWARD)
        arrow(ax, (x + 1.75, 0.85), (x + 3, 0), FORWARD)
        arrow(ax, (x + 3, 0), (x + 3, -0.95), FORWARD)
        ax.text(x + 3, -1.0, f"‖u{'₁₂₃'[n]} − u*{'₁₂₃'[n]}‖²", ha="center", va="center", fontsize=10)
    ax.set(xlim=(-0.5, 9.9), ylim=(-1.3, 1.3))


def backward(ax: Axes, links: tuple[int, ...], through_network: bool) -> None:
    """Where the loss of the last state goes: into all networks that it reaches."""
    box(ax, 0, 0, "u₀", PLAIN)
    for n in range(STEPS):
        x, reached = 3 * n, all(link in links for link in range(n + 1, STEPS))
        colour = BACK if reached else "0.85"
        box(ax, x + 1, 0, "P", PHYSICS)
        box(ax, x + 1.75, 0.85, "C", NETWORK)
        box(ax, x + 3, 0, f"u{'₁₂₃'[n]}", PLAIN)
        arrow(ax, (x + 3, 0), (x + 1.75, 0.85), colour)
        goes_on = reached and n in links
        arrow(ax, (x + 3, 0), (x + 1, 0), BACK if goes_on else "0.85")
        arrow(ax, (x + 1.75, 0.85), (x + 1, 0), BACK if goes_on and through_network else "0.85")
        arrow(ax, (x + 1, 0), (x, 0), BACK if goes_on else "0.85")
    ax.set(xlim=(-0.5, 9.9), ylim=(-0.5, 1.3))


def main() -> None:
    rows = [1.5, *[1.0] * len(MODES)]
    figure, axes = plt.subplots(len(rows), 1, figsize=(7.4, 7.2), gridspec_kw=dict(height_ratios=rows))
    forward(axes[0])
    axes[0].set_title("forward: three unrolled steps", fontsize=10, loc="left")
    for ax, (name, (links, through_network)) in zip(axes[1:], MODES.items()):
        backward(ax, links, through_network)
        ax.set_title(f"gradient of the last error, {name}", fontsize=10, loc="left")
    for ax in axes:
        ax.set_axis_off()
    figure.tight_layout(pad=0.3)
    figure.savefig(Path(__file__).parent / "figures" / "unrolling.png", dpi=90)


if __name__ == "__main__":
    main()
