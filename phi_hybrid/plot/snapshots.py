"""Frames of several solvers side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from phi.field import Field

from phi_hybrid.plot._data import (
    Series,
    Trajectories,
    check_reference,
    frame_count,
    named_fields,
    pick_frames,
    read,
    require_numbers,
)
from phi_hybrid.plot._panels import (
    PanelGrid,
    Scale,
    differences,
    image,
    image_aspect,
    line_limits,
    note_non_finite,
    outer_labels,
    panel_grid,
    remarks,
    scales,
)
from phi_hybrid.plot._style import FAINT, LineEnd, corner_notes, label_ends, line_styles, open_axes, styled, with_unit


@styled
def rollout(
    trajectories: Trajectories,
    *,
    reference: str | None = None,
    times: int | Sequence[int] = 5,
    dt: float = 1.0,
    part: str | int | None = None,
    quantity: str | Callable[[Field], Field] | None = None,
    example: int = 0,
    title: str | None = None,
    unit: str = "",
) -> Figure:
    """Show frames of one or several solvers next to each other, with the differences to a reference below them.

    2D (and the middle plane of 3D): one row per solver, one column per frame, one colour scale for all. 1D: one column
    per frame with all solvers as lines. Below: δ(x, t) = u(x, t) − u_ref(x, t) on one symmetric scale.

    Args:
        trajectories: Field (time, x[, y[, z]][, vector]), or a mapping name → Field; with `part`, states of several Fields instead. Staggered fields are shown at the
            cell centres.
        reference: Name of the trajectory that differences are taken to and that sets the colour scale.
        times: Number of equally spaced frames, or the frame indices.
        dt: Time between two frames.
        part: Part of states of several fields: a key of dicts, an index of tuples.
        quantity: Component name, 'magnitude', 'vorticity' (2D) or a function Field → scalar Field. By default the
            values of scalars, the vorticity in 2D and the magnitude in 3D.
        example: Entry of each batch dim other than `time`.
        title: Heading of the figure.
        unit: Unit of the quantity.

    Returns:
        The figure; save it with `figure.savefig(path)`.

    Raises:
        StateError: For a missing `time` dim, an unknown reference or quantity, a frame or example out of range, or
            grids that differ.
    """
    fields = named_fields(trajectories, part)
    require_numbers(dt=dt)
    check_reference(list(fields), reference)
    series = read(fields, pick_frames(times, frame_count(fields)), quantity, example, part)
    labels = [f"t = {frame * dt:.4g}" for frame in series[0].frames]
    draw = _lines if len(series[0].shown.axes) == 1 else _images
    return draw(series, reference, labels, title, unit)


def _images(series: list[Series], reference: str | None, times: list[str], title: str | None, unit: str) -> Figure:
    shown, apart = series[0].shown, differences(series, reference)
    rows: list[tuple[str, np.ndarray, bool]] = []
    for one in sorted(series, key=lambda one: one.name != reference) if reference is not None else series:
        rows.append((one.name, one.values, False))
        if one.name in apart:
            rows.append(("difference", apart[one.name], True))
    grid = panel_grid(len(rows), len(times), image_aspect(shown), right=0.95, title=title)
    of_values, of_differences = scales(series, reference)
    extent = [edge for bounds in shown.bounds for edge in bounds]
    for row, (name, values, difference) in enumerate(rows):
        for column, frame in enumerate(values):
            image(grid.axes[row][column], frame, extent, of_differences if difference else of_values)
            note_non_finite(grid.axes[row][column], frame, extent)
        grid.row_label(row, name, FAINT if difference else "black")
    for ax, text in zip(grid.axes[0], times):
        ax.set_title(text, pad=4)
    outer_labels(grid.axes, shown.axes[0], shown.axes[1])
    _bars(
        grid,
        of_values,
        of_differences,
        with_unit(shown.label, unit),
        with_unit(f"difference to {reference}", unit),
        len(rows),
    )
    return grid.figure


def _bars(
    grid: PanelGrid, of_values: Scale, of_differences: Scale | None, label: str, difference: str, rows: int
) -> None:
    upper = rows if of_differences is None else (rows + 1) // 2
    grid.colour_bar(of_values, label, (0, upper))
    if of_differences is not None:
        grid.colour_bar(of_differences, difference, (upper, rows))


def _lines(series: list[Series], reference: str | None, times: list[str], title: str | None, unit: str) -> Figure:
    shown, apart = series[0].shown, differences(series, reference)
    of_values, of_differences = scales(series, reference)
    longest = max(len(one.name) for one in series)
    grid = panel_grid(1 + bool(apart), len(times), 0.85, right=0.25 + 0.075 * longest, title=title, row_gap=0.14)
    label = with_unit(shown.label, unit)
    rows = [({one.name: one.values for one in series}, of_values, label)]
    if apart:
        rows.append((apart, of_differences, f"difference to\n{reference}"))
    for axes, (values, scale, y_label) in zip(grid.axes, rows):
        draw_lines(
            axes,
            values,
            scale,
            shown.centres(),
            shown.bounds[0],
            line_styles(list(values), reference if reference in values else None),
        )
        axes[0].set_ylabel(y_label)
    for ax, text in zip(grid.axes[0], times):
        ax.set_title(text, pad=4)
    for row, axes in enumerate(grid.axes):
        for column, ax in enumerate(axes):
            ax.tick_params(labelbottom=row == len(rows) - 1, labelleft=column == 0)
            ax.set_xlabel(shown.axes[0] if row == len(rows) - 1 else "")
    return grid.figure


def draw_lines(
    axes: Sequence[Axes],
    values: dict[str, np.ndarray],
    scale: Scale,
    x: np.ndarray,
    bounds: tuple[float, float],
    styles: dict[str, dict[str, object]],
) -> None:
    """One panel per frame with one line per solver (time, x); names stand beside the last panel."""
    limits = line_limits(list(values.values()), scale)
    for column, ax in enumerate(axes):
        open_axes(ax)
        ax.set(xlim=bounds, ylim=limits)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        notes = []
        for name, frames in values.items():
            line, remark = (
                np.where(np.isfinite(frames[column]), frames[column], np.nan),
                remarks(name, frames[column], scale),
            )
            # a line that leaves its panel would hide all others behind a hatching of verticals
            ax.plot(x, line, label=name, **styles[name] | ({"alpha": 0.2, "linewidth": 0.7} if remark else {}))
            notes += [(text, styles[name]["color"]) for text in remark]
        corner_notes(ax, notes)
    label_ends(
        axes[-1], [LineEnd(name, styles[name]["color"], bounds[1], frames[-1][-1]) for name, frames in values.items()]
    )
