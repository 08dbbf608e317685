"""A grid of equal panels with sizes set in inches, so that images keep their aspect without slack between them."""

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

from phi_hybrid.plot._quantity import Quantity
from phi_hybrid.plot._scale import Scale
from phi_hybrid.plot._style import HALO, INK, colour_map

_GAP, _LEFT, _BOTTOM, _TOP, _TITLE = 0.09, 0.78, 0.42, 0.24, 0.27  # inches


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
        wrapped = "\n".join(textwrap.wrap(text, max(8, int(self.height / 0.078)))[:2])
        self.figure.text(
            0.07 / self.figure.get_figwidth(),
            (box.y0 + box.y1) / 2,
            wrapped,
            rotation=90,
            va="center",
            ha="left",
            fontweight="bold",
            fontsize=8.5,
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
    """Axis labels and tick labels on the outer panels only; panels that are switched off are passed over."""
    for row, line in enumerate(axes):
        for column, ax in enumerate(line):
            lowest = not any(below[column].axison for below in axes[row + 1 :])
            leftmost = not any(before.axison for before in line[:column])
            ax.tick_params(labelbottom=lowest, labelleft=leftmost)
            ax.set_xlabel(x if lowest else "")
            ax.set_ylabel(y if leftmost else "")
