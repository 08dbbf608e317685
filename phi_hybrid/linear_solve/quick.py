"""Solves for compiled graphs: transforms and products in the precision of the state, with one look at the result."""

from __future__ import annotations

import copy
import math
from typing import Any, Protocol

import torch

from phi_hybrid.linear_solve.capacitance import CapacitanceMatrix, CapacitanceSolver, SurfaceCorrection
from phi_hybrid.linear_solve.factorization import FactoredSolver
from phi_hybrid.linear_solve.fast_diagonalization import ExactSolver, SpectralSolver
from phi_hybrid.linear_solve.flags import waits
from phi_hybrid.linear_solve.operator import LinearSolve, solve_of
from phi_hybrid.linear_solve.solution import Balance, Solution

SAFETY = 10.0
"""Single precision must beat the tolerance of a solve by this factor to be used."""


class Look(Protocol):
    """A solve, and numbers that show whether its right-hand side was right."""

    scale: float
    """Largest length that the shown numbers of a vector of length 1 can have."""
    shows_all: bool
    """The numbers are finite only if the solution is."""

    def __call__(self, b: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """x, `(batch, size)`, and numbers `(batch)` that vanish where b is in the range of a singular A."""
        ...


class SpectralLook:
    """x = A⁺·b by transforms, and the modes of b that A maps to zero."""

    def __init__(self, spectral: SpectralSolver) -> None:
        self.spectral, self.shows_all = spectral, spectral.is_periodic
        zero = spectral.half(spectral.zero).nonzero().tolist()
        corner = [0] * len(spectral.shape)  # the sum of b, if all axes are periodic
        self.watched = zero if corner in zero or not spectral.is_periodic else [corner, *zero]
        length = (
            math.sqrt(spectral.zero.numel()) if spectral.is_periodic else 1.0
        )  # of the modes of a vector of length 1
        self.scale = length / math.sqrt(2 * max(len(self.watched), 1))

    def __call__(self, b: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        modes = self.spectral.analyse(b)
        x = self.spectral.synthesise(modes).reshape(b.shape)
        return x, [modes[(slice(None), *at)] for at in self.watched]


class CapacitanceLook:
    """x = A⁺·b beside obstacles, and the parts of b along null vectors."""

    shows_all = False

    def __init__(self, solver: CapacitanceSolver) -> None:
        self.solver, self.null = solver, solver.balanced.left
        self.scale = 1 / math.sqrt(max(self.null.shape[1], 1))

    def __call__(self, b: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.solver.apply(b, False), list((b @ self.null).unbind(1)) if self.null.shape[1] else []


class QuickSolver:
    """A look at a right-hand side and its solution: are they finite, and was b in the range of A?

    Args:
        look: in float32 if that is precise enough.
        solve: the solve with its tolerances.
        dtype: of the look.
        checks: whether a part of b outside of the range of A is an error.
    """

    def __init__(self, look: Look, solve: LinearSolve, dtype: torch.dtype, checks: bool) -> None:
        self.look, self.solve, self.dtype, self.checks = look, solve, dtype, checks

    def __call__(self, rhs: torch.Tensor) -> torch.Tensor | None:
        """The solution, `(batch, size)`; `None` if b is not finite or outside of the range of A."""
        b = rhs.to(self.dtype)
        x, shown = self.look(b)
        if waits(rhs.device):
            self._demand(shown, b, x)
            return x.to(rhs.dtype)
        parts = [abs(v) for part in shown for v in part.tolist()]
        if not all(map(math.isfinite, parts)) or not (self.look.shows_all or math.isfinite(x.sum().item())):
            return None
        if self.checks and not self._is_small(max(parts, default=0.0), b):
            return None
        return x.to(rhs.dtype)

    def _demand(self, shown: list[torch.Tensor], b: torch.Tensor, x: torch.Tensor) -> None:
        """The same on a device that is not waited for."""
        norm = b.norm(dim=1).double()
        self.solve.demand_finite(b, norm)
        parts = torch.stack([part.abs() for part in shown]) if self.checks else norm[None] * 0
        solution = Solution(x.double(), imbalance=parts.amax(0).double() / self.look.scale)
        self.solve.check(solution, norm, adjoint=not self.checks)

    def _is_small(self, part: float, b: torch.Tensor) -> bool:
        """Bounds the part outside of the range of A, whose coefficients are at most `part`."""
        bound = part / self.look.scale
        return bound <= self.solve.abs_tol or bound <= self.solve.rel_tol * b.norm(dim=1).amin().item()


def in_precision(part: Any, dtype: torch.dtype) -> Any:
    """A copy of a solver or of a part of one with its tensors in another precision."""
    result = copy.copy(part)
    for name, value in vars(part).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            setattr(result, name, value.to(dtype))
        elif isinstance(value, torch.Tensor) and value.is_complex():
            setattr(result, name, value.to(dtype.to_complex()))
        elif isinstance(value, (SpectralSolver, SurfaceCorrection, Balance)):
            setattr(result, name, in_precision(value, dtype))
        elif isinstance(value, list):
            setattr(result, name, [in_precision(v, dtype) for v in value])
    return result


def _difference(single: Look, double: Look, size: int, device: torch.device) -> float:
    """Relative difference of solutions for white noise, and for the solution of white noise, which is smooth."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, size, generator=generator, dtype=torch.float64).to(device)
    rhs = noise, double(noise)[0]
    errors = [
        (single(b.float())[0].double() - x).norm() / x.norm() for b in rhs for x in [double(b.float().double())[0]]
    ]
    return float(max(errors))


def quick_solver_for(solve: LinearSolve, rhs: torch.Tensor, transposed: bool) -> QuickSolver | None:
    """The quick solver for right-hand sides of this device and precision, `None` where there is none."""
    key = (rhs.device, rhs.dtype, transposed)
    if key not in solve.quick:
        direct = _direct_solver(solve, rhs) if rhs.dtype in (torch.float32, torch.float64) else None
        solve.quick[key] = None if direct is None else _quick(solve, direct, rhs, transposed)
    return solve.quick[key]


def _direct_solver(solve: LinearSolve, rhs: torch.Tensor) -> ExactSolver | CapacitanceSolver | None:
    """A solver that consists of products and transforms. In float32 one beats a factorisation, which is not there in float32."""
    solver = solve.solver_for(rhs)
    if isinstance(solver, FactoredSolver) and solve.method is None and rhs.dtype == torch.float32:
        solver = CapacitanceMatrix().build(solve.system, rhs.device, solve.rel_tol)
    return solver if isinstance(solver, (ExactSolver, CapacitanceSolver)) else None


def _quick(
    solve: LinearSolve, direct: ExactSolver | CapacitanceSolver, rhs: torch.Tensor, transposed: bool
) -> QuickSolver | None:
    if isinstance(direct, CapacitanceSolver):
        kind, part, singular = CapacitanceLook, direct, direct.balanced.left.shape[1] > 0
    else:
        kind, part = SpectralLook, direct.adjoint if transposed else direct.forward
        singular = bool(part.zero.any())
        if singular and not solve.system.is_symmetric:
            return None
    look, dtype = kind(part), torch.float64
    if rhs.dtype == torch.float32:
        single = kind(in_precision(part, torch.float32))
        if _difference(single, look, solve.system.size, rhs.device) * SAFETY <= solve.rel_tol:
            look, dtype = single, torch.float32
    return QuickSolver(look, solve, dtype, singular and not transposed and not direct.tolerant)


# --- the operator in compiled graphs: `torch.library.custom_op` would take longer than a small FFT ---

_library = torch.library.Library("phi_hybrid", "FRAGMENT")
_library.define("quick_solve(Tensor rhs, int number, bool transposed) -> Tensor")
_library.define("quick_solution(Tensor rhs, int number, bool transposed) -> Tensor")


def _solution(rhs: torch.Tensor, number: int, transposed: bool) -> torch.Tensor:
    solve = solve_of(number)
    quick = quick_solver_for(solve, rhs, transposed)
    x = None if quick is None else quick(rhs)
    return solve.solve(rhs, transposed) if x is None else x  # which says what is wrong


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rhs: torch.Tensor, number: int, transposed: bool) -> torch.Tensor:
        ctx.number, ctx.transposed = number, transposed
        ctx.module = solve_of(number)  # alive until the derivatives are done
        return quick_solution(rhs, number, transposed)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return quick_solve(cotangent, ctx.number, not ctx.transposed), None, None


for _name in ("quick_solve", "quick_solution"):
    _library.impl(_name, _solution, "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"phi_hybrid::{_name}",
        lambda rhs, number, transposed: torch.empty_like(rhs, memory_format=torch.contiguous_format),
        lib=_library,
    )
_library.impl("quick_solve", _Solve.apply, "Autograd")

quick_solve = torch.ops.phi_hybrid.quick_solve.default
"""`(rhs, number, transposed) -> x`; its derivatives are written in graphs as `quick_solution`, which is opaque to compilers."""
quick_solution = torch.ops.phi_hybrid.quick_solution.default
"""The same without derivatives: looking for them would take longer than a small FFT at each call."""
