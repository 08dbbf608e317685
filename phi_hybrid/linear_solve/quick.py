"""Solves for compiled graphs: fast diagonalisation in the precision of the state, its checks read off the spectrum."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from phi_hybrid.linear_solve.fast_diagonalization import ExactSolver, SpectralSolver
from phi_hybrid.linear_solve.flags import waits
from phi_hybrid.linear_solve.operator import LinearSolve, solve_of
from phi_hybrid.linear_solve.solution import Solution

SAFETY = 10.0
"""Single precision must beat the tolerance of a solve by this factor to be used."""


class QuickSolver:
    """x = A⁺·b by transforms, with one look at the result: is it finite, and was b in the range of A?

    In float32 if that changes solutions by less than a tenth of the relative tolerance, else in float64.

    Args:
        spectral: transforms and eigenvalues, in float64.
        solve: the solve with its tolerances.
        dtype: of right-hand sides.
        checks: whether a part of b outside of the range of A is an error.
    """

    def __init__(self, spectral: SpectralSolver, solve: LinearSolve, dtype: torch.dtype, checks: bool) -> None:
        single = in_precision(spectral, torch.float32) if dtype == torch.float32 else spectral
        exact = dtype == torch.float64 or _difference(single, spectral) * SAFETY <= solve.rel_tol
        self.spectral, self.dtype = (single, dtype) if exact else (spectral, torch.float64)
        self.solve, self.checks = solve, checks
        zero = spectral.half(spectral.zero).nonzero().tolist()
        corner = [0] * len(spectral.shape)  # the sum of b, if all axes are periodic
        self.watched = zero if corner in zero or not spectral.is_periodic else [corner, *zero]

    def __call__(self, rhs: torch.Tensor) -> torch.Tensor | None:
        """The solution, `(batch, size)`; `None` if b is not finite or outside of the range of A."""
        b = rhs.to(self.dtype)
        modes = self.spectral.analyse(b)
        x = self.spectral.synthesise(modes).reshape(rhs.shape)
        if waits(rhs.device):
            self._demand(modes, b, x)
            return x.to(rhs.dtype)
        parts = [abs(v) for at in self.watched for v in modes[(slice(None), *at)].tolist()]
        if not all(map(math.isfinite, parts)) or not (self.spectral.is_periodic or math.isfinite(x.sum().item())):
            return None
        if self.checks and not self._is_small(max(parts, default=0.0), b):
            return None
        return x.to(rhs.dtype)

    def _demand(self, modes: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> None:
        """The same on a device that is not waited for."""
        norm = b.norm(dim=1).double()
        self.solve.demand_finite(b, norm)
        parts = torch.stack([modes[(slice(None), *at)].abs() for at in self.watched]) if self.checks else norm[None] * 0
        imbalance = parts.amax(0) * (math.sqrt(2 * len(self.watched)) / self._scale(b))
        self.solve.check(Solution(x.double(), imbalance=imbalance.double()), norm, adjoint=not self.checks)

    def _scale(self, b: torch.Tensor) -> float:
        """Norm of the modes of a vector of norm 1."""
        return math.sqrt(b.shape[1]) if self.spectral.is_periodic else 1.0

    def _is_small(self, part: float, b: torch.Tensor) -> bool:
        """Bounds the part outside of the range of A, whose coefficients are at most `part`."""
        bound = part * math.sqrt(2 * len(self.watched)) / self._scale(b)
        return bound <= self.solve.abs_tol or bound <= self.solve.rel_tol * b.norm(dim=1).amin().item()


def in_precision(part: Any, dtype: torch.dtype) -> Any:
    """A copy of a solver or of a transform with its tensors in another precision."""
    result = copy.copy(part)
    for name, value in vars(part).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            setattr(result, name, value.to(dtype))
        elif isinstance(value, torch.Tensor) and value.is_complex():
            setattr(result, name, value.to(dtype.to_complex()))
        elif isinstance(value, list):
            setattr(result, name, [in_precision(v, dtype) for v in value])
    return result


def _difference(single: SpectralSolver, double: SpectralSolver) -> float:
    """Relative difference of solutions for white noise, and for the solution of white noise, which is smooth."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, double.zero.numel(), generator=generator, dtype=torch.float64).to(double.zero.device)
    rhs = noise, double.apply(noise)
    errors = [
        (single.apply(b.float()).double() - x).norm() / x.norm()
        for b in rhs
        for x in [double.apply(b.float().double())]
    ]
    return float(max(errors))


def quick_solver_for(solve: LinearSolve, rhs: torch.Tensor, transposed: bool) -> QuickSolver | None:
    """The quick solver for right-hand sides of this device and precision, `None` where there is none."""
    key = (rhs.device, rhs.dtype, transposed)
    if key not in solve.quick:
        exact, quick = solve.solver_for(rhs), None
        if isinstance(exact, ExactSolver) and rhs.dtype in (torch.float32, torch.float64):
            singular = bool(exact.forward.zero.any())
            if solve.system.is_symmetric or not singular:
                spectral = exact.adjoint if transposed else exact.forward
                quick = QuickSolver(spectral, solve, rhs.dtype, singular and not transposed and not exact.tolerant)
        solve.quick[key] = quick
    return solve.quick[key]


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
