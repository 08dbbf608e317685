"""Loss curves of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from phi_hybrid.errors import StateError
from phi_hybrid.plot._style import FAINT, HALO, legend_below, line_figure, line_styles, open_axes, styled


@styled
def history(
    histories: Mapping[str, Any],
    *,
    ax: Axes | None = None,
    quantity: str = "loss",
    window: int | None = None,
    log: bool = True,
    validation: bool = True,
    order: Sequence[str] = (),
) -> Figure:
    """Show a training quantity over the updates: faint raw values, their running median and the validation error.

    Args:
        histories: One history or a mapping name → history, or name → histories of stages, which are drawn one after the
            other. A history maps 'update' and e.g. 'loss', 'lr' and 'gradient_norm' to equally long sequences, and
            optionally 'validation' to {'update': …, 'mae': …}.
        ax: Axes to draw into; by default those of a new figure.
        quantity: Which sequence is shown: 'loss', 'lr', 'gradient_norm', ….
        window: Updates in the running median; by default a fortieth of the history.
        log: Whether the vertical axis is logarithmic.
        validation: Whether the validation errors are shown as points where there are any.
        order: Names of all solvers of a run, so that each has the colour that it has in `errors`.

    Returns:
        The figure.

    Raises:
        StateError: For a history without the quantity or with sequences of different lengths.
    """
    if not isinstance(histories, Mapping) or not histories:
        expected = "expected {'update': […], 'loss': […]} or a mapping name -> history"
        raise StateError(f"histories = {histories!r:.60}: {expected}")
    named = {"": histories} if "update" in histories else {str(name): one for name, one in histories.items()}
    given, (figure, ax) = ax is not None, line_figure(ax)
    open_axes(ax)
    ax.set(xlabel="update", ylabel=quantity.replace("_", " "), yscale="log" if log else "linear")
    styles, validated, starts = line_styles(list(named), order=order), False, set()
    for name, stages in named.items():
        before, style = 0, styles[name]
        for number, one in enumerate([stages] if isinstance(stages, Mapping) else stages):
            update, raw = _pair(name, one, quantity)
            starts |= {before} if number else set()
            _draw(ax, "" if number else name, before + update, raw, window, style)
            checks = (one.get("validation") or {}) if validation and quantity == "loss" else {}
            if len(checks.get("update", ())):
                _points(ax, name, before, checks, style["color"])
                validated = True
            before += int(update[-1]) + 1 if len(update) else 0
    for start in starts:
        ax.axvline(start, color=FAINT, linewidth=0.6, linestyle=(0, (1, 2)), zorder=1)
    ax.margins(x=0.01)
    shades = [style["color"] for style in styles.values()]
    legend_below(ax, _key(styles, shades[0] if len(shades) == 1 else FAINT, validated, bool(starts)), grow=not given)
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


def _draw(ax: Axes, name: str, update: np.ndarray, raw: np.ndarray, window: int | None, style: dict[str, Any]) -> None:
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


_MARK: dict[str, Any] = dict(marker="o", markersize=4.5, markerfacecolor="white", markeredgewidth=1.2)


def _points(ax: Axes, name: str, before: int, checks: Mapping[str, Any], colour: str) -> None:
    update, mae = _pair(f"{name} validation".strip(), checks, "mae")
    shown = np.where(np.isfinite(mae), mae, np.nan)
    ax.plot(before + update, shown, linestyle=(0, (1, 2)), linewidth=0.8, color=colour, zorder=4, **_MARK)


def _key(styles: Mapping[str, dict[str, Any]], colour: str, validated: bool, staged: bool) -> list[Line2D]:
    """The names, then the marks."""
    names = [Line2D([], [], label=name, **style) for name, style in styles.items() if name]
    marks = [
        Line2D([], [], color=colour, linewidth=0.7, alpha=0.5, label="raw"),
        Line2D([], [], color=colour, label="running median"),
    ]
    if validated:
        marks.append(Line2D([], [], color=colour, linestyle="", label="validation MAE", **_MARK))
    if staged:
        marks.append(Line2D([], [], color=FAINT, linewidth=0.6, linestyle=(0, (1, 2)), label="next stage"))
    return [*names, *marks]
