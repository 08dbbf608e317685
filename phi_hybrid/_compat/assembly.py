"""Matrices of linear functions: by PhiML's tracing where that holds, else column by column."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from phi import math
from phiml.backend import NUMPY
from phiml.backend.torch import TORCH
from phiml.math import _functional
from phiml.math._functional import LinearFunction
from phiml.math._lin_trace import to_format_for_mul
from phiml.math._shape import Shape
from phiml.math._sparse import sparse_tensor
from phiml.math._tensors import Tensor as PhiTensor
from phiml.math._tree import assemble_tree, disassemble_tree, tree_map, value_attributes, variable_attributes

from phi_hybrid._compat.matrices import has_derivatives, is_unknown
from phi_hybrid._compat.tracing import is_tracing, unavailable, without_tracing
from phi_hybrid.errors import CaptureError

LARGEST_DENSE = 1024
"""Unknowns up to which a matrix of a function that PhiML cannot trace may vary: all of its entries are kept."""
_COLUMNS = 256
"""Found by one call of such a function."""

_matrix_of_tracer = _functional.matrix_and_bias_from_tracer
_traced_matrix = LinearFunction.sparse_matrix_and_bias

Affine = tuple[PhiTensor, PhiTensor]


class PlainFunction(LinearFunction):
    """A linear function without a decorator: what it returns counts, not what PhiML's linear tracing makes of it."""

    def __init__(self, f: Callable) -> None:
        function = math.jit_compile_linear(f)
        super().__init__(function.f, function.auxiliary_args, False)


def matrix_and_bias(function: LinearFunction, x: Any, *args: Any, **kwargs: Any) -> Affine:
    """Matrix A and bias b of f(x) = A·x + b, in float64 whatever the precision of the state.

    Raises:
        CaptureError: if there is no way to a matrix.
    """
    precision, x = math.get_precision(), tree_map(math.to_float, x)
    with math.precision(64), unavailable(has_derivatives):
        matrix, bias = (_of_plain if isinstance(function, PlainFunction) else _of_decorated)(
            function, x, *args, **kwargs
        )
    return matrix, math.cast(bias, math.DType(float, precision))


def _of_decorated(function: LinearFunction, x: Any, *args: Any, **kwargs: Any) -> Affine:
    _, arguments = disassemble_tree((args, kwargs), cache=False, attr_type=variable_attributes)
    if is_tracing() or any(map(is_unknown, arguments)):  # never from the matrices that PhiML keeps, nor among them
        function = LinearFunction(function.f, function.auxiliary_args, False)
    matrix, bias = _traced_matrix(function, x, *args, **kwargs)
    if is_unknown(matrix):
        function.matrices_and_biases.clear()
    return matrix, bias


def _of_plain(function: PlainFunction, x: Any, *args: Any, **kwargs: Any) -> Affine:
    """PhiML's tracing is compared with the function on random numbers: it takes some operations for others. What it cannot
    trace is applied to the columns of the identity."""

    def plain(x: Any) -> Any:
        return function.f(x, *args, **kwargs)

    try:
        matrix, bias = _traced_matrix(function, x, *args, **kwargs)
        if _agree(matrix, bias, x, plain):
            return matrix, bias
        error = None
    except Exception as failure:  # of any kind: PhiML fails by assertions, indices and shapes
        error = failure
    return _probed(x, plain, error)


def matrix_of_tracer(tracer: Any, auto_compress: bool = True, **kwargs: Any) -> Affine:
    """Compressed by rows where PhiML does it right.

    It counts with 32-bit indices into the dense matrix, which overflow from 256² cells on, and with an operation that cannot
    be differentiated.
    """
    matrix, bias = _matrix_of_tracer(tracer, auto_compress=False, **kwargs)
    small = matrix.shape.non_dual.volume * matrix.shape.dual.volume < 2**31
    if auto_compress and small and not is_unknown(matrix):
        matrix = to_format_for_mul(matrix, kwargs.get("target_backend") or matrix.backend)
    return matrix, bias


def bincount(own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Counts like `own`, PhiML's operation, but in a way that can be differentiated and traced where that matters."""

    def count(x: Any, weights: Any, bins: int, **kwargs: Any) -> torch.Tensor:
        known = not isinstance(weights, torch.Tensor) or not is_unknown(math.wrap(weights))
        if known:
            return own(x, weights, bins, **kwargs)
        return torch.zeros(bins, dtype=weights.dtype, device=weights.device).index_add(0, TORCH.as_tensor(x), weights)

    return count


def _agree(matrix: PhiTensor, bias: PhiTensor, x: Any, function: Callable[[Any], Any]) -> bool:
    """Tells if A·x + b = f(x) for random x."""
    tree, (like,) = disassemble_tree(x, cache=False, attr_type=value_attributes)
    with torch.no_grad(), without_tracing():
        values = np.random.default_rng(0).standard_normal(like.shape.sizes)
        probe = math.wrap(values, like.shape)
        expected = _result(function, tree, probe)
        difference = matrix @ probe + bias - expected
        error, scale = (float(math.max(abs(t), t.shape)) for t in (difference, expected))
    return error <= 1e-4 * scale


def _result(function: Callable[[Any], Any], tree: Any, values: PhiTensor) -> PhiTensor:
    result = function(assemble_tree(tree, [values], attr_type=value_attributes))
    _, (result,) = disassemble_tree(result, cache=False, attr_type=value_attributes)
    return result


def _probed(x: Any, function: Callable[[Any], Any], error: Exception | None) -> Affine:
    """A·eᵢ + b = f(eᵢ) for the columns eᵢ of the identity, which f takes as a batch."""
    tree, (like,) = disassemble_tree(x, cache=False, attr_type=value_attributes)
    unknowns, reason = like.shape.non_batch, "" if error is None else f" ({type(error).__name__}: {error})"
    if not like.shape.is_uniform or unknowns.dual:
        raise CaptureError(_NO_MATRIX.format(reason=reason, why=f"unknowns of shape {like.shape}")) from error
    bias = _result(function, tree, math.zeros(unknowns))
    columns = partial(_columns, function, tree, unknowns, bias)
    first = columns(0, 1)
    if not is_unknown(first) and not first.shape.batch.without(_COLUMN):
        return _sparse(columns, unknowns), bias
    if unknowns.volume > LARGEST_DENSE:
        why = f"{unknowns.volume} unknowns, of which {LARGEST_DENSE} are allowed for a matrix that varies"
        raise CaptureError(_NO_MATRIX.format(reason=reason, why=why)) from error
    return math.unpack_dim(columns(0, unknowns.volume), _COLUMN, unknowns.as_dual()), bias


_COLUMN = "_column"
_NO_MATRIX = (
    "PhiML cannot trace the linear function of a solve{reason}, and it cannot be assembled column by column: {why}. Way out: "
    "write it with sums, products with coefficients, shifts and paddings, or use the step uncaptured"
)


def _columns(
    function: Callable[[Any], Any], tree: Any, unknowns: Shape, bias: PhiTensor, start: int, stop: int
) -> PhiTensor:
    """Columns of the matrix along a batch dim."""
    identity = np.eye(stop - start, unknowns.volume, start).reshape([-1, *unknowns.sizes])
    return _result(function, tree, math.wrap(identity, math.batch(_COLUMN), unknowns)) - bias


def _sparse(columns: Callable[[int, int], PhiTensor], unknowns: Shape) -> PhiTensor:
    """Constant matrix of a few columns at a time, without its zeros."""
    places, values = [], []
    for start in range(0, unknowns.volume, _COLUMNS):
        found = columns(start, min(start + _COLUMNS, unknowns.volume))
        rows = found.shape.without(_COLUMN)
        dense = math.convert(found, NUMPY).numpy([_COLUMN, *rows.names])
        column, *row = np.nonzero(dense)
        places.append(np.stack([*row, *np.unravel_index(column + start, unknowns.sizes)], -1))
        values.append(dense[(column, *row)])
    names = [*rows.names, *unknowns.as_dual().names]
    places = math.wrap(np.concatenate(places), math.instance("entries"), math.channel(idx=names))
    values = math.wrap(np.concatenate(values), math.instance("entries"))
    return sparse_tensor(places, values, rows & unknowns.as_dual(), can_contain_double_entries=False, format="coo")
