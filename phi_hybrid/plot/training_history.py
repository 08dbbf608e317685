"""Loss curves of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from phi_hybrid.errors import StateError
from phi_hybrid.plot._style import FAINT, HALO, LineEnd, label_ends, line_figure, line_styles, open_axes, styled


@styled
def history(
    histories: Mapping[str, Any],
    *,
    ax: Axes | None = None,
    quantity: str = "loss",
    window: int | None = None,
    log: bool = True,
    validation: bool = True,
) -> Figure:
    """Show a training quantity over the updates: faint raw values, their running median and the validation error.

    Args:
        histories: One history or a mapping name → history. A history maps 'update' and e.g. 'loss', 'lr' and
            'gradient_norm' to equally long sequences, and optionally 'validation' to {'update': …, 'mae': …}.
        ax: Axes to draw into; by default those of a new figure.
        quantity: Which sequence is shown: 'loss', 'lr', 'gradient_norm', ….
        window: Updates in the running median; by default a fortieth of the history.
        log: Whether the vertical axis is logarithmic.
        validation: Whether the validation errors are shown as points where there are any.

    Returns:
        The figure.

    Raises:
        StateError: For a history without the quantity or with sequences of different lengths.
    """
    if not isinstance(histories, Mapping) or not histories:
        expected = "expected {'update': […], 'loss': […]} or a mapping name -> history"
        raise StateError(f"histories = {histories!r:.60}: {expected}")
    named = {"": histories} if "update" in histories else {str(name): one for name, one in histories.items()}
    figure, ax = line_figure(ax)
    open_axes(ax)
    ax.set(xlabel="update", ylabel=quantity.replace("_", " "), yscale="log" if log else "linear")
    styles, ends, validated = line_styles(list(named)), [], False
    for name, one in named.items():
        update, raw = _pair(name, one, quantity)
        ends.append(_draw(ax, name, update, raw, window, styles[name]))
        checks = (one.get("validation") or {}) if validation and quantity == "loss" else {}
        if len(checks.get("update", ())):
            _points(ax, name, checks, styles[name]["color"])
            validated = True
    ax.margins(x=0.01)
    _key(ax, validated, [style["color"] for style in styles.values()])
    label_ends(ax, ends)
    return figure


def _pair(name: str, one: Mapping[str, Any], quantity: str) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(one, Mapping) or quantity not in one or "update" not in one:
        known = sorted(one) if isinstance(one, Mapping) else type(one).__name__
        raise StateError(f"history {name!r}: expected the keys 'update' and {quantity!r}, got {known}")
    update, values = (np.asarray(one[key], dtype=np.float64) for key in ("update", quantity))
    if update.shape != values.shape or update.ndim != 1:
        raise StateError(
            f"history {name!r}: 'update' and {quantity!r} must be equally long lists, "
            f"got shapes {update.shape} and {values.shape}"
        )
    return update, values


def running_median(values: Sequence[float], window: int) -> np.ndarray:
    """Median over a centred window, of which both ends of the sequence cut off what lies beyond them."""
    values, half = np.asarray(values, dtype=np.float64), max(window, 1) // 2
    return np.array([np.median(values[max(0, index - half) : index + half + 1]) for index in range(len(values))])


def _draw(ax: Axes, name: str, update: np.ndarray, raw: np.ndarray, window: int | None, style: dict) -> LineEnd:
    finite = np.isfinite(raw)
    smooth = running_median(raw[finite], window or max(3, len(raw) // 40))
    ax.plot(update[finite], raw[finite], color=style["color"], linewidth=0.7, alpha=0.28, zorder=2)
    ax.plot(update[finite], smooth, label=name, **style)
    if not finite.all():
        first = int(np.flatnonzero(~finite)[0])
        height = raw[:first][finite[:first]][-1] if finite[:first].any() else np.nan
        ax.plot(
            update[first], height, marker="X", markersize=8, color=style["color"], markeredgecolor="white", zorder=6
        )
        ax.annotate(
            f"non-finite at update {update[first]:g}",
            (update[first], height),
            xytext=(-6, 7),
            ha="right",
            textcoords="offset points",
            color=style["color"],
            fontsize=7.5,
            fontstyle="italic",
            path_effects=HALO,
        )
    end = (update[finite][-1], smooth[-1]) if finite.any() else (np.nan, np.nan)
    return LineEnd(name, style["color"], *end)


def _points(ax: Axes, name: str, checks: Mapping[str, Any], colour: str) -> None:
    update, mae = _pair(f"{name} validation".strip(), checks, "mae")
    ax.plot(
        update,
        np.where(np.isfinite(mae), mae, np.nan),
        linestyle=(0, (1, 2)),
        linewidth=0.8,
        marker="o",
        markersize=4.5,
        color=colour,
        markerfacecolor="white",
        markeredgewidth=1.2,
        zorder=4,
    )


def _key(ax: Axes, validated: bool, colours: list[str]) -> None:
    """Explain the marks, not the names: those stand at the line ends."""
    colour = colours[0] if len(colours) == 1 else FAINT
    marks = [
        Line2D([], [], color=colour, linewidth=0.7, alpha=0.5, label="raw"),
        Line2D([], [], color=colour, label="running median"),
    ]
    if validated:
        marks.append(
            Line2D(
                [],
                [],
                color=colour,
                linestyle="",
                marker="o",
                markersize=4.5,
                markerfacecolor="white",
                label="validation MAE",
            )
        )
    ax.legend(handles=marks, loc="upper right", fontsize=7.5, frameon=False, handlelength=1.6)
