"""Constants that follow the batch size: copies of one entry, or numbers of entries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

Pattern = tuple[torch.Tensor, "torch.Tensor | None", int]
"""Entry 0, what is added from entry to entry if anything, and the axis along which they are laid."""


def find_pattern(tensors: Sequence[torch.Tensor], axis: int, factor: int, sizes: Sequence[int]) -> Pattern | None:
    """How one constant is made at any batch size, from what it is at some; `None` if it is neither copied nor counted.

    Args:
        tensors: the constant at each batch size, factor · size entries along `axis`.
        axis: the only one along which sizes differ.
        factor: entries for each batch entry, which lie side by side or apart.
        sizes: batch sizes.
    """
    for outer in _divisors(factor):
        laid = [t.unflatten(axis, (outer, s, factor // outer)) for t, s in zip(tensors, sizes)]
        start, second = (laid[0].narrow(axis + 1, n, 1) for n in (0, 1))
        change = None if same_values(start, second) or start.dtype == torch.bool else second - start
        if change is not None and change.is_floating_point():  # which would be rounded
            continue
        if all(same_values(t, _counted(start, change, axis + 1, s)) for t, s in zip(laid, sizes)):
            return start, change, axis + 1
    return None


def _divisors(number: int) -> Iterator[int]:
    """The likeliest first: batch entries lie one after the other, or next to one another."""
    yield 1
    yield from (n for n in range(number, 1, -1) if number % n == 0)


def _counted(start: torch.Tensor, change: torch.Tensor | None, axis: int, size: int) -> torch.Tensor:
    """start + n · change for n = 0 … size − 1 along an axis."""
    repeated = start.expand(*start.shape[:axis], size, *start.shape[axis + 1 :])
    if change is None:
        return repeated
    numbers = torch.arange(size, dtype=start.dtype, device=start.device)
    return repeated + change * numbers.reshape(-1, *[1] * (start.ndim - 1 - axis))


def same_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tells if two tensors are equal in shape, type and values; NaN equals itself."""
    if a is b:
        return True
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
