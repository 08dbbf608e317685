"""One number per method, with its spread over the seeds."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from phi_hybrid.errors import StateError
from phi_hybrid.evaluation import Spread, Table
from phi_hybrid.plot._style import COLOURS, FAINT, legend_below, line_figure, open_axes, styled


@styled
def comparison(table: Table, column: str, *, ax: Axes | None = None, quantity: str = "", log: bool = True) -> Figure:
    """Show one column of a table: a row per method, a dot per seed, and a bar at the median.

    Failures stand as crosses at the edge, right for +∞ (errors) and left for −∞ (correlations), with their number; the
    bar stands there, too, where the median is a failure. The row of a method without a number stays empty.

    Args:
        table: E.g. `Table.over_seeds(summaries)`; single numbers are one dot.
        column: Which of its columns.
        ax: Axes to draw into; by default those of a new figure.
        quantity: Label of the axis, with its unit if it has one; the name of the column by default.
        log: Whether the axis is logarithmic.

    Returns:
        The figure.

    Raises:
        StateError: For a column that the table does not have, or values ≤ 0 on a logarithmic axis.
    """
    if not isinstance(table, Table):
        raise StateError(
            f"table is a {type(table).__name__}: expected a Table, e.g. Table({{'hybrid': {{'mae': 0.1}}}})"
        )
    cells = {name: row[column] for name, row in table.select([column]).rows.items()}
    known = {n: c for n, c in cells.items() if not math.isnan(c.lowest if isinstance(c, Spread) else c)}
    spreads = {name: c if isinstance(c, Spread) else Spread((c,)) for name, c in known.items()}
    values = [v for spread in spreads.values() for v in spread.values]
    finite = [v for v in values if math.isfinite(v)]
    if log and any(v <= 0 for v in finite):
        raise StateError(
            f"column {column!r} holds {min(finite):.4g}, which a logarithmic axis cannot show; use log=False"
        )
    given = ax is not None
    figure, ax = line_figure(ax)
    if not given:
        figure.set_size_inches(5.6, 0.9 + 0.34 * len(cells))
    open_axes(ax)
    ax.set(xscale="log" if log else "linear", xlabel=quantity or column, ylim=(len(cells) - 0.4, -0.6))
    ax.set_yticks(range(len(cells)), list(cells))
    ax.tick_params(axis="y", length=0, pad=7)  # a cross at the edge reaches out of the axes
    low, high = _limits(values, log)
    ax.set_xlim(low, high)
    if log:
        # Several values within a decade are the rule: plain numbers at 1, 2, 5; powers of ten alone over many decades.
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    for height, name in enumerate(cells):
        if name in spreads:
            _draw(ax, height, spreads[name], COLOURS[height % len(COLOURS)])
    if any(len(spread.values) > 1 for spread in spreads.values()):
        dot = Line2D([], [], color=FAINT, marker="o", markersize=4, linestyle="", label="one seed")
        bar = Line2D([], [], color=FAINT, marker="|", markersize=9, markeredgewidth=2.2, linestyle="", label="median")
        legend_below(ax, [dot, bar], grow=not given)
    return figure


def _limits(values: list[float], log: bool) -> tuple[float, float]:
    """Room on both sides of the finite values, more where the number of failures is written."""
    scale, back = (math.log10, lambda v: 10**v) if log else (float, float)
    finite = [scale(v) for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 0.1
    sides = [room * (2.5 if failure in values else 1.0) for failure in (-math.inf, math.inf)]
    return back(low - sides[0]), back(high + sides[1])


def _draw(ax: Axes, height: int, spread: Spread, colour: str) -> None:
    shown = [v for v in spread.values if math.isfinite(v)]
    # Seeds that agree to within a dot lie beside each other.
    offsets = np.linspace(-0.16, 0.16, len(shown)) if len(shown) > 1 else np.zeros(len(shown))
    ax.plot(shown, height + offsets, "o", markersize=4, color=colour, alpha=0.6, markeredgewidth=0, zorder=3)
    edge = ax.get_yaxis_transform()  # x in fractions of the axes, y in rows
    for failure, x, side in ((math.inf, 1.0, "right"), (-math.inf, 0.0, "left")):
        count = spread.values.count(failure)
        if count:
            ax.plot(x, height, "X", markersize=7, color=colour, transform=edge, clip_on=False, zorder=5)
            note, away = f"{count} of {len(spread.values)} failed", -9 if side == "right" else 9
            style = dict(color=colour, fontsize=7.5, fontstyle="italic", va="center", ha=side)
            ax.annotate(note, (x, height - 0.3), xycoords=edge, xytext=(away, 0), textcoords="offset points", **style)
    if math.isfinite(spread.median):
        ax.plot([spread.median] * 2, [height - 0.26, height + 0.26], color=colour, linewidth=2.2, zorder=4)
    else:
        x = 1.0 if spread.median > 0 else 0.0
        ax.plot([x] * 2, [height - 0.26, height + 0.26], color=colour, linewidth=2.2, transform=edge, clip_on=False)
