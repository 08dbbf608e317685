"""Growth of gradients over many steps, and the error of finite differences, of one check of gradients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from phi_hybrid.errors import StateError
from phi_hybrid.plot._style import COLOURS, FAINT, LineEnd, label_ends, legend_below, line_styles, open_axes, styled
from phi_hybrid.sensitivity import SIZES, USEFUL, Curve, GradientCheck


@styled
def gradient_growth(check: GradientCheck | Mapping[str, GradientCheck]) -> Figure:
    """Show how gradients grow over the steps, and how far finite differences are from them.

    On the left the norm of cotangents pulled back and of tangents pushed forward through 1, 2, … steps: the largest of the
    directions, and a band over all of them. Several checks have a colour each, thick backwards and thin forwards. The grey range is that of useful gradients, 1e-3 … 1e3. On
    the right |⟨w, D(h)⟩ − ⟨f'ᵀw, d⟩| relative to ‖w·f'd‖ over the step size h of central differences D, the median of all
    directions with a band from the smallest to the largest: a right gradient falls like h² until rounding raises it like
    1/h, a kink delays the fall, a wrong gradient stays.

    Args:
        check: result of `phi_hybrid.check_gradients`, or a mapping name → result to compare.

    Returns:
        The figure, of two panels.

    Raises:
        StateError: for something else than results.
    """
    checks = dict(check) if isinstance(check, Mapping) else {"": check}
    if not checks or not all(isinstance(c, GradientCheck) for c in checks.values()):
        raise StateError(f"check = {check!r:.60}: expected what check_gradients returns, or a mapping name -> result")
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = line_styles(list(checks))
    _draw_growth(left, checks, styles)
    _draw_differences(right, checks, styles)
    return figure


def _draw_growth(ax: Axes, checks: Mapping[str, GradientCheck], styles: Mapping[str, dict]) -> None:
    open_axes(ax)
    ax.set(yscale="log", xlabel="steps", ylabel="norm of the gradient")
    ax.axhspan(*USEFUL, color=FAINT, alpha=0.12, linewidth=0)
    ends = []
    for name, check in checks.items():
        growth, style = check.growth, styles[name]
        if growth is None:
            continue
        ends.append(_draw_curve(ax, growth.reverse, style, name or "backwards"))
        if growth.forward is not None:
            other = {**style, "linewidth": 0.7} if name else {**style, "color": COLOURS[1], "linestyle": "--"}
            ends.append(_draw_curve(ax, growth.forward, other, "" if name else "forwards"))
    label_ends(ax, ends)
    if any(checks):
        handles = [
            Line2D([], [], color=FAINT, linewidth=w, label=t) for w, t in ((1.5, "backwards"), (0.7, "forwards"))
        ]
    else:
        handles = []
    handles.append(Patch(color=FAINT, alpha=0.3, linewidth=0, label="all directions"))
    legend_below(ax, handles)


def _draw_curve(ax: Axes, curve: Curve, style: dict, name: str) -> LineEnd:
    norms = np.where((curve.norms > 0) & curve.norms.isfinite(), curve.norms, np.nan)
    largest, steps = np.array(curve.largest), np.arange(norms.shape[1])
    drawn = np.isfinite(largest) & (largest > 0)
    ax.plot(steps, np.where(drawn, largest, np.nan), **style)
    ax.fill_between(
        steps, np.min(norms, 0), np.where(drawn, largest, np.nan), color=style["color"], alpha=0.16, linewidth=0
    )
    last = int(np.flatnonzero(drawn)[-1])
    return LineEnd(name, style["color"], last, largest[last])


def _draw_differences(ax: Axes, checks: Mapping[str, GradientCheck], styles: Mapping[str, dict]) -> None:
    open_axes(ax)
    ax.set(xscale="log", yscale="log", xlabel="step size h of the differences", ylabel="relative difference")
    ends = []
    for name, check in checks.items():
        curves = np.array([c for argument in check.size_curves.values() for c in argument])
        if not curves.size:
            continue
        curves = np.where(np.isfinite(curves) & (curves > 0), curves, np.nan)
        median, colour = np.nanmedian(curves, 0), styles[name]["color"]
        ax.plot(SIZES, median, **styles[name])
        ax.fill_between(SIZES, np.nanmin(curves, 0), np.nanmax(curves, 0), color=colour, alpha=0.16, linewidth=0)
        ends.append(LineEnd(name, colour, SIZES[0], median[0]))
    label_ends(ax, ends)
    handles = [
        Line2D([], [], color=FAINT, label="median"),
        Patch(color=FAINT, alpha=0.3, linewidth=0, label="all directions"),
    ]
    legend_below(ax, handles)
