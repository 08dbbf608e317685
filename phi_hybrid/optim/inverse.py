"""Inverses as rules: Δx = f⁻¹(y + Δy; x) − x (Holl et al. 2022, "Scale-invariant learning by physics inversion")."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from numbers import Real

import torch

from phi_hybrid.bridge.checks import require, require_callable, require_count, require_instance
from phi_hybrid.errors import SolveError, StateError
from phi_hybrid.optim.rules import Function, Pullback
from phi_hybrid.optim.vectors import Tensors, as_tuple, lengths, pack, positive, require_like, unpack


@dataclass(frozen=True)
class Inverse:
    """Inverse simulator as a rule: Δx = f⁻¹(y + Δy; x) − x. Needs no derivatives of f.

    The difference of two states loses digits: give the chain `precision=torch.float64`, or use `LinearInverse`.

    Args:
        fn: function `(*y, *x) -> x̃` for the wanted output y + Δy, x being a point near the result; e.g. `block.native`
            of a captured `(y, x) -> x̃`.
    """

    fn: Function

    def __post_init__(self) -> None:
        require_callable("fn", self.fn, "a function (*y, *x) -> x, e.g. block.native")

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        y = _value(function, x)

        def pullback(dy: Tensors) -> Tensors:
            found = _inverted(self.fn, (*(a + b for a, b in zip(y, dy)), *x), x)
            return tuple(a - b for a, b in zip(found, x))

        return y, pullback


@dataclass(frozen=True)
class LinearInverse:
    """Inverse of linear physics as a rule: Δx = f⁻¹·Δy, without the difference of two states.

    Args:
        fn: function `(*Δy) -> Δx`, e.g. `block.native` of the captured inverse.
    """

    fn: Function

    def __post_init__(self) -> None:
        require_callable("fn", self.fn, "a function (*Δy) -> Δx, e.g. block.native")

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        return _value(function, x), lambda dy: _inverted(self.fn, dy, x)


@dataclass(frozen=True)
class QuasiNewton:
    """L-BFGS with a strong Wolfe line search on the squared residual, all samples together.

    Args:
        iterations: largest number of iterations; 200 by default.
        history: number of pairs of steps and gradients that are kept; 20 by default.
    """

    iterations: int = 200
    history: int = 20

    def __post_init__(self) -> None:
        require_count("iterations", self.iterations)
        require_count("history", self.history)

    def solve(self, residual: Function, start: torch.Tensor, tolerance: float) -> tuple[torch.Tensor, int]:
        """The point with a small residual, and the number of iterations."""
        unknown = start.clone().requires_grad_()
        search = torch.optim.LBFGS(
            [unknown],
            max_iter=1,
            max_eval=26,  # or else the line search may look once only
            history_size=self.history,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            with torch.enable_grad():
                loss = ((residual(unknown) / tolerance) ** 2).sum() / 2  # torch forgets pairs with yᵀs < 1e-10
                (unknown.grad,) = torch.autograd.grad(loss, unknown)
            return loss.detach()

        used, worst, moved = 0, float("inf"), True
        while used < self.iterations and tolerance < worst and moved:
            before, used = unknown.detach().clone(), used + 1
            search.step(closure)
            with torch.no_grad():
                worst = float(lengths(residual(unknown)).max())  # a NaN ends the search, too
            moved = not torch.equal(before, unknown)
        return unknown.detach(), used


@dataclass(frozen=True)
class NewtonKrylov:
    """Newton–Krylov search for a zero residual (SciPy), all samples together; for f with as many outputs as inputs.

    Needs no derivatives, and double precision, since it takes finite differences.

    Args:
        iterations: largest number of iterations; 50 by default.
        method: SciPy's name of the inner linear solver; `"lgmres"` by default.
    """

    iterations: int = 50
    method: str = "lgmres"

    def __post_init__(self) -> None:
        require_count("iterations", self.iterations)
        require_instance("method", self.method, str, "SciPy's name of a linear solver, e.g. 'lgmres'")

    def solve(self, residual: Function, start: torch.Tensor, tolerance: float) -> tuple[torch.Tensor, int]:
        """The point with a small residual, and the number of iterations."""
        from scipy import optimize  # loads for a while, and few need it

        self._require_equations(residual, start)
        count = [0]

        def tensor(array: object) -> torch.Tensor:
            return torch.as_tensor(array, dtype=start.dtype, device=start.device)

        def equations(array: object) -> object:
            with torch.no_grad():
                return residual(tensor(array)).cpu().numpy()

        def counted(*_: object) -> None:
            count[0] += 1

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # what it finds is judged by its residual
                found = optimize.newton_krylov(
                    equations,
                    start.cpu().numpy(),
                    method=self.method,
                    maxiter=self.iterations,
                    f_tol=tolerance,
                    tol_norm=lambda r: float(lengths(tensor(r).reshape(start.shape)).max()),
                    callback=counted,
                )
        except optimize.NoConvergence as error:
            found = error.args[0]
        except StateError:
            raise
        except ValueError:  # SciPy's word for NaN on the way
            return start, count[0]
        return tensor(found).reshape(start.shape), count[0]

    @torch.no_grad()
    def _require_equations(self, residual: Function, start: torch.Tensor) -> None:
        equations = residual(start)
        if start.dtype != torch.float64 or equations.shape != start.shape:
            raise StateError(
                f"NewtonKrylov got {equations.shape[1]} equations for {start.shape[1]} unknowns in {start.dtype}; it needs "
                "equal numbers and Chain(…, precision=torch.float64), or use QuasiNewton()"
            )


@dataclass(frozen=True)
class InverseByOptimization:
    """Local inverse where there is no inverse simulator: Δx = argmin ‖f(x + Δx) − (y + Δy)‖², searched from x.

    Args:
        method: search, `QuasiNewton(…)` (default) or `NewtonKrylov(…)`.
        tolerance: largest ‖f(x + Δx) − (y + Δy)‖ / ‖Δy‖ of a sample, at which the search ends, 1e-3 by default; `float("inf")`
            searches for 1e-3 and takes what is found.

    Raises:
        StateError: for a tolerance ≤ 0.
        SolveError: when used, if the tolerance is missed.
    """

    method: QuasiNewton | NewtonKrylov = QuasiNewton()
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        require_instance("method", self.method, (QuasiNewton, NewtonKrylov), "QuasiNewton(…) or NewtonKrylov(…)")
        valid = isinstance(self.tolerance, Real) and self.tolerance > 0
        require(valid, "tolerance", self.tolerance, "a number > 0, e.g. 1e-3, or infinity for whatever is found")

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        y = _value(function, x)

        def pullback(dy: Tensors) -> Tensors:
            wanted, start = pack(dy), pack(x)
            unit = positive(lengths(wanted))

            def residual(update: torch.Tensor) -> torch.Tensor:
                """In units of ‖Δy‖, so that nothing depends on the scale of y; of single samples, `(sample, entry)`."""
                moved = pack(as_tuple(function(*unpack(start + update, x))))
                return (moved - pack(y) - wanted) / unit

            sought = self.tolerance if math.isfinite(self.tolerance) else 1e-3
            update, iterations = self.method.solve(residual, torch.zeros_like(start), sought)
            self._require_solved(residual, update, iterations)
            return unpack(update, x)

        return y, pullback

    def _require_solved(self, residual: Function, update: torch.Tensor, iterations: int) -> None:
        with torch.no_grad():
            worst = float(lengths(residual(update)).max())
        if not worst <= self.tolerance:
            raise SolveError(
                f"no inverse was found from here: ‖f(x + Δx) − (y + Δy)‖ / ‖Δy‖ = {worst:.2g} after {iterations} iterations "
                f"of {type(self.method).__name__}, more than {self.tolerance:g}; ask for less with Damped(loss rule, 0.3), "
                "give it more iterations, or allow a larger residual",
                worst,
                iterations,
            )


def _value(function: Function, x: Tensors) -> Tensors:
    with torch.no_grad():
        return as_tuple(function(*x))


def _inverted(fn: Function, arguments: Tensors, x: Tensors) -> Tensors:
    found = _value(fn, arguments)
    require_like(found, x, f"what the inverse {getattr(fn, '__name__', fn)} returned")
    return found
