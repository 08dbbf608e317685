"""Linear solves of PhiFlow, taken over."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from phi import math
from phiml.backend.torch import TORCH
from phiml.math import _functional, _optimize
from phiml.math._functional import LinearFunction
from phiml.math._ops import backend_for
from phiml.math._tensors import Tensor as PhiTensor
from phiml.math._tree import assemble_tree, disassemble_tree, value_attributes, variable_attributes

from phi_hybrid._compat.assembly import PlainFunction, bincount, matrix_and_bias, matrix_of_tracer
from phi_hybrid._compat.decorators import undecorated_calls
from phi_hybrid._compat.matrices import MatrixEntries, matrix_entries, varies
from phi_hybrid._compat.replacement import current, replaced
from phi_hybrid._compat.tracing import is_tracing
from phi_hybrid.errors import CaptureError


@dataclass(frozen=True, eq=False)
class MatrixStandIn:
    """Travels in place of a backend's matrix from PhiML's assembly to the solver of its backend."""

    matrix: PhiTensor
    singular: bool | None
    """Declared or found rank deficiency; `None` where neither is known."""
    entries: MatrixEntries | None = None
    """Where the matrix depends on what is traced, carries gradients, or differs along a batch dim."""


@contextlib.contextmanager
def hooked_solves(
    solve: Callable[[MatrixStandIn, torch.Tensor, Any, Any], torch.Tensor],
) -> Iterator[None]:
    """Inside, `solve(matrix, rhs, rel_tol, abs_tol)` takes every linear solve of PhiFlow on torch, with its derivatives.

    `rhs` has shape `(batch, row)`, the result `(batch, column)`; with `entries`, both have shape `(block, batch, unknown)`.
    `SolveTape`s are not told. PhiML assembles the matrix, in float64 whatever the precision of the state, and prepares the
    right-hand side. A function that is not compiled is turned into a matrix first. A rank deficiency is told to `solve`
    instead of bordering the matrix with ones. Systems that are not square stay with PhiFlow, except in a trace.
    """
    hooks = _SolveHooks(solve)
    with contextlib.ExitStack() as stack:
        stack.enter_context(undecorated_calls())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "(?s).*Rank deficiency|.*rank-deficient")  # which is what `solve` looks after
        for name, hook in hooks.by_name.items():
            stack.enter_context(replaced(_optimize, name, hook))
        stack.enter_context(replaced(LinearFunction, "sparse_matrix_and_bias", matrix_and_bias))
        stack.enter_context(replaced(_functional, "matrix_and_bias_from_tracer", matrix_of_tracer))
        stack.enter_context(replaced(TORCH, "bincount", bincount(current(TORCH, "bincount"))))
        yield


class _SolveHooks:
    """Functions that take the place of those of `phiml.math._optimize`, and the originals behind them."""

    def __init__(self, solve: Callable[..., torch.Tensor]) -> None:
        self.solve = solve
        self.latest: MatrixStandIn | None = None  # of the solve under way
        self.by_name = {
            "attach_gradient_solve": self.attach,
            "native_matrix": self.native_matrix,
            "compute_preconditioner": lambda *args, **kwargs: None,
            "min_rank_deficiency": self.rank_deficiency,
            "guaranteed_empty_rows": self.empty_rows,
            "_linear_solve_forward": self.solve_forward,
        }
        self.originals = {name: current(_optimize, name) for name in self.by_name}

    def attach(self, forward: Callable, auxiliary_args: str, matrix_adjoint: bool) -> Callable:
        """The solve without PhiML's gradient, for matrices as for functions."""
        plain = self.originals["attach_gradient_solve"](forward, auxiliary_args, matrix_adjoint)

        def with_matrix(y: Any, arguments: math.Solve, matrix: PhiTensor) -> Any:
            if backend_for(*disassemble_tree(y, cache=False)[1], matrix) is not TORCH or matrix.dtype.kind is complex:
                return plain(y, arguments, matrix)
            entries = matrix_entries(matrix) if varies(matrix) else None
            if entries is None and varies(matrix) and not is_tracing():
                return plain(y, arguments, matrix)
            self.latest = MatrixStandIn(matrix, _declared(arguments.rank_deficiency), entries)
            try:
                return forward(y, math.copy_with(arguments, rank_deficiency=0), matrix)
            finally:
                self.latest = None

        def with_function(y: Any, arguments: math.Solve, f_args: tuple, f_kwargs: dict) -> Any:
            if backend_for(*disassemble_tree(y, cache=False)[1]) is not TORCH:
                return plain(y, arguments, f_args, f_kwargs=f_kwargs)
            function = PlainFunction(inspect.getclosurevars(forward).nonlocals["f"])
            try:
                return math.solve_linear(function, y, arguments, *f_args, f_kwargs=f_kwargs)
            except CaptureError:  # there is no matrix
                if is_tracing():
                    raise
                return plain(y, arguments, f_args, f_kwargs=f_kwargs)

        return with_function if "f_kwargs" in auxiliary_args else with_matrix

    def native_matrix(self, matrix: PhiTensor, backend: Any) -> Any:
        """The stand-in, where a hooked solve asks for it."""
        if self.latest is not None and backend is TORCH:
            return self.latest
        return self.originals["native_matrix"](matrix, backend)

    def solve_forward(self, y: Any, arguments: math.Solve, matrix: Any, *rest: Any, **named: Any) -> Any:
        """From PhiML's right-hand side to `solve`, and back to a tree like `x0`."""
        if not isinstance(matrix, MatrixStandIn):
            return self.originals["_linear_solve_forward"](y, arguments, matrix, *rest, **named)
        columns, rows, _, _, _, *maps = rest
        reduce_x, reduce_y, expand_x, _ = (f or (lambda t: t) for f in maps)
        arguments = arguments.with_defaults("solve")
        if arguments.preprocess_y is not None:
            y = arguments.preprocess_y(y, *arguments.preprocess_y_args)
        rhs = reduce_y(*disassemble_tree(y, cache=False, attr_type=value_attributes)[1])
        tree, (x0,) = disassemble_tree(arguments.x0, cache=False, attr_type=variable_attributes)
        tolerances = (math.min(t, math.shape).native() for t in (arguments.rel_tol, arguments.abs_tol))
        if matrix.entries is not None:
            rows, columns = matrix.entries.unknowns, _reordered(x0.shape, matrix.entries.unknowns)
            rhs, blocks = math.expand(rhs, matrix.entries.blocks & rows), [matrix.entries.blocks]
        else:
            rows, columns = rhs.shape.only(rows, reorder=True), reduce_x(x0).shape.only(columns, reorder=True)
            blocks = []
        batches = rhs.shape.without(rows) & reduce_x(x0).shape.without(columns)
        batches = batches.without(blocks[0]) if blocks else batches
        x = self.solve(matrix, TORCH.as_tensor(rhs.native([*blocks, batches, rows])), *tolerances)
        x = expand_x(math.reshaped_tensor(x, [*blocks, batches, columns]))
        return assemble_tree(tree, [x], attr_type=variable_attributes)

    def rank_deficiency(self, matrix: PhiTensor) -> PhiTensor:
        """Negative where it cannot be known before the values are."""
        return math.wrap(-1) if varies(matrix) else self.originals["min_rank_deficiency"](matrix)

    def empty_rows(self, matrix: PhiTensor) -> PhiTensor:
        """None where the values decide: the pattern has to be the same for all."""
        if varies(matrix):
            return math.zeros(math.instance(empties=0), math.channel(vector=math.primal(matrix).name_list), dtype=int)
        return self.originals["guaranteed_empty_rows"](matrix)


def _declared(rank_deficiency: Any) -> bool | None:
    if rank_deficiency is None or (math.wrap(rank_deficiency) < 0).any:
        return None
    return bool((math.wrap(rank_deficiency) > 0).any)


def _reordered(shape: math.Shape, dims: math.Shape) -> math.Shape:
    """These dims, with the item names they have in `shape`."""
    return shape.only(dims.names, reorder=True) if set(dims.names) <= set(shape.names) else dims
