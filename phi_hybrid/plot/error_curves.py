"""Growth of the error along a rollout, with its spread over the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from phi.math import Tensor

from phi_hybrid.bridge.dims import TIME
from phi_hybrid.errors import StateError
from phi_hybrid.plot._data import require_numbers
from phi_hybrid.plot._style import HALO, LineEnd, band_key, label_ends, line_figure, line_styles, open_axes, styled


@styled
def errors(
    curves: Mapping[str, Any],
    *,
    dt: float = 1.0,
    ax: Axes | None = None,
    quantity: str = "MAE",
    log: bool = True,
    band: tuple[float, float] = (10, 90),
    order: Sequence[str] = (),
) -> Figure:
    """Show the median error over time with a band of percentiles over the samples.

    Non-finite errors count as larger than every finite one, and −∞ (a failed correlation) as smaller, so failed samples
    stay in the statistics: a line ends where its median is no longer finite. The first failure is marked with a cross
    and the number of failed samples.

    Args:
        curves: Mapping name → errors of shape (samples, time) or (time,): arrays, torch tensors, or PhiML tensors with
            a `time` dim whose other dims are the samples. Entry 0 belongs to t = 0.
        dt: Time between two entries.
        ax: Axes to draw into; by default those of a new figure.
        quantity: Name of the error, with its unit if it has one.
        log: Whether the vertical axis is logarithmic; zero errors are left out then.
        band: Lower and upper percentile of the band.
        order: Names of all solvers of a run; each has the colour of its place, whichever of them are shown.

    Returns:
        The figure.

    Raises:
        StateError: For curves of another rank, without a `time` dim or empty, and for percentiles out of order.
    """
    if not 0 <= band[0] <= band[1] <= 100:
        raise StateError(f"band={band}: expected two increasing percentiles between 0 and 100, e.g. (10, 90)")
    if not isinstance(curves, Mapping) or not curves:
        raise StateError(
            f"curves = {curves!r:.60}: expected a mapping name -> errors (samples, time), e.g. evaluation.curves('mae')"
        )
    require_numbers(dt=dt)
    samples = {str(name): as_samples(str(name), curve) for name, curve in curves.items()}
    figure, ax = line_figure(ax)
    open_axes(ax)
    ax.set(xlabel="t", ylabel=quantity, yscale="log" if log else "linear")
    styles = line_styles(list(samples), order=order)
    spreads = {name: statistics(values, band) for name, values in samples.items()}
    ends = [_draw(ax, name, dt, spread, log, styles[name]) for name, spread in spreads.items()]
    longest = max(values.shape[1] for values in samples.values())
    ax.set_xlim(0, dt * max(longest - 1, 1))
    _fill_bands(ax, dt, spreads, log, styles)
    for name, values in samples.items():
        _mark_failure(ax, dt, values, spreads[name][1], log, styles[name]["color"])
    label_ends(ax, ends)
    if any(len(values) > 1 for values in samples.values()):
        low, high = band
        band_key(ax, "min–max of the samples" if (low, high) == (0, 100) else f"{low:g}–{high:g} % of the samples")
    return figure


def as_samples(name: str, curve: Any) -> np.ndarray:
    """Errors as an array (samples, time)."""
    if isinstance(curve, Tensor):
        if TIME not in curve.shape:
            raise StateError(f"curve {name!r}: no dim 'time' in {curve.shape}; average over space, not over time")
        return np.asarray(curve.numpy([curve.shape.without(TIME), TIME]), dtype=np.float64)
    try:
        values = torch.as_tensor(curve).detach().cpu().double().numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise StateError(f"curve {name!r}: expected an array (samples, time), got {curve!r:.60}") from error
    if values.ndim not in (1, 2) or not values.size:
        raise StateError(f"curve {name!r}: expected shape (samples, time) or (time,), got {values.shape}")
    return np.atleast_2d(values)


def statistics(values: np.ndarray, band: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower percentile, median and upper percentile over the samples at each time; NaN counts as ∞."""
    ranked = np.where(np.isnan(values), np.inf, values)
    lower, median, upper = (_percentile(ranked, percent) for percent in (band[0], 50, band[1]))
    return lower, median, upper


def _percentile(ranked: np.ndarray, percent: float) -> np.ndarray:
    # Linear interpolation between a finite value and ±∞ gives nan if its weight is 0, hence the two neighbours.
    below = np.percentile(ranked, percent, axis=0, method="lower")
    above = np.percentile(ranked, percent, axis=0, method="higher")
    with np.errstate(invalid="ignore"):
        between = np.percentile(ranked, percent, axis=0)
    mixed = np.where(np.isneginf(below), -np.inf, np.where(np.isfinite(above), between, np.inf))
    return np.where(below == above, below, mixed)


def _drawable(values: np.ndarray, log: bool) -> np.ndarray:
    return np.isfinite(values) & (values > 0) if log else np.isfinite(values)


def _draw(ax: Axes, name: str, dt: float, spread: tuple[np.ndarray, ...], log: bool, style: dict) -> LineEnd:
    median = spread[1]
    shown = _drawable(median, log)
    ax.plot(dt * np.arange(len(median)), np.where(shown, median, np.nan), label=name, **style)
    if not shown.any():
        return LineEnd(name, style["color"], np.nan, np.nan)
    last = int(np.flatnonzero(shown)[-1])
    return LineEnd(name, style["color"], dt * last, median[last])


def _fill_bands(ax: Axes, dt: float, spreads: dict[str, tuple], log: bool, styles: dict[str, dict]) -> None:
    # The limits belong to what is finite; only then may an infinite edge be drawn as that of the axes.
    for name, (lower, _, upper) in spreads.items():
        shown = _drawable(lower, log) & _drawable(upper, log)
        ax.fill_between(
            dt * np.arange(len(lower)), lower, upper, where=shown, color=styles[name]["color"], alpha=0.16, linewidth=0
        )
    bottom, top = ax.get_ylim()
    for name, (lower, _, upper) in spreads.items():
        low, high = np.where(np.isneginf(lower), bottom, lower), np.where(np.isposinf(upper), top, upper)
        shown = _drawable(low, log) & _drawable(high, log) & (np.isinf(lower) | np.isinf(upper))
        ax.fill_between(
            dt * np.arange(len(low)), low, high, where=shown, color=styles[name]["color"], alpha=0.07, linewidth=0
        )
    ax.set_ylim(bottom, top)


def _mark_failure(ax: Axes, dt: float, values: np.ndarray, median: np.ndarray, log: bool, colour: str) -> None:
    """A cross where the first sample becomes non-finite, on the median as far as that is finite."""
    failed = ~np.isfinite(values)
    if not failed.any():
        return
    step = int(np.flatnonzero(failed.any(axis=0))[0])
    known = np.flatnonzero(_drawable(median[: step + 1], log))
    many = f" ({failed.any(axis=1).sum()} of {len(values)})" if len(values) > 1 else ""
    note = f"blow-up from t = {dt * step:.4g}{many}"
    if len(known):
        at, height, transform = dt * known[-1], median[known[-1]], "data"
        ax.plot(at, height, marker="X", markersize=8, color=colour, markeredgecolor="white", zorder=6)
    else:
        at, height, transform = 0.0, 0.0, "axes fraction"  # nothing to stand on: the first step has failed already
        ax.plot(at, height, marker="X", markersize=8, color=colour, transform=ax.transAxes, clip_on=False, zorder=6)
    rightwards = at < 0.6 * ax.get_xlim()[1]
    ax.annotate(
        note,
        (at, height),
        xycoords=transform,
        xytext=(6 if rightwards else -6, 7),
        textcoords="offset points",
        color=colour,
        fontsize=7.5,
        fontstyle="italic",
        zorder=6,
        path_effects=HALO,
        ha="left" if rightwards else "right",
    )
