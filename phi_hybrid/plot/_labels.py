"""Names written at the ends of lines, moved apart where they would overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from phi_hybrid.plot._style import FAINT, HALO


class LineEnd(NamedTuple):
    """The last point of a line, in data coordinates, and the name to write there."""

    name: str
    colour: str
    x: float
    y: float


def label_ends(ax: Axes, ends: Sequence[LineEnd]) -> None:
    """Write each name to the right of the axes at the height of its line's end, with a leader where it had to move."""
    ends = [end for end in ends if end.name and np.isfinite(end.x) and np.isfinite(end.y)]
    if not ends:
        return
    ax.get_xlim(), ax.get_ylim()  # settles a pending autoscale, which transData would ignore
    points = ax.transAxes.inverted().transform(ax.transData.transform([(end.x, end.y) for end in ends]))
    wanted = np.clip(points[:, 1], 0.0, 1.0)
    pixels = 8.5 * 1.35 * ax.figure.dpi / 72
    heights = spread(wanted, pixels / ax.get_window_extent().height)
    for end, (x, y), height in zip(ends, points, heights):
        moved = abs(height - y) > 0.02 or x < 0.97
        leader = {"arrowstyle": "-", "linewidth": 0.6, "color": end.colour, "alpha": 0.6, "shrinkA": 1, "shrinkB": 1}
        ax.annotate(
            end.name,
            xy=(x, min(max(y, 0), 1)),
            xycoords="axes fraction",
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=end.colour,
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={**leader, "relpos": (0, 0.5)} if moved else None,
        )


def spread(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Heights in the order of `wanted`, at least `gap` apart, near the wanted ones and kept within [0, 1] if possible.

    Clusters of overlapping labels are centred on the mean of their wanted heights (pool adjacent violators).
    """
    order = np.argsort(wanted, kind="stable")
    clusters: list[list[float]] = []  # [mean of the wanted heights less the offsets, number of labels]
    for rank, index in enumerate(order):
        clusters.append([wanted[index] - gap * rank, 1])
        while len(clusters) > 1 and clusters[-2][0] > clusters[-1][0]:
            mean, count = clusters.pop()
            clusters[-1] = [
                (clusters[-1][0] * clusters[-1][1] + mean * count) / (clusters[-1][1] + count),
                clusters[-1][1] + count,
            ]
    base = np.repeat([mean for mean, _ in clusters], [int(count) for _, count in clusters])
    base = np.clip(base, 0.0, max(0.0, 1.0 - gap * (len(wanted) - 1)))
    heights = np.empty(len(wanted))
    heights[order] = base + gap * np.arange(len(wanted))
    return heights


def corner_notes(ax: Axes, notes: Sequence[tuple[str, str]]) -> None:
    """Small coloured remarks (text, colour) from the upper left corner of the axes downwards."""
    pixels = 7 * 1.35 * ax.figure.dpi / 72
    for row, (text, colour) in enumerate(notes):
        ax.text(
            0.03,
            0.97 - row * pixels / ax.get_window_extent().height,
            text,
            color=colour or FAINT,
            transform=ax.transAxes,
            va="top",
            ha="left",
            fontsize=7,
            fontstyle="italic",
            zorder=7,
            path_effects=HALO,
        )
