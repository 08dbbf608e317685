"""Rules turn a wanted update Δy at the output of a piece, y = f(x), into an update Δx at its input.

| rule | Δx | needs |
|---|---|---|
| `Gradient` | Jᵀ·Δy | one backward pass |
| `HalfInverse` | V σ^(−κ) Uᵀ·Δy with J = U σ Vᵀ | J of every sample |
| `GaussNewton` | (JᵀJ + λ²)⁻¹ Jᵀ·Δy | J of every sample |
| `GaussNewtonCG` | the same | some tens of products with J and Jᵀ |
| `Newton`, `SeparableNewton` | −∣H∣⁻¹·∇φ, φ = −⟨Δy, f⟩ | second derivatives, see `newton` |
| `Inverse`, `LinearInverse`, `InverseByOptimization` | f⁻¹(y + Δy) − x | an inverse, see `inverse` |
| `Damped`, `TrustRegion` | those of another rule, shorter | |
| `Blend` | those of several rules, added up | |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import torch

from phi_hybrid.bridge.checks import require, require_callable, require_count, require_instance, require_number
from phi_hybrid.errors import SolveError, StateError
from phi_hybrid.optim.filters import Cutoff, Filter, Smooth, require_kappa, require_nonnegative
from phi_hybrid.optim.linearization import Linearization
from phi_hybrid.optim.vectors import Tensors, as_tuple, lengths, pack, positive, unit, unpack

Function = Callable[..., torch.Tensor | Tensors]
"""`(*x) -> y`, torch tensors `(sample, …)`; `y` a tensor or a tuple."""

Pullback = Callable[[Tensors], Tensors]
"""Δy ↦ Δx, like the tensors of y and x."""


class Rule(Protocol):
    """Interface of rules."""

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        """y = f(x) without a graph, and Δy ↦ Δx there; a rule that needs derivatives records them here."""
        ...


def require_rule(rule: Any) -> None:
    """Raises StateError for what is no rule; the class of a rule is none."""
    require_callable("rule", rule, "a rule, e.g. Gradient()")


@dataclass(frozen=True)
class Gradient:
    """Adjoint Δx = Jᵀ·Δy, as in backpropagation. Samples may depend on each other."""

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        linear = Linearization(function, x)
        return linear.y, lambda dy: unpack(linear.transposed_times(pack(dy)), x)


@dataclass(frozen=True)
class HalfInverse:
    """Half-inverse Δx = V σ^(−κ) Uᵀ·Δy with J = U σ Vᵀ of each sample (Schnell et al. 2022, arXiv 2203.10131).

    Args:
        kappa: exponent κ, −1 (gradient) … 1 (pseudo-inverse), ½ (half-inverse) by default.
        rcond: number, singular values up to rcond·σ_max of the sample are dropped, or a filter, `Cutoff(rcond, damping)`
            or `Smooth(rcond, damping)`; 1e-6 by default.
        chunk: number of passes that are made at once for J.

    Raises:
        StateError: for settings out of range; when used, if samples depend on each other.
    """

    kappa: float = 0.5
    rcond: float | Filter = 1e-6
    chunk: int = 256

    def __post_init__(self) -> None:
        require_kappa(self.kappa)
        require_instance("rcond", self.rcond, (Real, Cutoff, Smooth), "a number, Cutoff(rcond, damping) or Smooth(…)")
        require_count("chunk", self.chunk)
        self.filter  # noqa: B018  (settings out of range are refused here)

    @property
    def filter(self) -> Filter:
        return Cutoff(self.rcond) if isinstance(self.rcond, Real) else self.rcond

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        linear = Linearization(function, x)

        def pullback(dy: Tensors) -> Tensors:
            matrices = linear.matrices(self.chunk)
            left, values, right = torch.linalg.svd(matrices, full_matrices=False)
            weights = torch.func.vmap(lambda squares: self.filter(squares, self.kappa))(values**2)
            modes = torch.einsum("sor,so->sr", left, pack(dy).double())
            return unpack(torch.einsum("sri,sr->si", right, values * weights * modes), x)

        return linear.y, pullback


@dataclass(frozen=True)
class GaussNewton:
    """Gauss–Newton Δx = (JᵀJ + λ²)⁻¹ Jᵀ·Δy of each sample; undamped the pseudo-inverse J⁺·Δy, the shortest solution.

    Args:
        damping: λ, in units of the singular values of J; 0 by default.
        rcond: number, singular values up to rcond·σ_max of the sample are dropped; 1e-6 by default.
        chunk: number of passes that are made at once for J.

    Raises:
        StateError: for settings out of range; when used, if samples depend on each other.
    """

    damping: float = 0.0
    rcond: float = 1e-6
    chunk: int = 256

    def __post_init__(self) -> None:
        self._rule  # noqa: B018  (settings out of range are refused here)

    @property
    def _rule(self) -> HalfInverse:
        return HalfInverse(1.0, Cutoff(self.rcond, self.damping), self.chunk)

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        return self._rule(function, x)


@dataclass(frozen=True)
class GaussNewtonCG:
    """Gauss–Newton Δx = (JᵀJ + λ²)⁻¹ Jᵀ·Δy by conjugate gradients, from products with J and Jᵀ only: for large pieces.

    Conjugate gradients on the normal equations without forming them (CGLS, Björck 1996), each sample with its own step
    sizes. Without damping, iterations grow with the condition number of J.

    Args:
        damping: λ, in units of the singular values of J; 0 by default.
        tolerance: largest ‖Jᵀ·(Δy − J·Δx) − λ²·Δx‖ / ‖Jᵀ·Δy‖ of every sample, as far as rounding allows; 1e-4 by default.
        iterations: largest number of iterations; 200 by default.

    Raises:
        StateError: for settings out of range; when used, if samples depend on each other.
        SolveError: when used, if the tolerance is missed.
    """

    damping: float = 0.0
    tolerance: float = 1e-4
    iterations: int = 200

    def __post_init__(self) -> None:
        require_nonnegative("damping", self.damping)
        require_number("tolerance", self.tolerance, above=0)
        require(self.tolerance < 1, "tolerance", self.tolerance, "a number between 0 and 1")
        require_count("iterations", self.iterations)

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        linear = Linearization(function, x)
        return linear.y, lambda dy: unpack(self._solved(linear, pack(dy)), x)

    def _solved(self, linear: Linearization, dy: torch.Tensor) -> torch.Tensor:
        """In units of ‖Δy‖ and ‖J‖, so that squares neither vanish nor overflow in single precision."""
        linear.require_independent_samples()
        size, residual = positive(linear.norms()), unit(dy)
        damping, gradient = self.damping / size, linear.transposed_times(residual) / size
        solution, direction = torch.zeros_like(gradient), gradient
        square = first = _square(gradient)
        rounding = 10 * torch.finfo(gradient.dtype).eps  # Jᵀ·r is no smaller, even if J does not reach r
        done = square <= rounding**2
        for _ in range(self.iterations):
            image = linear.times(direction) / size
            step = _ratio(square, _square(image) + damping**2 * _square(direction)) * ~done
            solution, residual = solution + step * direction, residual - step * image
            gradient = linear.transposed_times(residual) / size - damping**2 * solution
            previous, square = square, _square(gradient)
            done = square <= torch.maximum(self.tolerance**2 * first, rounding**2 * _square(residual))
            if bool(done.all()):
                return solution * (lengths(dy) / size)
            direction = gradient + _ratio(square, previous) * direction
        worst = float((_ratio(square, first) * ~done).max() ** 0.5)
        raise SolveError(
            f"GaussNewtonCG is at a relative residual of {worst:.2g} after {self.iterations} iterations, more than "
            f"{self.tolerance:g}; use a larger damping, tolerance or number of iterations, or the dense GaussNewton()",
            worst,
            self.iterations,
        )


@dataclass(frozen=True)
class Damped:
    """Shorter updates: factor · Δx of another rule.

    Args:
        rule: rule that makes the updates.
        factor: number > 0, often 0.3 … 1.
    """

    rule: Rule
    factor: float

    def __post_init__(self) -> None:
        require_rule(self.rule)
        require_number("factor", self.factor, above=0)

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        y, pullback = self.rule(function, x)
        return y, lambda dy: tuple(self.factor * t for t in pullback(dy))


@dataclass(frozen=True)
class TrustRegion:
    """Bounded updates: Δx · min(1, radius/‖Δx‖) of another rule, sample by sample.

    Args:
        rule: rule that makes the updates.
        radius: largest ‖Δx‖ of a sample, over all its entries.
    """

    rule: Rule
    radius: float

    def __post_init__(self) -> None:
        require_rule(self.rule)
        require_number("radius", self.radius, above=0)

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        y, pullback = self.rule(function, x)

        def bounded(dy: Tensors) -> Tensors:
            dx = pack(as_tuple(pullback(dy)))
            return unpack(dx * (self.radius / lengths(dx)).clamp_max(1), x)

        return y, bounded


@dataclass(frozen=True)
class Blend:
    """Sum Δx = Σᵢ wᵢ·Δxᵢ of several rules, e.g. an inverse that sees small structures and a gradient that sees large ones.

    With y = A·x, `Blend((LinearInverse(solve), 1.0), (Gradient(), c))` and an error y* − y, Δx descends
    ½‖x − x*‖² + c/2·‖y − y*‖². Where one of the rules is scale-invariant, the sum is not.

    Args:
        *parts: pairs `(rule, weight)`, each weight finite and > 0.

    Raises:
        StateError: for no parts, or weights out of range.
    """

    parts: tuple[tuple[Rule, float], ...]

    def __init__(self, *parts: tuple[Rule, float]) -> None:
        if not parts or not all(isinstance(p, tuple) and len(p) == 2 and callable(p[0]) for p in parts):
            raise StateError(
                f"Blend{parts!r}: expected Blend((rule, weight), …), e.g. Blend((Gradient(), 10.0), (other, 1.0))"
            )
        for rule, weight in parts:
            require_rule(rule)
            require_number("weight", weight, above=0, way_out="or leave the rule out")
        object.__setattr__(self, "parts", parts)

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        y, pullbacks = (), []
        for rule, _ in self.parts:
            y, pullback = rule(function, x)
            pullbacks.append(pullback)

        def blended(dy: Tensors) -> Tensors:
            updates = [pullback(dy) for pullback in pullbacks]
            weights = [weight for _, weight in self.parts]
            return tuple(sum(w * t for w, t in zip(weights, own)) for own in zip(*updates))

        return y, blended


def _square(vectors: torch.Tensor) -> torch.Tensor:
    """‖v‖² of every sample, `(sample, 1)`."""
    return (vectors**2).sum(1, keepdim=True)


def _ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a/b, 0 where b = 0: samples that have converged exactly stay where they are."""
    return torch.where(b == 0, torch.zeros_like(a), a / torch.where(b == 0, torch.ones_like(b), b))
