"""Colours, fonts and small dressings that all figures share."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

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


def line_styles(names: Sequence[str], reference: str | None = None) -> dict[str, dict[str, object]]:
    """Line arguments for each name: the reference in ink beneath the others, which get colour-blind safe colours."""
    others = [name for name in names if name != reference]
    styles: dict[str, dict[str, object]] = {}
    for index, name in enumerate(others):
        dash = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))[index // len(COLOURS) % 3]
        styles[name] = {"color": COLOURS[index % len(COLOURS)], "linestyle": dash, "zorder": 3}
    if reference is not None:
        styles[reference] = {"color": INK, "linestyle": "-", "zorder": 2.5, "linewidth": 2.2, "alpha": 0.75}
    return styles


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
