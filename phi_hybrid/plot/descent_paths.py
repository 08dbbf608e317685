"""Paths of a search on the loss around them, in the plane that holds most of the paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from phi.math import Tensor

from phi_hybrid.bridge.dims import ITERATION
from phi_hybrid.bridge.layout import Layout, batch_names, flatten, unflatten
from phi_hybrid.errors import StateError
from phi_hybrid.plot._style import HALO, INK, line_figure, line_styles, styled


@styled
def descent(
    paths: Mapping[str, Any],
    loss: Callable[[Any], Any],
    *,
    marks: Mapping[str, Any] | None = None,
    cells: int = 41,
    ax: Axes | None = None,
    quantity: str = "loss",
) -> Figure:
    """Show iterates of one or several searches in the plane of their two leading principal components.

    Iterates are projected onto the plane, x ≈ c + a·p₁ + b·p₂ with c their mean; the image is the loss in the plane
    itself, log₁₀ φ(c + a·p₁ + b·p₂). The labels say how much of the variance of the iterates lies along each component:
    what lies beyond the plane is not seen (Li et al. 2018, arXiv 1712.09913).

    Args:
        paths: Mapping name → states with a batch dim `iteration`, e.g. the `path` of `phi_hybrid.reconstruct`.
        loss: φ, `states -> Tensor` with the dim `iteration`, or torch tensor, of values ≥ 0; is called with `cells`²
            states at once.
        marks: Mapping name → state, marked by a star, e.g. the truth.
        cells: Points along each side at which the loss is computed.
        ax: Axes to draw into; by default those of a new figure.
        quantity: Name of the loss, with its unit if it has one.

    Returns:
        The figure.

    Raises:
        StateError: For paths without `iteration`, with further batch dims, of different kinds, or of less than three
            different iterates altogether.
    """
    if not isinstance(paths, Mapping) or not paths:
        raise StateError(f"paths = {paths!r:.60}: expected a mapping name -> states with a batch dim 'iteration'")
    layouts, vectors = zip(*(_iterates(str(name), states) for name, states in paths.items()))
    for name, layout in zip(paths, layouts):
        if layout != layouts[0]:
            raise StateError(f"path {name!r} is of states of another kind than {next(iter(paths))!r}")
    centre, plane, shares = _principal_plane(torch.cat(vectors))
    tracks = {str(name): _coordinates(v, centre, plane) for name, v in zip(paths, vectors)}
    stars = {str(name): _coordinates(_vectors(flatten(s)[0], 1), centre, plane)[0] for name, s in (marks or {}).items()}
    figure, ax = line_figure(ax)
    a, b = _window(np.concatenate([*tracks.values(), *(star[None] for star in stars.values())]), cells)
    grid = torch.as_tensor(np.stack(np.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 2))
    image = _values(loss, _states(centre + grid @ plane, next(iter(paths.values())), layouts[0])).reshape(cells, cells)
    _landscape(ax, a, b, image, quantity)
    _draw(ax, tracks, stars)
    labels = [f"component {n + 1} ({100 * share:.0f} % of the variance)" for n, share in enumerate(shares)]
    ax.set(xlabel=labels[0], ylabel=labels[1], xlim=a[[0, -1]], ylim=b[[0, -1]], aspect="equal")
    return figure


# --- the plane ---


def _iterates(name: str, states: Any) -> tuple[Layout, torch.Tensor]:
    """Layout, and all iterates as vectors in double precision, `(iteration, entry)`."""
    tensors, layout = flatten(states)
    if batch_names(layout) != [ITERATION]:
        raise StateError(
            f"path {name!r} has the batch dims {batch_names(layout)}, expected 'iteration' alone: keep_path=True of "
            "reconstruct gives it, and path.trajectory[0] takes one of several samples"
        )
    sizes = {tensor.shape[0] for tensor, axes in zip(tensors, layout.leaves) if ITERATION in [x.name for x in axes]}
    return layout, _vectors(tensors, sizes.pop())


def _vectors(tensors: tuple[torch.Tensor, ...], count: int) -> torch.Tensor:
    return torch.cat([t.detach().cpu().double().reshape(count, -1) for t in tensors], 1)


def _principal_plane(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Mean, the two leading principal directions `(2, entry)`, and their shares of the variance."""
    centre = vectors.mean(0)
    _, sizes, directions = torch.linalg.svd(vectors - centre, full_matrices=False)
    if len(sizes) < 2 or not sizes[1] > 1e-12 * sizes[0]:
        raise StateError(
            f"the {len(vectors)} iterates lie on a line, which spans no plane; show at least three that turn"
        )
    shares = (sizes**2 / (sizes**2).sum())[:2].tolist()
    outward = directions[:2] * torch.sign(directions[:2] @ (vectors[-1] - vectors[0]))[:, None]  # else of random sign
    return centre, torch.where(outward == 0, directions[:2], outward), shares


def _coordinates(vectors: torch.Tensor, centre: torch.Tensor, plane: torch.Tensor) -> np.ndarray:
    return ((vectors - centre) @ plane.T).numpy()


def _window(points: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the image: all points with some room, no side less than half of the other."""
    low, high = points.min(0), points.max(0)
    middle, reach = (low + high) / 2, 0.62 * (high - low)
    reach = np.maximum(reach, 0.5 * reach.max())
    return tuple(np.linspace(m - r, m + r, cells) for m, r in zip(middle, reach))


def _states(vectors: torch.Tensor, like: Any, layout: Layout) -> Any:
    """Vectors `(iteration, entry)` as states."""
    tensors, start = [], 0
    for tensor in flatten(like)[0]:
        size = tensor[0].numel()
        part = vectors[:, start : start + size].reshape(-1, *tensor.shape[1:])
        tensors.append(part.to(tensor))
        start += size
    return unflatten(layout, tensors)


def _values(loss: Callable, states: Any) -> np.ndarray:
    with torch.no_grad():
        found = loss(states)
    if isinstance(found, Tensor):
        return np.asarray(found.numpy(ITERATION), dtype=np.float64)
    return np.asarray(torch.as_tensor(found).cpu(), dtype=np.float64)


# --- drawing ---


def _landscape(ax: Axes, a: np.ndarray, b: np.ndarray, image: np.ndarray, quantity: str) -> None:
    """Logarithmic shades with contours; what is not finite or 0 is left white."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shades = np.where(image > 0, np.log10(image), np.nan)
    shades[~np.isfinite(shades)] = np.nan
    drawn = ax.pcolormesh(a, b, shades.T, cmap="bone", shading="gouraud", rasterized=True, vmin=_floor(shades))
    ax.contour(a, b, shades.T, levels=12, linestyles="solid", colors="white", linewidths=0.4, alpha=0.5)
    bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.9, pad=0.02)
    bar.outline.set_linewidth(0.6)
    bar.set_label(f"log₁₀ {quantity}")


def _floor(shades: np.ndarray) -> float:
    """Darkest shade: a little below the smallest value, so that the darkest is not black on which nothing is seen."""
    low, high = np.nanmin(shades), np.nanmax(shades)
    return low - 0.35 * (high - low)


def _draw(ax: Axes, tracks: dict[str, np.ndarray], stars: dict[str, np.ndarray]) -> None:
    for (name, track), style in zip(tracks.items(), line_styles(list(tracks)).values()):
        ax.plot(*track.T, marker="o", markersize=3, linewidth=1.2, label=name, path_effects=HALO, color=style["color"])
    starts = {tuple(track[0]) for track in tracks.values()}
    for start in starts:
        ax.plot(*start, "s", color=INK, markersize=6, markeredgecolor="white", zorder=5)
    for name, star in stars.items():
        ax.plot(
            *star, "*", color="#F0E442", markersize=13, markeredgecolor=INK, markeredgewidth=0.7, label=name, zorder=6
        )
    ax.legend(loc="best", fontsize=7.5, framealpha=0.85, handlelength=1.4)
