"""Draws the figure of how_to/faces.md: python docs/draw_faces.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

CELLS = 4
OWNED, FIXED, COPIED = "#e08a2c", "0.65", "#4a86c5"

# boundary: colour and label of the first and of the last face
ROWS = {
    "periodic": ((OWNED, "the same face"), (OWNED, "the same face")),
    "walls, inflow": ((FIXED, "given"), (FIXED, "given")),
    "open": ((OWNED, ""), (COPIED, "as its neighbour")),
}


def draw(ax: Axes, boundary: str) -> None:
    """A row of cells; an arrow leads from each cell to the face that it owns."""
    first, last = ROWS[boundary]
    faces = [first, *[(OWNED, "")] * (CELLS - 1), last]
    for cell in range(CELLS):
        ax.add_patch(plt.Rectangle((cell, 0), 1, 1, fc="white", ec="0.85"))
        ax.text(cell + 0.55, 0.5, f"{cell + 1}", ha="center", va="center", fontsize=12)
        if faces[cell][0] == OWNED:
            arrow = dict(arrowstyle="->", color=OWNED, lw=1.5)
            ax.annotate("", (cell + 0.06, 0.5), (cell + 0.42, 0.5), arrowprops=arrow)
    for position, (colour, label) in enumerate(faces):
        ax.plot([position, position], [0, 1], color=colour, lw=4, solid_capstyle="butt")
        ax.text(position, -0.2, label, ha="center", va="center", fontsize=8, color="0.3")
    ax.text(-0.6, 0.5, boundary, ha="right", va="center", fontsize=10)
    ax.set(xlim=(-2.2, CELLS + 0.7), ylim=(-0.35, 1.1), aspect="equal")
    ax.set_axis_off()


def main() -> None:
    figure, axes = plt.subplots(len(ROWS), 1, figsize=(5.6, 3.6))
    for ax, boundary in zip(axes, ROWS):
        draw(ax, boundary)
    figure.tight_layout(pad=0.2)
    figure.savefig(Path(__file__).parent / "figures" / "faces.png", dpi=90)


if __name__ == "__main__":
    main()
