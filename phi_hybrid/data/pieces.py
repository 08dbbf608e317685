"""Checks and statistics of tensors that may be larger than memory, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from phi_hybrid.errors import DataError

PIECE = 2**20
"""Values looked at in one go."""


def pieces(tensor: torch.Tensor, within: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Slices of at most `PIECE` values, in order; with each the indices of its first entry along the leading axes.

    Entry `[k, …]` of a slice that comes with `(i, j)` is `tensor[i, j + k, …]`.
    """
    if tensor.ndim == 0:
        yield within, tensor
        return
    per_row = max(1, tensor[:1].numel())
    if per_row > PIECE and tensor.ndim > 1:
        for row, entries in enumerate(tensor):
            yield from pieces(entries, (*within, row))
    else:
        count = max(1, PIECE // per_row)
        yield from (((*within, count * n), piece) for n, piece in enumerate(tensor.split(count)))


def require_finite(tensor: torch.Tensor, name: str) -> None:
    """Raises DataError with the place of the first NaN or infinity in a tensor `(trajectory, …)`."""
    for (*outer, first), piece in pieces(tensor):
        if not torch.isfinite(piece).all():
            row, *inner = (~torch.isfinite(piece)).nonzero()[0].tolist()
            trajectory, *rest = (*outer, first + row, *inner)
            raise DataError(
                f"{name} holds NaN or infinity, first in trajectory {trajectory} at index {rest} of (time, …); drop this "
                "trajectory or generate it with a smaller time step"
            )


def standard_deviation(tensor: torch.Tensor) -> float:
    """√(Σ (u − ⟨u⟩)² / (N − 1)) over all values, in float64; NaN for a single one."""
    mean = sum(piece.double().sum() for _, piece in pieces(tensor)) / tensor.numel()
    squares = sum((piece.double() - mean).square().sum() for _, piece in pieces(tensor))
    return float((squares / (tensor.numel() - 1)).sqrt())
