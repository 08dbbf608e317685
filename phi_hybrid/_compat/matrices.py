"""Matrices of PhiML: as SciPy sees them where they are constant, as entries where their values vary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from phi import math
from phiml.backend import NUMPY
from phiml.backend.torch import TORCH
from phiml.math._shape import Shape
from phiml.math._sparse import (
    CompactSparseTensor,
    CompressedSparseMatrix,
    SparseCoordinateTensor,
    native_matrix,
)
from phiml.math._tensors import Tensor as PhiTensor


def varies(matrix: PhiTensor) -> bool:
    """Tells if a matrix depends on what is traced, carries gradients, or differs along a batch dim.

    Sparse ones keep a batch dim among their rows and columns. One dim of each kind is a square matrix, whatever their names.
    """
    rows, columns = math.non_dual(matrix).names, math.dual(matrix).as_channel().names
    same_dims = set(rows) == set(columns) or len(rows) == len(columns) == 1
    return not same_dims or bool(math.batch(matrix)) or is_unknown(matrix)


def is_unknown(tensor: PhiTensor) -> bool:
    """Tells if values of a tensor must not be looked at: they depend on what is traced, or carry gradients."""
    natives = tensor._natives()
    known = all(TORCH.is_available(t) and not has_derivatives(t) for t in natives if isinstance(t, torch.Tensor))
    return not known


def has_derivatives(tensor: torch.Tensor) -> bool:
    """Tells if gradients or tangents flow through a tensor."""
    dual = torch.autograd.forward_ad._current_level >= 0 and torch.autograd.forward_ad.unpack_dual(tensor)
    return tensor.requires_grad or bool(dual and dual.tangent is not None)


def matrix_to_scipy(matrix: PhiTensor) -> scipy.sparse.csr_matrix:
    """Float64 copy; rows and columns run over the primal and the dual dims of `matrix`, the last one fastest."""
    with math.precision(64):  # native values come in the global precision
        native = native_matrix(matrix, NUMPY)
    return scipy.sparse.csr_matrix(native).astype(np.float64)


def matrix_dims(matrix: PhiTensor) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Names and sizes of the dims that rows and columns run over, as in `matrix_to_scipy`."""
    rows, columns = math.non_batch(matrix).non_dual, math.dual(matrix).as_channel()
    return list(zip(rows.names, rows.sizes)), list(zip(columns.names, columns.sizes))


@dataclass(frozen=True, eq=False)
class MatrixEntries:
    """Entries of the matrices of one solve, one matrix per position along `blocks`. Entries at the same place are added."""

    values: torch.Tensor
    """`(entry)`, float64, with derivatives."""
    block: np.ndarray
    """Number of the matrix of each entry, `(entry)`."""
    row: np.ndarray
    column: np.ndarray
    """Places of each entry, counted over `unknowns`, the last dim fastest, `(entry)`."""
    blocks: Shape
    """Dims that no matrix couples."""
    unknowns: Shape
    """Dims of the unknowns of each matrix, in the order of its rows."""


def matrix_entries(matrix: PhiTensor) -> MatrixEntries | None:
    """Entries of a matrix whose values may vary, `None` where there is no square matrix for each block."""
    places, values = _places_and_values(matrix)
    extra = values.shape.non_instance  # dims along which values differ at the same places
    rows, columns = matrix.shape.non_dual - extra, matrix.shape.dual
    apart = [d.name for d in rows if d.dim_type in _INDEPENDENT and _uncoupled(places, d.name)]
    blocks, unknowns = rows.only(apart), rows.without(apart)
    of_columns = {d.name[1:]: d.size for d in columns if d.name[1:] not in apart}
    if {d.name: d.size for d in unknowns} != of_columns or any(d.dim_type not in _INDEPENDENT for d in extra):
        return None
    natives = torch.as_tensor(values.native([extra, math.instance]), dtype=torch.float64)
    repeated = len(natives), 1
    block = _position(places, blocks) + blocks.volume * np.arange(len(natives))[:, None]
    row, column = (np.tile(_position(places, unknowns, mark), repeated) for mark in ("", "~"))
    dims = math.concat_shapes(extra, blocks)
    return MatrixEntries(natives.reshape(-1), block.ravel(), row.ravel(), column.ravel(), dims, unknowns)


_INDEPENDENT = "batch", "channel"
"""Types of dims that stand for several systems at once, where the matrix does not couple them."""


def _places_and_values(matrix: PhiTensor) -> tuple[dict[str, np.ndarray], PhiTensor]:
    """Position of each entry by name of dim, and a tensor of values with one instance dim, the entries."""
    if isinstance(matrix, CompressedSparseMatrix):
        matrix = matrix.decompress()
    if isinstance(matrix, CompactSparseTensor):
        matrix = matrix.to_coo()
    if isinstance(matrix, SparseCoordinateTensor):
        names = matrix._indices.shape.get_labels("sparse_idx")
        indices = matrix._indices.numpy([math.instance, "sparse_idx"])
        values = math.pack_dims(
            math.expand(matrix._values, matrix._indices.shape.instance), math.instance, math.instance("_e")
        )
        return {name: indices[:, i] for i, name in enumerate(names)}, values
    dims = matrix.shape.only(math.dual(matrix).as_channel().names) & math.dual(matrix)
    if not dims:
        return {}, math.expand(matrix, math.instance(_e=1))
    indices = np.unravel_index(np.arange(dims.volume), dims.sizes)
    return dict(zip(dims.names, indices)), math.pack_dims(matrix, dims, math.instance("_e"))


def _uncoupled(places: dict[str, np.ndarray], name: str) -> bool:
    """Tells if all entries have the same position in rows and in columns along a dim, or columns do not have it."""
    return "~" + name not in places or np.array_equal(places[name], places["~" + name])


def _position(places: dict[str, np.ndarray], dims: Shape, mark: str = "") -> np.ndarray:
    count = len(next(iter(places.values()), [0]))
    if not dims:
        return np.zeros(count, np.int64)
    return np.ravel_multi_index([places[mark + name] for name in dims.names], dims.sizes)
