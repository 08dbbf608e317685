"""The linear system of one solve: a constant sparse matrix over the cells of a grid."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import scipy.sparse
import torch

from phi_hybrid import _compat
from phi_hybrid.errors import CaptureError

Csr: TypeAlias = scipy.sparse.csr_matrix


@dataclass(frozen=True, eq=False)
class System:
    """Linear system A·x = b with constant A in float64; unknowns in the order of `shape`, last dim fastest."""

    matrix: Csr
    shape: tuple[int, ...]
    """Resolution of the grid, or `(n,)` where the unknowns have no grid."""
    tolerates_imbalance: bool
    """The part of b outside of the range of a singular A is dropped (declared `rank_deficiency`) instead of an error."""

    @cached_property
    def key(self) -> bytes:
        """Equal for equal systems."""
        content = hashlib.blake2b(repr((self.shape, self.tolerates_imbalance)).encode())
        for array in (self.matrix.indptr, self.matrix.indices, self.matrix.data):
            content.update(np.ascontiguousarray(array))
        return content.digest()

    @property
    def size(self) -> int:
        return self.matrix.shape[0]

    @cached_property
    def norm(self) -> float:
        """‖A‖∞, the largest row sum of absolute values."""
        return float(abs(self.matrix).sum(1).max())

    @cached_property
    def is_symmetric(self) -> bool:
        difference = abs(self.matrix - self.matrix.T)
        return difference.nnz == 0 or difference.max() <= 1e-12 * abs(self.matrix).max()

    @cached_property
    def null_vectors(self) -> np.ndarray:
        """Orthonormal vectors n with A·n = 0, `(size, count)`: constants on the parts of the grid that A does not couple.

        Other null spaces are not searched for; a matrix that has one fails the residual check.
        """
        count, part = scipy.sparse.csgraph.connected_components(self.matrix, directed=False)
        indicators = scipy.sparse.csr_matrix((np.ones(self.size), (np.arange(self.size), part)))
        row_sums = abs(self.matrix @ np.ones(self.size))  # no row has entries in two parts
        scale = abs(self.matrix) @ np.ones(self.size)
        singular = np.bincount(part, row_sums > 1e-11 * scale) == 0
        vectors = indicators[:, np.flatnonzero(singular)].toarray()
        return vectors / np.linalg.norm(vectors, axis=0, keepdims=True)

    def residual(self, x: np.ndarray, b: np.ndarray, transposed: bool = False) -> np.ndarray:
        """‖b − A·x‖₂ per column, `x` and `b` of shape `(size, columns)`."""
        matrix = self.matrix.T if transposed else self.matrix
        difference = b - matrix @ np.ascontiguousarray(x)
        return np.sqrt(np.einsum("ij,ij->j", difference, difference))  # np.linalg.norm takes longer than the product


def system_of(stand_in: _compat.MatrixStandIn) -> tuple[System, np.ndarray | None]:
    """System of an assembled PhiFlow matrix, with the order in which its unknowns are to be returned.

    Rows fix the order of the unknowns. The permutation is `None` where columns have the same order.
    """
    rows, columns = _compat.matrix_dims(stand_in.matrix)
    matrix = _compat.matrix_to_scipy(stand_in.matrix)
    if len(rows) == len(columns) == 1:
        columns = [
            (rows[0][0], size) for _, size in columns
        ]  # whatever it is called: PhiML counts cells that are not empty
    if matrix.shape[0] != matrix.shape[1] or sorted(rows) != sorted(columns):
        raise CaptureError(
            f"a linear solve with {matrix.shape[0]} equations over {dict(rows)} for {matrix.shape[1]} unknowns over "
            f"{dict(columns)}: only square systems over the same dims are supported. Way out: solve the normal "
            "equations, or use the step uncaptured"
        )
    shape, order = tuple(size for _, size in rows) or (1,), None
    if rows != columns:
        position = np.arange(matrix.shape[1]).reshape([size for _, size in columns])
        names = [name for name, _ in columns]
        order = position.transpose([names.index(name) for name, _ in rows]).ravel()  # row position → column position
        matrix = matrix[:, order]
        order = np.argsort(order)  # column position → row position
    matrix = Csr(matrix)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return System(matrix, shape, bool(stand_in.singular)), order


def to_columns(rhs: torch.Tensor) -> np.ndarray:
    """`(batch, size)` on any device → float64 `(size, batch)`."""
    return rhs.detach().to("cpu", torch.float64).numpy().T


def from_columns(x: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Inverse of `to_columns`, in the device of `like`, float64."""
    return torch.from_numpy(np.ascontiguousarray(x.T)).to(like.device)
