"""Grids of equal panels, and the scales that they share.

Sizes are set in inches, so that images keep their aspect without slack between them; a blown-up solver cannot flatten the
colours of the others.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from phi_hybrid.plot._data import Quantity, Series
from phi_hybrid.plot._style import HALO, INK, colour_map

SEQUENTIAL, DIVERGING, DIFFERENCE = "viridis", "RdBu_r", "PuOr_r"
_OUTLIER = 10.0  # a frame this many times larger than the typical one does not set the scale
_GAP, _LEFT, _BOTTOM, _TOP, _TITLE = 0.09, 0.78, 0.42, 0.24, 0.27  # inches


# --- scales ---


class Scale(NamedTuple):
    """Limits, colour map name and which ends of the colour bar are exceeded."""

    low: float
    high: float
    cmap: str
    extend: str


def value_scale(values: Sequence[np.ndarray], reference: np.ndarray | None, signed: bool) -> Scale:
    """Shared scale of arrays (time, …): the reference's range if there is one, else that of all calm frames.

    Signed data get symmetric limits and a diverging map, all others a sequential one.
    """
    low, high = finite_range([reference]) if reference is not None else calm_range(values)
    if signed or (low < 0 < high and min(-low, high) > 0.2 * max(-low, high)):
        high = max(-low, high) or 1.0
        return Scale(-high, high, DIVERGING, _extend(values, -high, high))
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    return Scale(low, high, SEQUENTIAL, _extend(values, low, high))


def difference_scale(differences: Sequence[np.ndarray], reference: np.ndarray) -> Scale:
    """Symmetric scale of differences, at most the amplitude (half the range) of the reference: an error of 100 %."""
    low, high = finite_range(_finite_ones(differences))
    cap = 0.5 * float(np.ptp(finite_range([reference]))) or np.inf
    limit = min(max(-low, high), cap) or 1.0
    return Scale(-limit, limit, DIFFERENCE, _extend(differences, -limit, limit))


def finite_range(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Smallest and largest finite value; (0, 1) where nothing is finite."""
    finite = np.concatenate([array[np.isfinite(array)].ravel() for array in values])
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def calm_range(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Range over all frames of arrays (time, …) except those of solvers that blow up.

    Arrays with non-finite values count only if all have some. Of the rest, frames are left out whose largest magnitude
    exceeds ten times that of the typical (median) frame and of every first frame, so that decaying flows keep their
    initial range.
    """
    values = _finite_ones(values)
    frames = [frame for array in values for frame in array]
    sizes = np.array([np.max(np.abs(frame), where=np.isfinite(frame), initial=0.0) for frame in frames])
    first = max(np.max(np.abs(array[0]), where=np.isfinite(array[0]), initial=0.0) for array in values)
    calm = sizes <= _OUTLIER * max(float(np.median(sizes)), first)
    return finite_range([frame for frame, keep in zip(frames, calm) if keep])


def line_limits(values: Sequence[np.ndarray], scale: Scale) -> tuple[float, float]:
    """Limits of an axis for lines (time, x): the scale, widened by at most half its range for lines beyond it."""
    low, high = calm_range(values)
    span = scale.high - scale.low
    low = min(scale.low, max(low, scale.low - span / 2))
    high = max(scale.high, min(high, scale.high + span / 2))
    return low - 0.06 * span, high + 0.06 * span


def _finite_ones(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [array for array in values if np.isfinite(array).all()] or list(values)


def _extend(values: Sequence[np.ndarray], low: float, high: float) -> str:
    slack = 1e-6 * (high - low)
    smallest, largest = finite_range(values)
    below, above = smallest < low - slack, largest > high + slack
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]


def differences(series: Sequence[Series], reference: str | None) -> dict[str, np.ndarray]:
    """u − u_ref (time, x[, y]) of each solver but the reference, by name."""
    if reference is None:
        return {}
    truth = next(one.values for one in series if one.name == reference)
    with np.errstate(invalid="ignore"):  # inf − inf of two blown-up solvers is shown as non-finite anyway
        return {one.name: one.values - truth for one in series if one.name != reference}


def scales(series: Sequence[Series], reference: str | None) -> tuple[Scale, Scale | None]:
    """The shared scale of the values and, if there is a reference, that of the differences."""
    truth = next((one.values for one in series if one.name == reference), None) if reference is not None else None
    of_values = value_scale([one.values for one in series], truth, series[0].shown.signed)
    apart = differences(series, reference)
    return of_values, difference_scale(list(apart.values()), truth) if apart else None


def remarks(name: str, frame: np.ndarray, scale: Scale) -> list[str]:
    """What a line that leaves its panel must be labelled with."""
    who = f"{name}: " if name else ""
    if not np.isfinite(frame).all():
        return [f"{who}non-finite"]
    return [f"{who}off scale"] if np.abs(frame).max() > 3 * max(abs(scale.low), abs(scale.high)) else []


# --- panels ---


class PanelGrid(NamedTuple):
    """A figure with its panels, addressed as `axes[row][column]`."""

    figure: Figure
    axes: list[list[Axes]]
    width: float
    height: float

    def colour_bar(self, scale: Scale, label: str, rows: tuple[int, int]) -> None:
        """Draw a colour bar to the right of the rows from rows[0] up to, but not including, rows[1]."""
        top, bottom = self.axes[rows[0]][-1].get_position(), self.axes[rows[1] - 1][-1].get_position()
        inch = 1 / self.figure.get_figwidth()
        shape = (top.x1 + 0.12 * inch, bottom.y0, 0.11 * inch, top.y1 - bottom.y0)
        mappable = ScalarMappable(Normalize(scale.low, scale.high), colour_map(scale.cmap))
        bar = self.figure.colorbar(mappable, cax=self.figure.add_axes(shape), extend=scale.extend, extendfrac=0.04)
        bar.locator = MaxNLocator(5 if rows[1] - rows[0] > 1 else 4, steps=[1, 2, 2.5, 5, 10])
        bar.outline.set_linewidth(0.6)
        bar.update_ticks()
        bar.set_label(label)

    def row_label(self, row: int, text: str, colour: str = INK) -> None:
        """Write a row's name, turned upwards, at the left edge of the figure."""
        box = self.axes[row][0].get_position()
        fit = self.height / 0.078  # letters of the usual size
        lines = textwrap.wrap(text, max(8, int(fit)), break_long_words=False)[:2]
        longest = max(map(len, lines), default=1)
        self.figure.text(
            0.07 / self.figure.get_figwidth(),
            (box.y0 + box.y1) / 2,
            "\n".join(lines),
            rotation=90,
            va="center",
            ha="left",
            fontweight="bold",
            fontsize=8.5 * min(1, max(0.7, fit / longest)),
            color=colour,
            linespacing=1.0,
        )


def panel_grid(
    rows: int,
    columns: int,
    aspect: float,
    *,
    right: float,
    title: str | None,
    width: float = 8.2,
    largest: float = 2.3,
    top: float = _TOP,
    row_gap: float = _GAP,
) -> PanelGrid:
    """Lay out `rows` × `columns` panels of height/width `aspect`; `right` inches are kept free beside them."""
    panel = min(largest, (width - _LEFT - right - _GAP * (columns - 1)) / columns, min(2.6, 10 / rows) / aspect)
    tall = panel * aspect
    head = top + (_TITLE if title else 0)
    size = (_LEFT + columns * panel + (columns - 1) * _GAP + right, _BOTTOM + rows * tall + (rows - 1) * row_gap + head)
    figure = Figure(figsize=size)
    axes = [
        [
            figure.add_axes(
                (
                    (_LEFT + column * (panel + _GAP)) / size[0],
                    (_BOTTOM + (rows - 1 - row) * (tall + row_gap)) / size[1],
                    panel / size[0],
                    tall / size[1],
                )
            )
            for column in range(columns)
        ]
        for row in range(rows)
    ]
    if title:
        figure.text(_LEFT / size[0], 1 - 0.08 / size[1], title, va="top", ha="left", fontsize=10, fontweight="bold")
    return PanelGrid(figure, axes, panel, tall)


def image_aspect(shown: Quantity) -> float:
    """Height/width of a 2D box, kept within readable proportions."""
    (left, right), (lower, upper) = shown.bounds
    return float(np.clip((upper - lower) / (right - left), 0.25, 2.5))


def image(ax: Axes, values: np.ndarray, extent: Sequence[float], scale: Scale) -> AxesImage:
    """Show an array (horizontal, vertical) with its first axis to the right and its second upwards."""
    drawn = ax.imshow(
        np.ma.masked_invalid(values.T),
        origin="lower",
        extent=tuple(extent),
        aspect="auto",
        cmap=colour_map(scale.cmap),
        vmin=scale.low,
        vmax=scale.high,
        interpolation="nearest",
    )
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    return drawn


def note_non_finite(ax: Axes, values: np.ndarray, extent: Sequence[float]) -> None:
    """Say so in the middle of the non-finite cells of an array (horizontal, vertical)."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        where = (bad.mean(axis=0) + 0.5) / values.shape
        ax.text(
            *np.clip(where, (0.3, 0.08), (0.7, 0.92)),
            "non-finite",
            transform=ax.transAxes,
            ha="center",
            va="center",
            fontsize=7.5,
            color=INK,
            path_effects=HALO,
        )


def outer_labels(axes: Sequence[Sequence[Axes]], x: str, y: str) -> None:
    """Axis labels and tick labels on the outer panels only; panels that are switched off are passed over.

    A tick label at the end of an axis is left out where it would meet the first one of the next panel.
    """
    for row, line in enumerate(axes):
        for column, ax in enumerate(line):
            lowest = not any(below[column].axison for below in axes[row + 1 :])
            leftmost = not any(before.axison for before in line[:column])
            ax.tick_params(labelbottom=lowest, labelleft=leftmost)
            ax.xaxis.set_major_locator(_ticks(column == len(line) - 1))
            ax.yaxis.set_major_locator(_ticks(row == 0))
            ax.set_xlabel(x if lowest else "")
            ax.set_ylabel(y if leftmost else "")


def _ticks(outermost: bool) -> MaxNLocator:
    return MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], prune=None if outermost else "upper")
