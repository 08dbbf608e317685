"""Space-time images of one-dimensional trajectories."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure
from phi.field import Field

from phi_hybrid.errors import StateError
from phi_hybrid.plot._data import (
    Trajectories,
    check_reference,
    frame_count,
    named_fields,
    pick_frames,
    read,
    require_numbers,
    space_rank,
)
from phi_hybrid.plot._panels import differences, image, note_non_finite, outer_labels, panel_grid, scales
from phi_hybrid.plot._style import styled, with_unit


@styled
def spacetime(
    trajectories: Trajectories,
    *,
    reference: str | None = None,
    dt: float = 1.0,
    part: str | int | None = None,
    quantity: str | Callable[[Field], Field] | None = None,
    example: int = 0,
    title: str | None = None,
    unit: str = "",
) -> Figure:
    """Show 1D trajectories over x (to the right) and t (upwards), with the differences to a reference below them.

    δ(x, t) = u(x, t) − u_ref(x, t) on one symmetric scale; all upper panels share one colour scale.

    Args:
        trajectories: Field (time, x[, vector]), or a mapping name → Field; with `part`, states of several Fields instead: one panel each.
        reference: Name of the trajectory that differences are taken to and that sets the colour scale.
        dt: Time between two frames.
        part: Part of states of several fields: a key of dicts, an index of tuples.
        quantity: Component name, 'magnitude' or a function Field → scalar Field; by default the values.
        example: Entry of each batch dim other than `time`.
        title: Heading of the figure.
        unit: Unit of the quantity.

    Returns:
        The figure.

    Raises:
        StateError: For fields that are not 1D, and as in `rollout`.
    """
    fields = named_fields(trajectories, part)
    require_numbers(dt=dt)
    check_reference(list(fields), reference)
    count = frame_count(fields)
    if space_rank(fields) != 1:
        raise StateError(
            f"spacetime shows 1D trajectories, got {next(iter(fields.values())).shape}; "
            f"use rollout or animate, or pass a slice such as trajectory.y[0]"
        )
    series = read(fields, pick_frames(range(count), count), quantity, example, part)
    if reference is not None:
        series.sort(key=lambda one: one.name != reference)
    shown, apart = series[0].shown, differences(series, reference)
    of_values, of_differences = scales(series, reference)
    grid = panel_grid(
        1 + bool(apart), len(series), 1.05, right=0.95, title=title, row_gap=0.14, top=0.24 if series[0].name else 0.08
    )
    # Each frame is one row of pixels, centred on its own time.
    extent = [*shown.bounds[0], -0.5 * dt, (count - 0.5) * dt]
    rows = [({one.name: one.values for one in series}, of_values), (apart, of_differences)]
    for axes, (values, scale) in zip(grid.axes, rows):
        for ax, one in zip(axes, series):
            if one.name in values:
                drawn = np.swapaxes(values[one.name], 0, 1)
                image(ax, drawn, extent, scale)
                note_non_finite(ax, drawn, extent)
            else:
                ax.set_axis_off()  # the reference has no difference to itself
    for ax, one in zip(grid.axes[0], series):
        ax.set_title(one.name, pad=4, fontweight="bold")
    outer_labels(grid.axes, shown.axes[0], "t")
    label = with_unit(shown.label, unit)
    grid.colour_bar(of_values, label, (0, 1))
    if of_differences is not None:
        grid.colour_bar(of_differences, with_unit(f"difference to {reference}", unit), (1, 2))
    return grid.figure
