"""Takeover of the linear solves of PhiFlow code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from phi_hybrid import _compat
from phi_hybrid.linear_solve.flags import checked_solves
from phi_hybrid.linear_solve.operator import LinearSolve
from phi_hybrid.linear_solve.pattern import gathered, pattern_of
from phi_hybrid.linear_solve.solution import Method
from phi_hybrid.linear_solve.system import system_of
from phi_hybrid.linear_solve.varying import VaryingSolve

KEPT = 32
"""Systems whose solvers are kept for the next call."""


class Solves:
    """Linear systems met so far, each with its solver.

    Args:
        method: method of every solve; by default the matrix decides.
    """

    def __init__(self, method: Method | None = None) -> None:
        self.method = method
        self._known: dict[tuple, LinearSolve | VaryingSolve] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Context in which PhiFlow's linear solves on torch tensors are done here, with all derivatives."""
        with _compat.hooked_solves(self.solve):
            yield

    def solve(self, matrix: _compat.MatrixStandIn, rhs: torch.Tensor, rel_tol: Any, abs_tol: Any) -> torch.Tensor:
        """Solution for a right-hand side, see `_compat.hooked_solves`."""
        if matrix.entries is not None:
            module, values = self.varying_for(matrix, rel_tol, abs_tol)
            return by_parts(lambda b: module(values, b), rhs)
        module, order = self.module_for(matrix, rel_tol, abs_tol)
        return in_order(by_parts(module, rhs), order)

    def module_for(
        self, matrix: _compat.MatrixStandIn, rel_tol: Any, abs_tol: Any
    ) -> tuple[LinearSolve, np.ndarray | None]:
        """The module that solves with this constant matrix, and the order of its unknowns (see `system_of`)."""
        system, order = system_of(matrix)
        tolerances = _numbers(rel_tol, abs_tol)
        key = (system.key, *tolerances)
        return self._known_or(key, lambda: LinearSolve(system, self.method, *tolerances)), order

    def varying_for(
        self, matrix: _compat.MatrixStandIn, rel_tol: Any, abs_tol: Any
    ) -> tuple[VaryingSolve, torch.Tensor]:
        """The module that solves with matrices of this pattern, and the values it takes for this one."""
        with _compat.without_tracing():
            pattern, slots = pattern_of(matrix.entries)
            tolerances = _numbers(rel_tol, abs_tol)
            key = (pattern.key, matrix.singular, *tolerances)
            module = self._known_or(key, lambda: VaryingSolve(pattern, matrix.singular, self.method, *tolerances))
        return module, gathered(matrix.entries, pattern, slots)

    def _known_or(self, key: tuple, make: Callable[[], torch.nn.Module]) -> Any:
        if key not in self._known:
            while len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = make()
        return self._known[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"method": self.method, "_known": {}}


def _numbers(*tolerances: Any) -> list[float]:
    return [float(torch.as_tensor(t).min()) for t in tolerances]


def by_parts(solve: Callable[[torch.Tensor], torch.Tensor], rhs: torch.Tensor) -> torch.Tensor:
    """Real and imaginary part of a complex right-hand side, one after the other."""
    return torch.complex(solve(rhs.real), solve(rhs.imag)) if rhs.is_complex() else solve(rhs)


def in_order(x: torch.Tensor, order: np.ndarray | None) -> torch.Tensor:
    """Unknowns in the order of the columns."""
    return x if order is None else x.index_select(1, torch.tensor(order, device=x.device))


@contextlib.contextmanager
def linear_solves(solver: Method | None = None) -> Iterator[None]:
    """Context in which linear solves of plain PhiFlow code (torch) are exact, fast and differentiable.

    `fluid.make_incompressible(v)`, `diffuse.implicit(u, …)` and `math.solve_linear(f, y, Solve(…))` keep their meaning
    and their tolerances; method and preconditioner of a `Solve` are ignored. Solvers are kept for equal matrices.
    `capture` does this by itself.

    Args:
        solver: method, `FastDiagonalization()`, `CapacitanceMatrix()`, `SparseFactorization()` or `ConjugateGradient(…)`; by
            default the matrix decides.

    Raises:
        SolveError: in the body, where a solve misses its tolerance, has no solution, or is given NaN; at its end on a GPU.
    """
    with Solves(solver).active(), checked_solves():
        yield
