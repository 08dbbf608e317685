"""Draws the figure of capture.md: python docs/draw_capture.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

PYTHON, GRAPH, PLAIN = "#fbd9b5", "#cfe2f3", "white"


def box(ax: Axes, x: float, y: float, label: str, colour: str) -> None:
    shape = dict(boxstyle="round,pad=0.4", fc=colour, ec="0.3")
    ax.text(x, y, label, ha="center", va="center", fontsize=9.5, bbox=shape, linespacing=1.4)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], label: str = "", side: str = "left") -> None:
    style = dict(arrowstyle="-|>", color="0.3", lw=1.3, shrinkA=2, shrinkB=2)
    ax.annotate("", end, start, arrowprops=style)
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    if start[1] == end[1]:
        ax.text(x, y + 0.12, label, ha="center", va="bottom", fontsize=9)
    else:
        ax.text(x + 0.1, y, label, ha=side, va="center", fontsize=9)


def main() -> None:
    figure, ax = plt.subplots(figsize=(7.6, 3.5))
    box(ax, 0.6, 3, "physics(u, f)", PLAIN)
    box(ax, 3.4, 3, "is there a graph for\nthis kind of arguments?", PLAIN)
    box(ax, 7.0, 3, "graph of torch operations\n(no PhiFlow, no Python loops)", GRAPH)
    box(ax, 10.0, 3, "u⁺", PLAIN)
    box(ax, 3.4, 1.6, "run the step once in PhiFlow,\nrecord every torch operation", PYTHON)
    box(ax, 7.0, 1.6, "compare with PhiFlow:\nvalues and gradients", PYTHON)
    box(ax, 3.4, 0.3, "CaptureError: names the line\nand a way out", PLAIN)
    arrow(ax, (1.35, 3), (2.2, 3))
    arrow(ax, (4.6, 3), (5.5, 3), "yes")
    arrow(ax, (8.5, 3), (9.75, 3))
    arrow(ax, (3.4, 2.65), (3.4, 1.98), "no")
    arrow(ax, (4.85, 1.6), (5.85, 1.6))
    arrow(ax, (7.0, 1.98), (7.0, 2.65), "equal: keep it")
    arrow(ax, (3.4, 1.22), (3.4, 0.65), "depends on values")
    ax.set(xlim=(-0.3, 10.5), ylim=(-0.1, 3.45))
    ax.set_axis_off()
    figure.tight_layout(pad=0.2)
    figure.savefig(Path(__file__).parent / "figures" / "capture.png", dpi=100)


if __name__ == "__main__":
    main()
