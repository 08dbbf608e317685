"""x = A⁻¹·b for matrices that vary, as a differentiable torch operation: values and derivatives by b and by A."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from phi_hybrid import _compat
from phi_hybrid.errors import SolveError
from phi_hybrid.linear_solve.flags import checked_solves
from phi_hybrid.linear_solve.numbers import free_number
from phi_hybrid.linear_solve.operator import LinearSolve
from phi_hybrid.linear_solve.pattern import Pattern, PatternSystem
from phi_hybrid.linear_solve.pattern_methods import PatternMethod
from phi_hybrid.linear_solve.solution import Method

_alive: weakref.WeakValueDictionary[int, VaryingSolve] = weakref.WeakValueDictionary()

KEPT_ENTRIES = 500_000
"""Matrix entries up to which solvers of recent values are kept; those of the last two calls in any case."""


class VaryingSolve(torch.nn.Module):
    """Solve A·x = b for matrices of one sparsity pattern whose values are arguments, in float64 inside.

    Reverse mode: λ = A⁻ᵀ·x̄, b̄ = λ, Ā = −λ·xᵀ on the pattern. Forward mode: A·ẋ = ḃ − Ȧ·x. Solvers are built when values
    occur for the first time; those of recent values are kept, for the derivatives and for values that do not change.

    Args:
        pattern: places of the entries.
        tolerates_imbalance: the part of b outside of the range of a singular A is dropped instead of an error; `None` where
            nothing was declared, which drops it, too.
        method: method of the solves; `None`, the choice by the matrix, is usual.
        rel_tol: ‖b − A·x‖ ≤ rel_tol·‖b‖ is required of every right-hand side.
        abs_tol: or ‖b − A·x‖ ≤ abs_tol.
    """

    def __init__(
        self, pattern: Pattern, tolerates_imbalance: bool | None, method: Method | None, rel_tol: float, abs_tol: float
    ) -> None:
        super().__init__()
        self.pattern, self.tolerates_imbalance = pattern, tolerates_imbalance
        self.method, self.rel_tol, self.abs_tol = method, rel_tol, abs_tol
        self.register_buffer("rows", torch.from_numpy(pattern.rows), persistent=False)
        self.register_buffer("columns", torch.from_numpy(pattern.columns), persistent=False)
        self._register()

    def forward(self, values: torch.Tensor, rhs: torch.Tensor, transposed: bool = False) -> torch.Tensor:
        """Solution like `rhs`, `(block, batch, unknown)`, for `values` `(block, entry)`, float64; Aᵀ·x = b if `transposed`.

        Raises:
            SolveError: if A or b is not finite, b has no solution, or the solution misses the tolerance.
        """
        arguments = values, rhs, *self.places(values.device), self.number, transposed
        if torch.compiler.is_compiling():
            return solve_varying(*arguments)
        if not (torch.is_grad_enabled() or _compat.functorch_active() or _compat.forward_mode_active()):
            return solve_varying(*arguments) if _compat.is_tracing() else self.solve(values, rhs, transposed)
        return _VaryingSolve.apply(*arguments)

    def places(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns of the entries on a device; steps on several devices may share this module."""
        return self.rows.to(device), self.columns.to(device)

    def solve(self, values: torch.Tensor, rhs: torch.Tensor, transposed: bool) -> torch.Tensor:
        """The solution, checked, without derivatives."""
        matrices = values.detach().to("cpu", torch.float64).contiguous().numpy()
        if not np.isfinite(matrices).all():
            bad = int((~np.isfinite(matrices)).sum())
            raise SolveError(
                f"the matrix of a linear solve holds {bad} NaN or infinite values of {matrices.size}. A coefficient was "
                "damaged before, or divided by zero: look at the operations before the solve"
            )
        kept = max(2 * len(matrices), KEPT_ENTRIES // (matrices.shape[1] or 1))
        solutions = []
        for block, (own_values, own_rhs) in enumerate(zip(matrices, rhs)):
            try:
                with checked_solves():  # the entries of the matrix had to come to the host anyway
                    solutions.append(self._solver_for(own_values).solve(own_rhs, transposed))
            except SolveError as error:
                where = f"matrix {block} of {len(matrices)}: " if len(matrices) > 1 else ""
                raise SolveError(f"{where}{error}", error.residual, error.iterations) from None
        while len(self._solvers) > kept:
            del self._solvers[next(iter(self._solvers))]
        return torch.stack(solutions) if solutions else torch.empty_like(rhs)

    def _solver_for(self, values: np.ndarray) -> LinearSolve:
        key = values.tobytes()
        solver = self._solvers.pop(key, None)
        if solver is None:
            values, tolerant = np.frombuffer(key), self.tolerates_imbalance is not False  # a copy
            system = PatternSystem(self.pattern.matrix(values), self.pattern.shape, tolerant, self.pattern, values)
            solver = LinearSolve(system, self.method or PatternMethod(), self.rel_tol, self.abs_tol)
        self._solvers[key] = solver  # the most recent one is the last
        return solver

    def _register(self) -> None:
        content = self.pattern.key, self.tolerates_imbalance, self.method, self.rel_tol, self.abs_tol
        self.number = free_number(_alive, *content)
        self._solvers: dict[bytes, LinearSolve] = {}
        _alive[self.number] = self

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_solvers", "number")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._register()


@torch.library.custom_op("phi_hybrid::varying_solve", mutates_args=())
def solve_varying(
    values: torch.Tensor, rhs: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, number: int, transposed: bool
) -> torch.Tensor:
    """Operator in graphs, opaque to tracers and compilers. `rows` and `columns` are those of the pattern."""
    return varying_of(number).solve(values, rhs, transposed)


@solve_varying.register_fake
def _(
    values: torch.Tensor, rhs: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, number: int, transposed: bool
) -> torch.Tensor:
    return torch.empty_like(rhs, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    values, _, rows, columns, ctx.number, ctx.transposed = inputs
    ctx.module = varying_of(ctx.number)  # alive until the derivatives are done
    ctx.save_for_backward(values, output, rows, columns)


def _setup_with_tangents(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    _setup(ctx, inputs, output)
    ctx.save_for_forward(inputs[0], output, inputs[2], inputs[3])


def _gradients(ctx: Any, cotangent: torch.Tensor, solve: Callable[..., torch.Tensor]) -> tuple:
    values, x, rows, columns = ctx.saved_tensors
    adjoint = solve(values, cotangent, rows, columns, ctx.number, not ctx.transposed)
    by_values = None
    if ctx.needs_input_grad[0]:
        left, right = (columns, rows) if ctx.transposed else (rows, columns)
        products = adjoint.double().index_select(-1, left) * x.double().index_select(-1, right)
        by_values = -products.sum(1)
    return by_values, adjoint, None, None, None, None


solve_varying.register_autograd(lambda ctx, cotangent: _gradients(ctx, cotangent, solve_varying), setup_context=_setup)


class _VaryingSolve(torch.autograd.Function):
    """The operator with all its derivatives; `torch.library` knows reverse mode only and loses tangents silently."""

    @staticmethod
    def forward(values: torch.Tensor, rhs: torch.Tensor, rows: Any, columns: Any, number: int, transposed: bool) -> Any:
        return varying_of(number).solve(values, rhs, transposed)

    setup_context = staticmethod(_setup_with_tangents)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple:
        return _gradients(ctx, cotangent, _VaryingSolve.apply)

    @staticmethod
    def jvp(ctx: Any, of_values: torch.Tensor | None, of_rhs: torch.Tensor | None, *_: Any) -> torch.Tensor:
        values, x, rows, columns = ctx.saved_tensors
        change = torch.zeros_like(x) if of_rhs is None else of_rhs
        if of_values is not None:
            to, source = (columns, rows) if ctx.transposed else (rows, columns)
            terms = of_values[:, None] * x.double().index_select(-1, source)
            change = change - torch.zeros_like(x).double().index_add(-1, to, terms).to(x.dtype)
        return _VaryingSolve.apply(values, change, rows, columns, ctx.number, ctx.transposed)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, values: torch.Tensor, rhs: torch.Tensor, rows: Any, columns: Any, *rest: Any
    ) -> tuple[torch.Tensor, int]:
        lanes = info.batch_size
        rhs = rhs.expand(lanes, *rhs.shape) if in_dims[1] is None else rhs.movedim(in_dims[1], 0)
        if in_dims[0] is None:  # one matrix for all lanes: more right-hand sides
            x = _VaryingSolve.apply(values, rhs.transpose(0, 1).flatten(1, 2), rows, columns, *rest)
            return x.reshape(rhs.transpose(0, 1).shape), 1
        values = values.movedim(in_dims[0], 0)
        return _VaryingSolve.apply(values.flatten(0, 1), rhs.flatten(0, 1), rows, columns, *rest).reshape(rhs.shape), 0


def varying_of(number: int) -> VaryingSolve:
    """The live module with this number."""
    return _alive[number]
