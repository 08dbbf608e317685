"""Tensors larger than memory, a piece at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

import torch

from phi_hybrid.bridge.numbers import in_double, square
from phi_hybrid.errors import DataError

PIECE = 2**20
"""Values looked at in one go."""
WAY_OUT = "take another copy of the file, or generate it again"


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


def write_pieces(file: BinaryIO, tensor: torch.Tensor) -> int:
    """Writes the values of a tensor; returns their checksum.

    CRC-32 finds every damage of up to 32 bits in a row, and all but one in 4·10⁹ others. It comes with Python and is
    several times faster than the hashes that do, which would also withstand forgery, of which a file without a signature
    is not safe anyway.
    """
    checksum = 0
    for _, piece in pieces(tensor.detach()):
        values = piece.cpu().resolve_conj().resolve_neg().contiguous().numpy()
        file.write(values.data)
        checksum = zlib.crc32(values, checksum)
    return checksum


def look_through(
    tensor: torch.Tensor, name: str, file: BinaryIO | None = None, checksum: int | None = None
) -> torch.Tensor:
    """Checks all values in one pass, and returns the tensor.

    Args:
        tensor: `(trajectory, …)`.
        name: of the tensor, for errors.
        file: where to read the values from first, into the tensor; from its position on.
        checksum: of the values as they were written, `None` where that is unknown.

    Raises:
        DataError: for values that are missing or are not those that were written; else, with its place, for the first
            NaN or infinity.
    """
    found, place = 0, None
    for (*outer, first), piece in pieces(tensor):
        if file is not None and file.readinto(piece.numpy().data) != piece.numel() * piece.element_size():
            raise DataError(f"{name} is truncated; {WAY_OUT}")
        if checksum is not None:
            found = zlib.crc32(piece.numpy(), found)
        if place is None and not _is_finite(piece):
            row, *inner = (~torch.isfinite(piece)).nonzero()[0].tolist()
            place = (*outer, first + row, *inner)
    if checksum not in (None, found):
        raise DataError(
            f"{name} is damaged: its values have the checksum {found:08x}, those that were written had {checksum:08x}; "
            f"{WAY_OUT}"
        )
    if place is not None:
        trajectory, *rest = place
        raise DataError(
            f"{name} holds NaN or infinity, first in trajectory {trajectory} at index {rest} of (time, …); drop this "
            "trajectory or generate it with a smaller time step"
        )
    return tensor


def _is_finite(piece: torch.Tensor) -> bool:
    if not (piece.is_floating_point() or piece.is_complex()):
        return True
    # NaN and infinity survive any sum, which is faster than looking at each value; large values may overflow.
    return bool(torch.isfinite(piece.sum())) or bool(torch.isfinite(piece).all())


def mean_and_deviation(*tensors: torch.Tensor) -> tuple[float, float]:
    """|⟨u⟩| and √(Σ |u − ⟨u⟩|² / (N − 1)) over all values of all tensors, in float64; NaN for the deviation of a single one."""
    count = sum(tensor.numel() for tensor in tensors)
    mean = sum(in_double(piece).sum() for tensor in tensors for _, piece in pieces(tensor)) / count
    squares = sum(square(in_double(piece) - mean).sum() for tensor in tensors for _, piece in pieces(tensor))
    return float(abs(mean)), float((squares / (count - 1)).sqrt())


def rounding(tensor: torch.Tensor) -> float:
    """Largest variation, relative to the root mean square of a vector field, that is taken for rounding; 0 of whole numbers."""
    exact = not (tensor.is_floating_point() or tensor.is_complex())
    return 0.0 if exact else 16 * torch.finfo(tensor.dtype).eps
