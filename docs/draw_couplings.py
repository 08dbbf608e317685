"""Draws the figures of couplings.md: python docs/draw_couplings.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

PHYSICS, NETWORK, PLAIN = "#cfe2f3", "#fbd9b5", "white"
FOLDER = Path(__file__).parent / "figures"

# node: label, x, y, colour; edges by node name, bent by a factor where they would cross a node
U, NEXT = ("u", 0.0, 0.0, PLAIN), ("u⁺", 4.0, 0.0, PLAIN)
COUPLINGS = {
    "additive": (
        {"u": U, "P": ("P", 1.0, 0.0, PHYSICS), "C": ("C", 2.0, 0.8, NETWORK), "+": ("+", 3.0, 0.0, PLAIN), "v": NEXT},
        [("u", "P"), ("P", "C"), ("P", "+"), ("C", "+"), ("+", "v")],
    ),
    "multiplicative": (
        {
            "u": U,
            "P": ("P", 1.0, 0.0, PHYSICS),
            "C": ("1 + C", 2.0, 0.8, NETWORK),
            "*": ("×", 3.0, 0.0, PLAIN),
            "v": NEXT,
        },
        [("u", "P"), ("P", "C"), ("P", "*"), ("C", "*"), ("*", "v")],
    ),
    "parallel": (
        {"u": U, "P": ("P", 1.5, -0.4, PHYSICS), "C": ("C", 1.5, 0.6, NETWORK), "+": ("+", 3.0, 0.0, PLAIN), "v": NEXT},
        [("u", "P"), ("u", "C"), ("P", "+"), ("C", "+"), ("+", "v")],
    ),
    "before": (
        {"u": U, "C": ("C", 0.9, 0.8, NETWORK), "+": ("+", 1.8, 0.0, PLAIN), "P": ("P", 2.9, 0.0, PHYSICS), "v": NEXT},
        [("u", "C"), ("u", "+"), ("C", "+"), ("+", "P"), ("P", "v")],
    ),
    "forcing": (
        {
            "u": U,
            "f": ("f", 0.0, 0.8, PLAIN),
            "C": ("C", 0.9, 0.8, NETWORK),
            "+": ("+", 1.8, 0.8, PLAIN),
            "P": ("P", 2.9, 0.0, PHYSICS),
            "v": NEXT,
        },
        [("u", "C"), ("C", "+"), ("f", "+", 0.55), ("+", "P"), ("u", "P"), ("P", "v")],
    ),
    "parameter": (
        {
            "u": U,
            "f": ("ν", 0.0, 0.8, PLAIN),
            "C": ("C", 0.9, 0.8, NETWORK),
            "l": ("link", 1.85, 0.8, PLAIN),
            "P": ("P", 2.9, 0.0, PHYSICS),
            "v": NEXT,
        },
        [("u", "C"), ("C", "l"), ("f", "l", 0.55), ("l", "P"), ("u", "P"), ("P", "v")],
    ),
    "replacement": (
        {"u": U, "C": ("C", 1.5, 0.8, NETWORK), "+": ("+", 3.0, 0.0, PLAIN), "v": NEXT},
        [("u", "C"), ("u", "+"), ("C", "+"), ("+", "v")],
    ),
}


def draw(ax: Axes, nodes: dict, edges: list) -> None:
    """Boxes and arrows."""
    for start, end, *bend in edges:
        arrow = dict(arrowstyle="-|>", color="0.3", shrinkA=13, shrinkB=13, lw=1.3)
        if bend:
            arrow["connectionstyle"] = f"arc3,rad={-bend[0]}"
        ax.annotate("", nodes[end][1:3], nodes[start][1:3], arrowprops=arrow)
    for label, x, y, colour in nodes.values():
        shape = "round,pad=0.35" if colour is not PLAIN or len(label) > 2 else "circle,pad=0.25"
        ax.text(x, y, label, ha="center", va="center", fontsize=12, bbox=dict(boxstyle=shape, fc=colour, ec="0.3"))
    ax.set(xlim=(-0.4, 4.4), ylim=(-0.75, 1.5))
    ax.set_axis_off()


def main() -> None:
    for name, (nodes, edges) in COUPLINGS.items():
        figure, ax = plt.subplots(figsize=(3.6, 1.7))
        draw(ax, nodes, edges)
        figure.tight_layout(pad=0)
        figure.savefig(FOLDER / f"coupling_{name}.png", dpi=90)
        plt.close(figure)


if __name__ == "__main__":
    main()
