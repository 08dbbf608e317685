"""Growth of gradients through many steps, backwards and forwards."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from phi_hybrid.sensitivity.differences import Function, pull_back, push_forward

USEFUL = 1e-3, 1e3
"""Range of the norm of a gradient, beyond which steps hardly take part in training, or dominate it."""
DIGITS = 1.2e-7
"""Relative rounding error of float32: smaller contributions are lost, and 1/`DIGITS` times larger errors are all there is."""
VANISHING, STEADY, EXPLODING, NOT_FINITE = "vanishing", "steady", "exploding", "not finite"


@dataclass(frozen=True)
class Curve:
    """Norms of one vector per probe, pushed through 0, 1, … steps, each of norm 1 at first, `(probe, step + 1)`.

    The largest of the probes stands for the norm of the product of Jacobians, of which it is a lower bound.
    """

    norms: torch.Tensor

    @property
    def largest(self) -> list[float]:
        """Norm of the largest probe after every number of steps; NaN where one is not finite."""
        return torch.where(self.norms.isfinite().all(0), self.norms.amax(0), math.nan).tolist()

    @property
    def rate(self) -> float:
        """Factor per step, the mean over the second half of the steps before it is zero or not finite; e^λ for a Lyapunov exponent λ."""
        known = list(itertools.takewhile(lambda g: 0 < g < math.inf, self.largest))
        first, last = len(known) // 2 if len(known) > 2 else 0, len(known) - 1
        if last <= first:
            return 0.0 if 0 in self.largest else 1.0
        return (known[last] / known[first]) ** (1 / (last - first))

    @property
    def verdict(self) -> str:
        """`VANISHING`, `STEADY`, `EXPLODING` or `NOT_FINITE`, whichever first holds."""
        for norm in self.largest:
            if not math.isfinite(norm):
                return NOT_FINITE
            if norm < USEFUL[0]:
                return VANISHING
            if norm > USEFUL[1]:
                return EXPLODING
        return STEADY

    @property
    def horizon(self) -> int | None:
        """Steps after which the norm leaves `USEFUL` or is not finite; `None` if it does not."""
        low, up = USEFUL
        return next((n for n, g in enumerate(self.largest) if not low <= g <= up), None)

    @property
    def digits_lost_after(self) -> float:
        """Steps after which float32 has no digit left, from the rate where it is after the last step; may be infinite."""
        for n, norm in enumerate(self.largest):
            if not DIGITS <= norm <= 1 / DIGITS:
                return n
        last, rate = self.largest[-1], self.rate
        if abs(math.log(rate)) < 1e-3:
            return math.inf
        return len(self.largest) - 1 + math.log((DIGITS if rate < 1 else 1 / DIGITS) / last) / math.log(rate)


@dataclass(frozen=True)
class Growth:
    """Growth of gradients along one trajectory.

    Attributes:
        reverse: of cotangents that come back from the last state; the first probe is the last state itself, the gradient of
            its energy ½‖u‖², the others are random.
        forward: of tangents at the first state, all random; `None` where torch has no forward mode.
        not_finite: number of the step, from 1, whose state is not finite, or whose derivative is not for a finite state;
            `None` if there is none.
        finite_state: whether all states are finite.
    """

    reverse: Curve
    forward: Curve | None
    not_finite: int | None
    finite_state: bool


class Probes(NamedTuple):
    """Vectors of norm 1, `(probe, coordinate)`, to be pushed through the steps."""

    cotangents: torch.Tensor
    tangents: torch.Tensor


def growth(step: Callable[[int], Function], states: Sequence[torch.Tensor], probes: Probes, forward: bool) -> Growth:
    """Pushes probes through all steps.

    Args:
        step: `step(n)` is the step from state n to n + 1 as a function of coordinates.
        states: coordinates of the states, the last one may be non-finite.
        probes: directions at the last finite state and at the first one.
        forward: whether there is a forward mode.
    """
    finite_state = bool(states[-1].isfinite().all())
    states = states if finite_state else states[:-1]
    steps = len(states) - 1
    reverse, bad = [probes.cotangents], None if finite_state else steps + 1
    for n in reversed(range(steps)):
        reverse.append(pull_back(step(n), states[n], reverse[-1]))
        if not reverse[-1].norm(dim=1).isfinite().all():
            bad = bad or n + 1
            break
    tangents = [probes.tangents]
    for n in range(steps if forward else 0):
        tangents.append(torch.stack([push_forward(step(n), states[n], v) for v in tangents[-1]]))
        if not tangents[-1].norm(dim=1).isfinite().all():
            bad = bad or n + 1
            break
    return Growth(_curve(reverse), _curve(tangents) if forward else None, bad, finite_state)


def _curve(vectors: Sequence[torch.Tensor]) -> Curve:
    return Curve(torch.stack([v.norm(dim=1) for v in vectors], 1))
