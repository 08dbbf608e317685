"""Colours, fonts, and names at the ends of lines that all figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.transforms import ScaledTranslation

INK = "#222222"
FAINT = "#8a8a8a"
NON_FINITE = "#9a9a9a"  # neutral grey: occurs in none of the three maps below

HALO = [withStroke(linewidth=2, foreground="white")]  # keeps small text readable on lines and images

# Okabe-Ito without its yellow, which is hard to see on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# Frozen by being passed to `rc_context`, so that the caller's settings are untouched.
RC = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "figure.titlesize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.7,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.minor.width": 0.5,
    "ytick.minor.width": 0.5,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "figure.dpi": 100,
    "axes.formatter.use_mathtext": True,
    "axes.formatter.limits": (-3, 4),
    "axes.unicode_minus": True,
}

styled = mpl.rc_context(RC)  # used as a decorator: each call enters its own context


def colour_map(name: str) -> Colormap:
    """The colour map in a version that shows non-finite cells in their own colour."""
    return mpl.colormaps[name].with_extremes(bad=NON_FINITE)


def line_styles(
    names: Sequence[str], reference: str | None = None, order: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Line arguments for each name: the reference in ink beneath the others, which get colour-blind safe colours.

    Colours go by the place in `order`, and then by that in `names`: who is told the same order gives the same colours.
    """
    others = [name for name in dict.fromkeys([*order, *names]) if name != reference]
    styles: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(others):
        dash = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))[index // len(COLOURS) % 3]
        styles[name] = {"color": COLOURS[index % len(COLOURS)], "linestyle": dash, "zorder": 3}
    if reference is not None:
        styles[reference] = {"color": INK, "linestyle": "-", "zorder": 2.5, "linewidth": 2.2, "alpha": 0.75}
    return {name: styles[name] for name in names}


def with_unit(label: str, unit: str) -> str:
    """`label [unit]`, or the bare label where there is no unit."""
    return f"{label} [{unit}]" if unit else label


def open_axes(ax: Axes, grid: bool = True) -> None:
    """Drop the upper and right spines and lay a faint grid below the lines."""
    ax.spines[["top", "right"]].set_visible(False)
    if grid:
        ax.grid(True, which="major", color=RC["grid.color"], linewidth=RC["grid.linewidth"])
        ax.set_axisbelow(True)


def line_figure(ax: Axes | None) -> tuple[Figure, Axes]:
    """The caller's axes with their figure, or a new single-panel figure outside pyplot."""
    if ax is None:
        figure = Figure(figsize=(5.6, 3.5), layout="constrained")
        return figure, figure.add_subplot()
    return ax.figure, ax


# --- labels ---


class LineEnd(NamedTuple):
    """The last point of a line, in data coordinates, and the name to write there."""

    name: str
    colour: str
    x: float
    y: float


def label_ends(ax: Axes, ends: Sequence[LineEnd]) -> None:
    """Write each name to the right of the axes at the height of its line's end, with a leader where it had to move.

    Leaders are dotted and grey, so that none is taken for data.
    """
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
        leader = {
            "arrowstyle": "-",
            "linewidth": 0.6,
            "linestyle": (0, (1, 2)),
            "color": FAINT,
            "shrinkA": 1,
            "shrinkB": 1,
        }
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


def legend_below(ax: Axes, handles: Sequence[Artist], grow: bool = False) -> None:
    """A legend under the axes, in as many columns as fit.

    Args:
        ax: Axes, of which the legend hides nothing.
        handles: Labelled artists.
        grow: Whether the figure becomes taller by the legend; else the axes become smaller.
    """
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), 72 // (longest + 6)))
    rows = -(-len(handles) // columns)
    if grow:
        width, height = ax.figure.get_size_inches()
        ax.figure.set_size_inches(width, height + 0.17 * rows)
    settings = dict(ncols=columns, fontsize=7.5, frameon=False, handlelength=2.2, columnspacing=1.4)
    text = (
        ax.xaxis.label.get_size() + ax.xaxis.get_majorticklabels()[0].get_size()
    )  # what stands under the axes already
    below = ScaledTranslation(0, -(1.25 * text + 9) / 72, ax.figure.dpi_scale_trans)
    place = dict(bbox_to_anchor=(0.5, 0), bbox_transform=ax.transAxes + below, borderaxespad=0)
    ax.legend(handles=handles, loc="upper center", **place, **settings)


def band_key(ax: Axes, band: str, line: str = "median") -> None:
    """A small legend, where there is room, that says what lines and bands are."""
    handles = [Line2D([], [], color=FAINT, label=line), Patch(color=FAINT, alpha=0.3, linewidth=0, label=band)]
    ax.legend(handles=handles, loc="best", fontsize=7.5, frameon=False, handlelength=1.6)


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
