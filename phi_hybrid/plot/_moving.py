"""Figures whose content can be moved to another frame."""

from __future__ import annotations

import numpy as np

from phi_hybrid.plot._data import Series
from phi_hybrid.plot._movie import Scene
from phi_hybrid.plot._panels import image, image_aspect, outer_labels, panel_grid
from phi_hybrid.plot._scale import line_limits
from phi_hybrid.plot._style import HALO, line_styles, open_axes
from phi_hybrid.plot.snapshots import differences, remarks, scales


def moving_images(series: list[Series], reference: str | None, dt: float) -> Scene:
    """One panel per solver, the differences to the reference below."""
    if reference is not None:
        series = sorted(series, key=lambda one: one.name != reference)
    shown, apart = series[0].shown, differences(series, reference)
    of_values, of_differences = scales(series, reference)
    extent = [edge for bounds in shown.bounds for edge in bounds]
    grid = panel_grid(1 + bool(apart), len(series), image_aspect(shown), right=0.95, title="t", width=6.8, largest=1.9)
    moving = []
    for axes, (values, scale) in zip(
        grid.axes, [({one.name: one.values for one in series}, of_values), (apart, of_differences)]
    ):
        for ax, one in zip(axes, series):
            if one.name in values:
                drawn = image(ax, values[one.name][0], extent, scale)
                note = ax.text(
                    0.5, 0.5, "", transform=ax.transAxes, ha="center", va="center", fontsize=8, path_effects=HALO
                )
                moving.append((drawn, note, values[one.name]))
            else:
                ax.set_axis_off()
    for ax, one in zip(grid.axes[0], series):
        ax.set_title(one.name, pad=4, fontweight="bold")
    outer_labels(grid.axes, *shown.axes)
    grid.colour_bar(of_values, shown.label, (0, 1))
    if of_differences is not None:
        grid.colour_bar(of_differences, "difference", (1, 2))

    def update(frame: int) -> None:
        grid.figure.texts[0].set_text(f"t = {series[0].frames[frame] * dt:.4g}")
        for drawn, note, values in moving:
            drawn.set_data(np.ma.masked_invalid(values[frame].T))
            note.set_text("" if np.isfinite(values[frame]).all() else "non-finite")

    return Scene(grid.figure, update, [scale.cmap for scale in (of_values, of_differences) if scale], [])


def moving_lines(series: list[Series], reference: str | None, dt: float) -> Scene:
    """All solvers as lines in one panel, the differences below."""
    shown, apart = series[0].shown, differences(series, reference)
    of_values, of_differences = scales(series, reference)
    styles = line_styles([one.name for one in series], reference)
    grid = panel_grid(1 + bool(apart), 1, 0.42, right=0.2, title="t", width=6.0, largest=5.0, top=0.3, row_gap=0.14)
    moving = []
    rows = [
        ({one.name: one.values for one in series}, of_values, shown.label),
        (apart, of_differences, f"difference to\n{reference}"),
    ]
    for (ax,), (values, scale, label) in zip(grid.axes, rows):
        open_axes(ax)
        ax.set(xlim=shown.bounds[0], ylim=line_limits(list(values.values()), scale))
        for name, frames in values.items():
            (line,) = ax.plot(shown.centres(), np.zeros_like(shown.centres()), label=name, **styles[name])
            moving.append((line, frames, scale))
        ax.set_ylabel(label)
    for (ax,) in grid.axes:
        ax.tick_params(labelbottom=ax is grid.axes[-1][0])
    grid.axes[-1][0].set_xlabel(shown.axes[0])
    top = grid.axes[0][0]
    if any(one.name for one in series):
        top.legend(
            ncols=len(series),
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            frameon=False,
            labelcolor="linecolor",
            handlelength=1.4,
            columnspacing=1.2,
            borderaxespad=0.2,
            borderpad=0.1,
        )
    note = top.text(0.01, 0.97, "", transform=top.transAxes, va="top", fontsize=7.5, fontstyle="italic")

    def update(frame: int) -> None:
        grid.figure.texts[0].set_text(f"t = {series[0].frames[frame] * dt:.4g}")
        note.set_text("\n".join(text for one in series for text in remarks(one.name, one.values[frame], of_values)))
        for line, frames, scale in moving:
            line.set_ydata(np.where(np.isfinite(frames[frame]), frames[frame], np.nan))
            line.set_visible(not remarks("", frames[frame], scale))  # it would hatch the panel with verticals

    return Scene(grid.figure, update, [], [str(style["color"]) for style in styles.values()])
