"""x = A⁻¹·b as a differentiable torch operation: values, adjoint, tangents, vmap, all with one factorisation."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch

from phi_hybrid import _compat
from phi_hybrid.errors import SolveError
from phi_hybrid.linear_solve.capacitance import CapacitanceMatrix
from phi_hybrid.linear_solve.conjugate_gradient import ConjugateGradient
from phi_hybrid.linear_solve.factorization import SparseFactorization
from phi_hybrid.linear_solve.fast_diagonalization import FastDiagonalization
from phi_hybrid.linear_solve.flags import demand
from phi_hybrid.linear_solve.numbers import free_number
from phi_hybrid.linear_solve.solution import Method, Solution, Solver
from phi_hybrid.linear_solve.system import System

_alive: weakref.WeakValueDictionary[int, LinearSolve] = weakref.WeakValueDictionary()
"""Graphs hold numbers and tensors only, so the operator below finds its solver by number."""


class LinearSolve(torch.nn.Module):
    """Solve A·x = b for constant A: `(batch, size)` → `(batch, size)`, in the precision of b, computed in float64.

    Every derivative is again a solve with A or Aᵀ. Solvers are built when first used on a device and stay behind when
    the module is copied or pickled.

    Args:
        system: matrix and grid.
        method: method of the solve; `None`, the choice by the structure of the matrix, is usual.
        rel_tol: ‖b − A·x‖ ≤ rel_tol·‖b‖ is required of every batch entry.
        abs_tol: or ‖b − A·x‖ ≤ abs_tol.
    """

    def __init__(self, system: System, method: Method | None, rel_tol: float, abs_tol: float) -> None:
        super().__init__()
        self.system, self.method, self.rel_tol, self.abs_tol = system, method, rel_tol, abs_tol
        self._register()

    def forward(self, rhs: torch.Tensor, transposed: bool = False) -> torch.Tensor:
        """Raises SolveError if b is not finite, has no solution, or the solution misses the tolerance; see `flags` when."""
        if torch.compiler.is_compiling():
            return torch.ops.phi_hybrid.quick_solve(rhs, self.number, transposed)
        if not (torch.is_grad_enabled() or _compat.functorch_active() or _compat.forward_mode_active()):
            return solve_numbered(rhs, self.number, transposed) if _compat.is_tracing() else self.solve(rhs, transposed)
        return _Solve.apply(rhs, self.number, transposed)

    def solve(self, rhs: torch.Tensor, transposed: bool) -> torch.Tensor:
        """The solution, checked, without derivatives."""
        solver = self.solver_for(rhs)
        b = rhs.detach().double()
        norm = b.norm(dim=1)
        self.demand_finite(b, norm)
        solution = solver.solve(b, transposed)
        self.check(solution, norm, transposed)
        return solution.x.to(rhs.dtype).contiguous()

    def demand_finite(self, b: torch.Tensor, norm: torch.Tensor) -> None:
        """Demands right-hand sides without NaN and infinity; `norm` of each, `(batch)`."""
        demand(torch.isfinite(norm).all(), lambda: (torch.isfinite(b).sum(),), partial(_damaged, b.numel()))

    def check(self, solution: Solution, norm: torch.Tensor, adjoint: bool) -> None:
        """Demands a solution within the tolerances, and a right-hand side in the range of A.

        Solutions have no part in the null space, so that a cotangent's part there has no effect on b̄ and is left out.
        """
        allowed = (self.rel_tol * norm).clamp_min(self.abs_tol)
        if solution.imbalance is not None and not adjoint and not self.system.tolerates_imbalance:
            self._require(solution.imbalance, allowed, norm, solution, _UNBALANCED)
        if solution.residual is not None:
            rounding = 64 * torch.finfo(torch.float64).eps * self.system.norm * solution.x.norm(dim=1)
            self._require(solution.residual, torch.maximum(allowed, rounding), norm, solution, _MISSED)

    def _require(
        self, error: torch.Tensor, allowed: torch.Tensor, norm: torch.Tensor, solution: Solution, message: str
    ) -> None:
        error, iterations = error.to(allowed.device), solution.iterations

        def failure(error: torch.Tensor, allowed: torch.Tensor, norm: torch.Tensor) -> SolveError:
            worst = int(torch.where(error <= allowed, 0.0, error / allowed).nan_to_num(torch.inf).argmax())
            relative = float(error[worst] / norm[worst])
            description = message.format(
                error=float(error[worst]), allowed=float(allowed[worst]), relative=relative, entry=worst
            )
            return SolveError(
                f"{description} ({self.system.size} unknowns, {iterations} iterations, tolerances: relative "
                f"{self.rel_tol:.1e}, absolute {self.abs_tol:.1e})",
                relative,
                iterations,
            )

        demand((error <= allowed).all(), lambda: (error, allowed, norm), failure)

    def solver_for(self, rhs: torch.Tensor) -> Solver:
        """The solver for the device and the precision of right-hand sides."""
        key = (rhs.device, rhs.dtype)
        if key not in self._solvers:
            precise = 1e-11 if rhs.dtype == torch.float64 else 1e-7
            tolerance = min(self.rel_tol, precise) if self.rel_tol > 0 else precise
            self._solvers[key] = build_solver(self.system, self.method, rhs.device, tolerance)
        return self._solvers[key]

    def _register(self) -> None:
        self.number = free_number(_alive, self.system.key, self.method, self.rel_tol, self.abs_tol)
        self._solvers: dict[tuple, Solver] = {}
        self.quick: dict[tuple, Any] = {}
        """Solvers of `quick.py` by device, precision and direction."""
        _alive[self.number] = self

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_solvers", "quick", "number")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._register()


def _damaged(count: int, finite: torch.Tensor) -> SolveError:
    return SolveError(
        f"the right-hand side of a linear solve holds {count - int(finite)} NaN or infinite values of {count}. The state was "
        "damaged before: reduce the time step, or look at the operations before the solve"
    )


_UNBALANCED = (
    "the matrix is singular and the right-hand side of batch entry {entry} has no solution: its sum over coupled cells "
    "does not vanish (part of norm {error:.2e}, allowed {allowed:.2e}). Subtract its mean, or declare "
    "Solve(rank_deficiency=1) to leave that part out"
)
_MISSED = (
    "a linear solve missed its tolerance in batch entry {entry}: ‖b − A·x‖ = {error:.2e}, allowed {allowed:.2e}, relative "
    "{relative:.2e}. Loosen the tolerance of Solve(…), allow more iterations with ConjugateGradient(max_iterations=…), "
    "or choose SparseFactorization()"
)


@torch.library.custom_op("phi_hybrid::linear_solve", mutates_args=())
def solve_numbered(rhs: torch.Tensor, number: int, transposed: bool) -> torch.Tensor:
    """Operator in graphs, opaque to tracers and compilers."""
    return solve_of(number).solve(rhs, transposed)


@solve_numbered.register_fake
def _(rhs: torch.Tensor, number: int, transposed: bool) -> torch.Tensor:
    return torch.empty_like(rhs, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    _, ctx.number, ctx.transposed = inputs
    ctx.module = solve_of(ctx.number)  # alive until the derivatives are done


def _backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    return solve_numbered(cotangent, ctx.number, not ctx.transposed), None, None


solve_numbered.register_autograd(_backward, setup_context=_setup)


class _Solve(torch.autograd.Function):
    """The operator with all its derivatives; `torch.library` knows reverse mode only and loses tangents silently."""

    @staticmethod
    def forward(rhs: torch.Tensor, number: int, transposed: bool) -> torch.Tensor:
        return solve_of(number).solve(rhs, transposed)

    setup_context = staticmethod(_setup)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _Solve.apply(cotangent, ctx.number, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, *_: Any) -> torch.Tensor:
        return _Solve.apply(tangent, ctx.number, ctx.transposed)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, rhs: torch.Tensor, number: int, transposed: bool) -> tuple[torch.Tensor, int]:
        lanes = rhs.movedim(in_dims[0], 0)
        return _Solve.apply(lanes.flatten(0, 1), number, transposed).reshape(lanes.shape), 0


def solve_of(number: int) -> LinearSolve:
    """The live module with this number."""
    return _alive[number]


# --- which method solves which system ---

LARGEST_FACTORIZATION = {1: 1_000_000, 2: 150_000, 3: 10_000}
"""Unknowns up to which factors are kept, by the dimension of the grid: fill grows as n^1, n·log n, n^(4/3)."""


SMALLEST_FACTORIZATION = 128
"""Cells per axis from which, in 2D and float64 on a CPU, two sparse triangular solves beat products with dense matrices."""


def methods_for(system: System, device: torch.device) -> tuple[Method, ...]:
    """Methods to try, in order of preference."""
    dims = min(len(system.shape), 3)
    if device.type != "cpu" or system.size > LARGEST_FACTORIZATION[dims]:
        return FastDiagonalization(), CapacitanceMatrix(), ConjugateGradient(), SparseFactorization()
    if dims == 2 and max(system.shape) >= SMALLEST_FACTORIZATION:
        return FastDiagonalization(), SparseFactorization(), ConjugateGradient()
    return FastDiagonalization(), CapacitanceMatrix(), SparseFactorization(), ConjugateGradient()


def build_solver(system: System, method: Method | None, device: torch.device, tolerance: float) -> Solver:
    """The solver of the given method, or of the best that applies.

    Raises:
        SolveError: if none applies.
    """
    for candidate in methods_for(system, device) if method is None else (method,):
        solver = candidate.build(system, device, tolerance)
        if solver is not None:
            return solver
    verdict = "no method applies" if method is None else f"{method} does not apply"
    advice = "" if method is None else ". Pass solver=None to let the matrix decide"
    raise SolveError(
        f"{verdict} to this matrix of {system.size} unknowns on a grid {system.shape} "
        f"({'symmetric' if system.is_symmetric else 'not symmetric'}). FastDiagonalization needs a box without obstacles "
        "and constant coefficients, CapacitanceMatrix obstacles in such a box that leave it in one piece, ConjugateGradient "
        "a symmetric definite matrix, SparseFactorization a regular one or "
        f"one whose null space is constant on uncoupled parts{advice}"
    )
