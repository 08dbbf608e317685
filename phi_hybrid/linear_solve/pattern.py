"""Places of the entries of a matrix whose values vary."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from phi_hybrid import _compat
from phi_hybrid.linear_solve.system import Csr


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
    def _row_pointers(self) -> np.ndarray:
        return np.searchsorted(self.rows, np.arange(self.size + 1)).astype(np.int32)

    def matrix(self, values: np.ndarray) -> Csr:
        """Matrix with these values, `(entry)`, without the zeros among them."""
        parts = values.copy(), self.columns.astype(np.int32), self._row_pointers.copy()  # written to below
        matrix = Csr(parts, shape=(self.size, self.size))
        matrix.has_sorted_indices = matrix.has_canonical_format = True
        matrix.eliminate_zeros()
        return matrix


def pattern_of(entries: _compat.MatrixEntries) -> tuple[Pattern, np.ndarray]:
    """The pattern that matrices of all blocks share, and the place of each entry in `(block, entry)`, flat."""
    shape = tuple(entries.unknowns.sizes)
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
