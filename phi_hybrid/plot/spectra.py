"""Isotropic energy spectra of periodic fields."""

from __future__ import annotations

import warnings

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from phi import math
from phi.field import Field

from phi_hybrid.plot._data import Trajectories, as_mapping, frame_count, pick_frames
from phi_hybrid.plot._labels import LineEnd, corner_notes, label_ends
from phi_hybrid.plot._quantity import centred, is_periodic, space_names
from phi_hybrid.plot._style import line_figure, line_styles, open_axes, styled


@styled
def spectrum(
    trajectories: Trajectories, *, frame: int = -1, ax: Axes | None = None, example: int | None = None
) -> Figure:
    """Show the energy spectrum of several solvers at one frame on logarithmic axes.

    E(k) as in `energy_spectrum`, averaged over the entries of all batch dims other than `time`. Non-finite entries are
    left out of the average and their number is noted; the mean flow (k = 0) is not shown.

    Args:
        trajectories: Field (time, x[, y[, z]][, vector]), or a mapping name → Field.
        frame: Index of the frame, negative from the end.
        ax: Axes to draw into; by default those of a new figure.
        example: Entry of each batch dim other than `time`, instead of the average.

    Returns:
        The figure.

    Raises:
        ValueError: For a missing `time` dim and for a frame or example out of range.
    """
    fields = as_mapping(trajectories)
    at = int(pick_frames([frame], frame_count(fields))[0])
    figure, ax = line_figure(ax)
    open_axes(ax)
    ax.set(xscale="log", yscale="log", xlabel="wavenumber k [rad / length]", ylabel="energy E(k)")
    styles, curves, notes = line_styles(list(fields)), {}, []
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


def energy_spectrum(field: Field) -> tuple[np.ndarray, np.ndarray]:
    """Isotropic energy spectrum of a periodic field, averaged over its batch dims.

    E(k) = ½ Σ_{|κ| ∈ shell k} |û(κ)|² with û = FFT(u) / N, where the shell of k = n·Δk holds all κ with
    |κ| / Δk rounded to n. Hence Σ_k E(k) = ½ ⟨|u|²⟩ (Parseval), the mean flow at k = 0 included.

    The faces of periodic staggered grids enter as they are: a shift does not change |û|, while the interpolation to
    cell centres would damp the small scales. Other boundaries are treated as if they were periodic, with a warning.

    Args:
        field: Field (x[, y[, z]][, vector]) with any batch dims.

    Returns:
        Wavenumbers k = 2π n / L in rad per length, with Δk that of the longest box edge, and E(k) in squared units of
        the field. Non-finite fields give a non-finite spectrum.
    """
    wavenumber, energies = _spectra(field, None)
    return wavenumber, energies.mean(axis=0)


def _spectra(field: Field, example: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers (k,) and energies (entries, k) of each batch entry."""
    names = space_names(field)
    periodic = all(is_periodic(field, name) for name in names)
    if not periodic:
        warnings.warn(
            f"energy spectrum of a field with boundary {field.boundary}: the jump at non-periodic edges "
            f"shows as a false tail of about k⁻²",
            stacklevel=3,
        )
    values = _entries(field, names, periodic, example)
    numbers = [
        2 * np.pi * np.fft.fftfreq(size, float(field.dx.vector[name])) for name, size in zip(names, values.shape[2:])
    ]
    step = 2 * np.pi / max(float(field.bounds.size.vector[name]) for name in names)
    length = np.sqrt(sum(part**2 for part in np.meshgrid(*numbers, indexing="ij")))
    shell = np.rint(length / step).astype(int).ravel()
    axes = tuple(range(2, values.ndim))
    with np.errstate(all="ignore"):
        modes = np.fft.fftn(values, axes=axes) / np.prod(values.shape[2:])
        power = 0.5 * (np.abs(modes) ** 2).sum(axis=1).reshape(len(values), -1)
    # bincount would spread a single nan to its own shell only, although every mode of such an entry is nan
    energies = np.stack([np.bincount(shell, weights=entry) for entry in power])
    filled = np.bincount(shell) > 0
    return step * np.flatnonzero(filled), energies[:, filled]


def _entries(field: Field, names: list[str], periodic: bool, example: int | None) -> np.ndarray:
    """Values (entries, components, x[, y[, z]])."""
    values = field.values if periodic and field.values.shape.is_uniform else centred(field).values
    values = math.expand(values, field.resolution.only(names))
    batch = values.shape.batch
    if example is not None:
        wrong = {
            dim: batch.get_size(dim) for dim in batch.names if not -batch.get_size(dim) <= example < batch.get_size(dim)
        }
        if wrong:
            raise ValueError(f"example={example} out of range: the batch dims have sizes {wrong}")
        values = values[{dim: example for dim in batch.names}]
        batch = values.shape.batch
    return np.asarray(values.numpy([batch, values.shape.without(batch).without(names), *names]), dtype=np.float64)
