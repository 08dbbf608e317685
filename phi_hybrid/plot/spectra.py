"""Isotropic energy spectra of periodic fields."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from phi import math
from phi.field import Field
from phi.math import batch

from phi_hybrid.bridge import flatten
from phi_hybrid.errors import StateError
from phi_hybrid.evaluation import quantities
from phi_hybrid.plot._data import Trajectories, check_reference, frame_count, named_fields, pick_frames
from phi_hybrid.plot._style import (
    LineEnd,
    corner_notes,
    label_ends,
    line_figure,
    line_styles,
    open_axes,
    styled,
)


@styled
def spectrum(
    trajectories: Trajectories,
    *,
    reference: str | None = None,
    frame: int = -1,
    ax: Axes | None = None,
    part: str | int | None = None,
    example: int | None = None,
    order: Sequence[str] = (),
) -> Figure:
    """Show the energy spectrum of several solvers at one frame on logarithmic axes.

    E(k) as in `energy_spectrum`, averaged over the entries of all batch dims other than `time`. Non-finite entries are
    left out of the average and their number is noted; the mean flow (k = 0) is not shown.

    Args:
        trajectories: Field (time, x[, y[, z]][, vector]), or a mapping name → Field; with `part`, states of several
            Fields instead.
        reference: Name of the trajectory that is drawn in black beneath the others.
        frame: Index of the frame, negative from the end.
        ax: Axes to draw into; by default those of a new figure.
        part: As in `rollout`.
        example: Entry of each batch dim other than `time`, instead of the average.
        order: As in `errors`.

    Returns:
        The figure.

    Raises:
        StateError: For a missing `time` dim, a frame or example out of range, an unknown reference, and fields that are
            not periodic.
    """
    fields = named_fields(trajectories, part)
    check_reference(list(fields), reference)
    at = int(pick_frames([frame], frame_count(fields))[0])
    figure, ax = line_figure(ax)
    open_axes(ax)
    ax.set(xscale="log", yscale="log", xlabel="wavenumber k [rad / length]", ylabel="energy E(k)")
    styles, curves, notes = line_styles(list(fields), reference, order), {}, []
    for name, field in fields.items():
        wavenumber, energies = _spectra(field[{"time": at}], example)
        finite = np.isfinite(energies).all(axis=1)
        if not finite.all():
            who = f"{name}: " if name else ""
            notes.append((f"{who}{(~finite).sum()} of {len(finite)} non-finite", styles[name]["color"]))
        if finite.any():
            curves[name] = wavenumber[1:], energies[finite].mean(axis=0)[1:]
    # The round-off of single precision would otherwise stretch the axis over empty decades.
    floor = 1e-13 * max((energy.max() for _, energy in curves.values()), default=0.0)
    ends = []
    for name, (k, energy) in curves.items():
        seen = np.flatnonzero(energy > floor)
        ax.plot(k, np.where(energy > floor, energy, np.nan), label=name, **styles[name])
        ends += [LineEnd(name, styles[name]["color"], k[seen[-1]], energy[seen[-1]])] if len(seen) else []
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    corner_notes(ax, notes)
    label_ends(ax, ends)
    return figure


def energy_spectrum(field: Field, complete: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """E(k) = ½ Σ |û(κ)|² over the shell |κ| ≈ k of a periodic field, averaged over its batch dims.

    Shells k = n·Δk, Δk = 2π / longest edge, see `quantities.energy_spectrum`.

    Args:
        field: periodic, `(batch, x[, y[, z]][, vector])`; faces of staggered fields enter as they are, since a shift does
            not change |û|, while interpolation to the centres would damp the small scales.
        complete: whether to leave out the shells beyond the Nyquist wavenumber, of which a box holds corners only.

    Returns:
        Wavenumbers k = 2πn/L in rad per length, the mean flow k = 0 included, and E(k) in squared units of the field.
        Non-finite fields give a non-finite spectrum.

    Raises:
        StateError: for fields that are not periodic.
    """
    wavenumber, energies = _spectra(field, None, complete)
    return wavenumber, energies.mean(axis=0)


def _spectra(field: Field, example: int | None, complete: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers (k,) and energies (entries, k) of each batch entry."""
    tensors, layout = flatten(_entries(field, example))
    energies = quantities.energy_spectrum([tensor.detach() for tensor in tensors], layout, complete).cpu().numpy()
    step = 2 * np.pi / max(float(length) for length in field.bounds.size)
    return step * np.arange(energies.shape[1]), energies


def _entries(field: Field, example: int | None) -> Field:
    """The field with all batch dims as a single one, or with one entry of it."""
    sizes = field.shape.batch
    if example is None:
        values = math.pack_dims(math.expand(field.values, sizes), sizes, batch("entry"))
        return field.with_values(values if sizes else math.expand(values, batch(entry=1)))
    wrong = {dim: size for dim, size in zip(sizes.names, sizes.sizes) if not -size <= example < size}
    if wrong:
        raise StateError(f"example = {example} out of range: the batch dims have sizes {wrong}")
    values = field.values[{dim: example for dim in sizes.names}]
    return field.with_values(math.expand(values, batch(entry=1)))
