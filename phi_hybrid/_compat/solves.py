"""Linear solves of PhiFlow, taken over, and its matrices as SciPy sees them."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch
from phi import math
from phiml.backend import NUMPY
from phiml.backend.torch import TORCH
from phiml.math import _functional, _optimize
from phiml.math._functional import LinearFunction
from phiml.math._ops import backend_for
from phiml.math._sparse import native_matrix
from phiml.math._tensors import Tensor as PhiTensor
from phiml.math._tree import assemble_tree, disassemble_tree, tree_map, value_attributes, variable_attributes

from phi_hybrid._compat.decorators import undecorated_calls
from phi_hybrid._compat.replacement import current, replaced
from phi_hybrid._compat.values import is_sparse

_matrix_and_bias = _functional.matrix_and_bias_from_tracer


class MatrixStandIn:
    """Travels in place of a backend's matrix from PhiML's assembly to the solver of its backend."""

    def __init__(self, matrix: PhiTensor, singular: bool) -> None:
        self.matrix = matrix
        self.singular = singular


@contextlib.contextmanager
def hooked_solves(
    solve: Callable[[MatrixStandIn, torch.Tensor, Any, Any], torch.Tensor],
    leave: Callable[[PhiTensor], bool] = lambda matrix: False,
) -> Iterator[None]:
    """Inside, `solve(matrix, rhs, rel_tol, abs_tol)` takes every linear solve of PhiFlow on torch, with its derivatives.

    `rhs` has shape `(batch, row)`, the result `(batch, column)`; `SolveTape`s are not told. PhiML assembles the matrix, in
    float64 whatever the precision of the state, and prepares the right-hand side. A function that is not compiled is
    turned into a matrix first. A rank deficiency is told to `solve` instead of bordering the matrix with ones. Matrices
    for which `leave` is true stay with PhiFlow.
    """
    hooks = _SolveHooks(solve, leave)
    with contextlib.ExitStack() as stack:
        stack.enter_context(undecorated_calls())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "(?s).*Rank deficiency|.*rank-deficient")  # which is what `solve` looks after
        for name, hook in hooks.by_name.items():
            stack.enter_context(replaced(_optimize, name, hook))
        stack.enter_context(replaced(LinearFunction, "sparse_matrix_and_bias", hooks.matrix_and_bias))
        stack.enter_context(replaced(_functional, "matrix_and_bias_from_tracer", _matrix_and_bias_of_any_size))
        yield


class _SolveHooks:
    """Functions that take the place of those of `phiml.math._optimize`, and the originals behind them."""

    def __init__(self, solve: Callable[..., torch.Tensor], leave: Callable[[PhiTensor], bool]) -> None:
        self.solve, self.leave = solve, leave
        self.latest: MatrixStandIn | None = None  # of the solve under way
        self.by_name = {
            "attach_gradient_solve": self.attach,
            "native_matrix": self.native_matrix,
            "compute_preconditioner": lambda *args, **kwargs: None,
            "_linear_solve_forward": self.solve_forward,
        }
        self.originals = {name: current(_optimize, name) for name in self.by_name}
        in_own_precision = current(LinearFunction, "sparse_matrix_and_bias")

        def matrix_and_bias(function: LinearFunction, x: Any, *args: Any, **kwargs: Any) -> tuple[PhiTensor, PhiTensor]:
            precision = math.get_precision()
            with math.precision(64):
                matrix, bias = in_own_precision(function, tree_map(math.to_float, x), *args, **kwargs)
            return matrix, math.cast(bias, math.DType(float, precision))

        self.matrix_and_bias = matrix_and_bias

    def attach(self, forward: Callable, auxiliary_args: str, matrix_adjoint: bool) -> Callable:
        """The solve without PhiML's gradient, for matrices as for functions."""
        plain = self.originals["attach_gradient_solve"](forward, auxiliary_args, matrix_adjoint)

        def with_matrix(y: Any, arguments: math.Solve, matrix: PhiTensor) -> Any:
            foreign = backend_for(*disassemble_tree(y, cache=False)[1], matrix) is not TORCH
            if foreign or self.leave(matrix):
                return plain(y, arguments, matrix)
            self.latest = MatrixStandIn(matrix, bool((math.wrap(arguments.rank_deficiency or 0) > 0).any))
            try:
                return forward(y, math.copy_with(arguments, rank_deficiency=0), matrix)
            finally:
                self.latest = None

        def with_function(y: Any, arguments: math.Solve, f_args: tuple, f_kwargs: dict) -> Any:
            if backend_for(*disassemble_tree(y, cache=False)[1]) is not TORCH:
                return plain(y, arguments, f_args, f_kwargs=f_kwargs)
            function = math.jit_compile_linear(inspect.getclosurevars(forward).nonlocals["f"])
            return math.solve_linear(function, y, arguments, *f_args, f_kwargs=f_kwargs)

        return with_function if "f_kwargs" in auxiliary_args else with_matrix

    def native_matrix(self, matrix: PhiTensor, backend: Any) -> Any:
        """The stand-in, where a hooked solve asks for it."""
        if self.latest is not None and backend is TORCH:
            return self.latest
        return self.originals["native_matrix"](matrix, backend)

    def solve_forward(self, y: Any, arguments: math.Solve, matrix: Any, columns: tuple, rows: tuple, *rest: Any) -> Any:
        """From PhiML's right-hand side to `solve`, and back to a tree like `x0`."""
        if not isinstance(matrix, MatrixStandIn):
            return self.originals["_linear_solve_forward"](y, arguments, matrix, columns, rows, *rest)
        reduce_x, reduce_y, expand_x, _ = (f or (lambda t: t) for f in rest[3:])
        arguments = arguments.with_defaults("solve")
        if arguments.preprocess_y is not None:
            y = arguments.preprocess_y(y, *arguments.preprocess_y_args)
        rhs = reduce_y(*disassemble_tree(y, cache=False, attr_type=value_attributes)[1])
        tree, (x0,) = disassemble_tree(arguments.x0, cache=False, attr_type=variable_attributes)
        rows, columns = rhs.shape.only(rows, reorder=True), reduce_x(x0).shape.only(columns, reorder=True)
        batches = rhs.shape.without(rows) & reduce_x(x0).shape.without(columns)
        tolerances = (math.min(t, math.shape).native() for t in (arguments.rel_tol, arguments.abs_tol))
        x = self.solve(matrix, TORCH.as_tensor(rhs.native([batches, rows])), *tolerances)
        x = expand_x(math.reshaped_tensor(x, [batches, columns]))
        return assemble_tree(tree, [x], attr_type=variable_attributes)


def _matrix_and_bias_of_any_size(tracer: Any, auto_compress: bool = True) -> tuple[PhiTensor, PhiTensor]:
    """PhiML compresses rows with 32-bit indices into the dense matrix, which overflow from 256² cells on."""
    small = tracer.shape.volume * tracer._source.shape.volume < 2**31
    return _matrix_and_bias(tracer, auto_compress=auto_compress and small)


def matrix_values(matrix: PhiTensor) -> tuple[torch.Tensor, ...]:
    """The native tensors that hold the values of a sparse or dense matrix."""
    values = matrix._values if is_sparse(matrix) else matrix
    return tuple(t for t in values._natives() if isinstance(t, torch.Tensor))


def varies(matrix: PhiTensor) -> bool:
    """Tells if a matrix carries gradients, or differs along a batch dim, which sparse ones keep among rows and columns."""
    same_dims = set(math.non_dual(matrix).names) == set(math.dual(matrix).as_channel().names)
    return not same_dims or bool(math.batch(matrix)) or any(map(_has_derivatives, matrix_values(matrix)))


def _has_derivatives(tensor: torch.Tensor) -> bool:
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
