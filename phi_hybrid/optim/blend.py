"""Several rules for one piece, their updates added up."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from phi_hybrid.errors import StateError
from phi_hybrid.optim.rules import Function, Pullback, Rule
from phi_hybrid.optim.vectors import Tensors


@dataclass(frozen=True)
class Blend:
    """Δx = Σᵢ wᵢ·Δxᵢ of several rules, e.g. an inverse that sees small structures and a gradient that sees large ones.

    With y = A·x, `Blend((LinearInverse(solve), 1.0), (Gradient(), c))` and an error y* − y, Δx descends
    ½‖x − x*‖² + c/2·‖y − y*‖². Where one of the rules is scale-invariant, the sum is not.

    Args:
        *parts: `(rule, weight)`, each weight finite and > 0.

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
            if not (isfinite(weight) and weight > 0):
                raise StateError(
                    f"weight = {weight!r} of {rule}: must be a finite number > 0; leave the rule out for 0"
                )
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
