"""Places of the entries of a matrix whose values vary."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from phi_hybrid import _compat
from phi_hybrid.linear_solve.system import Csr, System


@dataclass(frozen=True, eq=False)
class Pattern:
    """Places where a square matrix may have entries, each once, row by row. Unknowns in the order of `shape`."""

    rows: np.ndarray
    columns: np.ndarray
    """Both `(entry)`, sorted by row, then by column."""
    shape: tuple[int, ...]
    """Resolution of the grid, or `(n,)` where the unknowns have no grid."""

    @cached_property
    def key(self) -> bytes:
        """Equal for equal patterns."""
        content = hashlib.blake2b(repr(self.shape).encode())
        content.update(np.ascontiguousarray(self.rows))
        content.update(np.ascontiguousarray(self.columns))
        return content.digest()

    @cached_property
    def size(self) -> int:
        """Number of unknowns."""
        return int(np.prod(self.shape))

    @cached_property
    def diagonal(self) -> np.ndarray:
        """Mask of the entries on the diagonal."""
        return self.rows == self.columns

    @cached_property
    def mirrored(self) -> np.ndarray:
        """Number of the entry at the transposed place, of no entry where there is none."""
        places, wanted = self.rows * self.size + self.columns, self.columns * self.size + self.rows
        found = np.searchsorted(places, wanted).clip(max=len(places) - 1)
        return np.where(places[found] == wanted, found, len(places))

    @cached_property
    def axes(self) -> tuple[AxisEntries, ...] | None:
        """Entries that couple cells along each axis; `None` where an entry couples across axes."""
        positions = [np.array(np.unravel_index(i, self.shape)) for i in (self.rows, self.columns)]
        differs = positions[0] != positions[1]
        if (differs.sum(0) > 1).any():
            return None
        return tuple(
            AxisEntries.of(np.flatnonzero(along), row, column, n)
            for along, row, column, n in zip(differs, *positions, self.shape)
        )

    def matrix(self, values: np.ndarray) -> Csr:
        """Matrix with these values, `(entry)`, without the zeros among them."""
        parts = values.copy(), self.columns.astype(np.int32), self._row_pointers.copy()  # written to below
        matrix = Csr(parts, shape=(self.size, self.size))
        matrix.has_sorted_indices = matrix.has_canonical_format = True
        matrix.eliminate_zeros()
        return matrix

    @cached_property
    def _row_pointers(self) -> np.ndarray:
        return np.searchsorted(self.rows, np.arange(self.size + 1)).astype(np.int32)


@dataclass(frozen=True, eq=False)
class AxisEntries:
    """Entries that couple cells along one axis, in groups with the same two positions on this axis."""

    entries: np.ndarray
    """Numbers of the entries, group by group."""
    starts: np.ndarray
    """Of the groups in `entries`."""
    rows: np.ndarray
    columns: np.ndarray
    """Positions on the axis, `(group)`."""
    size: int
    """Number of cells along the axis."""

    @classmethod
    def of(cls, entries: np.ndarray, row: np.ndarray, column: np.ndarray, size: int) -> AxisEntries:
        pair = row[entries] * size + column[entries]
        order = np.argsort(pair, kind="stable")
        pairs, starts = np.unique(pair[order], return_index=True)
        return cls(entries[order], starts, pairs // size, pairs % size, size)

    def extremes(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest value of each group."""
        if not len(self.starts):
            return np.zeros(0), np.zeros(0)
        grouped = values[self.entries]
        return np.minimum.reduceat(grouped, self.starts), np.maximum.reduceat(grouped, self.starts)


@dataclass(frozen=True, eq=False)
class PatternSystem(System):
    """Linear system whose matrix has one of the values of a pattern."""

    pattern: Pattern
    values: np.ndarray
    """`(entry)`, float64."""

    @cached_property
    def is_symmetric(self) -> bool:
        mirrored = np.append(self.values, 0.0)[self.pattern.mirrored]
        return bool((np.abs(self.values - mirrored) <= 1e-12 * np.abs(self.values).max(initial=0.0)).all())


def pattern_of(entries: _compat.MatrixEntries) -> tuple[Pattern, np.ndarray]:
    """The pattern that matrices of all blocks share, and the place of each entry in `(block, entry)`, flat."""
    shape = tuple(entries.unknowns.sizes) or (1,)
    size = int(np.prod(shape))
    places, slot = np.unique(entries.row * size + entries.column, return_inverse=True)
    pattern = Pattern(places // size, places % size, shape)
    return pattern, entries.block * len(places) + slot


def gathered(entries: _compat.MatrixEntries, pattern: Pattern, slots: np.ndarray) -> torch.Tensor:
    """Values of `pattern` in each block, `(block, entry)`, differentiable: entries at the same place are added."""
    count = entries.blocks.volume * len(pattern.rows)
    values = torch.zeros(count, dtype=torch.float64, device=entries.values.device)
    slots = torch.from_numpy(slots).to(entries.values.device)
    return values.index_add(0, slots, entries.values).reshape(entries.blocks.volume, len(pattern.rows))
