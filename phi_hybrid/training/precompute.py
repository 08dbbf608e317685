"""Corrections computed before training, without the network (PRE)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from phi_hybrid.bridge.checks import require_count, require_number
from phi_hybrid.bridge.numbers import square
from phi_hybrid.data import Trajectories, require_data
from phi_hybrid.errors import NonFiniteError
from phi_hybrid.steps import NativeStep, all_finite, known_step, require_step


def precompute_corrections(
    physics: Callable[..., Any], data: Trajectories, weight: float = 1e-3, iterations: int = 100
) -> Trajectories:
    """States near the reference that the solver can follow with the smallest corrections, to train on with one step.

    Minimises 1/N Σₙ ‖(vₙ − u*ₙ)/σ‖² + weight · 1/N Σₙ ‖(vₙ₊₁ − P(vₙ))/σ_c‖² over all states v of every trajectory, with
    σ the standard deviation of the data and σ_c the root mean square of u*ₙ₊₁ − P(u*ₙ). The corrections cₙ = vₙ₊₁ − P(vₙ)
    are what `Unrolled(1)` then learns. This is the pre-computed variant of Um et al. 2020 (arXiv 2007.00016), with a
    penalty instead of a constraint. `weight=0` gives the data back.

    Args:
        physics: P, PhiFlow function or captured block `state, *inputs -> state`.
        data: reference trajectories `(trajectory, time, …)`.
        weight: of small corrections against states near the reference, ≥ 0.
        iterations: of L-BFGS, which come nearer to the minimum the more there are; each takes about one step of P from
            all states and its gradient.

    Raises:
        NonFiniteError: if the physics or the optimisation fails.
        StateError: for settings out of range, or data that do not fit the physics.
    """
    require_step("physics", physics)
    require_data("data", data)
    require_number("weight", weight, least=0)
    require_count("iterations", iterations)
    if weight == 0:
        return data
    pieces = list(_pieces(physics, data))
    with torch.no_grad():
        without = sum(float(_squares(p.corrections(p.ends(data.states)), data.scale)) for p in pieces)
    if not math.isfinite(without):
        raise NonFiniteError("one step of the physics from the data is NaN or infinite; reduce its time step", 0)
    factor = weight * sum(t.numel() for t in data.states) / max(without, 1e-12)
    shifts = [torch.zeros_like(t).requires_grad_() for t in data.states]  # (v − u*)/σ
    optimizer = torch.optim.LBFGS(shifts, max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def shifted() -> list[torch.Tensor]:
        return [u + s * d.detach() for u, s, d in zip(data.states, data.scale, shifts)]

    def closure() -> torch.Tensor:
        # sums, not means, so that the tolerances of L-BFGS are for one entry, however many there are
        states, loss = shifted(), sum(square(d.detach()).sum() for d in shifts)
        derivatives = [torch.zeros_like(v) for v in states]
        for piece in pieces:
            ends = [v.requires_grad_() for v in piece.ends(states)]
            penalty = factor * _squares(piece.corrections(ends), data.scale)
            piece.add(torch.autograd.grad(penalty, ends, materialize_grads=True), derivatives)
            loss = loss + penalty.detach()
        for shift, derivative, s in zip(shifts, derivatives, data.scale):
            shift.grad = 2 * shift.detach() + s * derivative
        return loss

    optimizer.step(closure)
    found = tuple(shifted())
    if not all_finite(found):
        raise NonFiniteError("the pre-computed states became NaN or infinite; use a smaller weight", iterations)
    return replace(data, states=found, checked=True)


PIECE = 512
"""Steps that are computed at once, which limits the memory."""


@dataclass(frozen=True)
class _Piece:
    """Some of the steps n of all trajectories, to be computed at once."""

    trajectory: torch.Tensor
    """Of each step, `(step,)`."""
    time: torch.Tensor
    """At which each step begins."""
    step: NativeStep
    """P."""
    inputs: tuple[torch.Tensor, ...]
    """Of P, `(step, …)`."""

    def ends(self, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies of the states before all steps and then of those after them, `(step, …)`, of `(trajectory, time, …)`."""
        return [v[self.trajectory, time] for time in (self.time, self.time + 1) for v in states]

    def corrections(self, ends: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """vₙ₊₁ − P(vₙ), `(step, …)`."""
        before, after = ends[: len(ends) // 2], ends[len(ends) // 2 :]
        return [v - p for v, p in zip(after, self.step(*before, *self.inputs))]

    def add(self, derivatives: Sequence[torch.Tensor], total: Sequence[torch.Tensor]) -> None:
        """Adds derivatives by `ends` to those by the states, each of which begins and ends one step at most."""
        for number, derivative in enumerate(derivatives):
            later, part = divmod(number, len(total))
            total[part][self.trajectory, self.time + later] += derivative


def _pieces(physics: Callable, data: Trajectories) -> Iterator[_Piece]:
    windows = data.windows(1)
    for numbers in torch.arange(len(windows)).split(PIECE):
        batch = windows.gather(numbers)
        trajectory, time = numbers // data.steps, numbers % data.steps
        yield _Piece(trajectory, time, batch.bind(known_step(physics)).step, batch.step_inputs.at(0))


def _squares(errors: Sequence[torch.Tensor], scale: Sequence[float]) -> torch.Tensor:
    return sum(square(e / s).sum() for e, s in zip(errors, scale))
