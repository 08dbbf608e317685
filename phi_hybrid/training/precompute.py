"""Corrections computed before training, without the network (PRE)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from phi_hybrid.bridge.checks import require_count, require_number
from phi_hybrid.bridge.numbers import square
from phi_hybrid.data import Trajectories, require_data
from phi_hybrid.errors import NonFiniteError
from phi_hybrid.steps import all_finite, known_step, require_step


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
    corrections = _Corrections(physics, data)
    with torch.no_grad():
        without = sum(float(_squares(piece, data.scale)) for piece in corrections.of(data.states))
    if not math.isfinite(without):
        raise NonFiniteError("one step of the physics from the data is NaN or infinite; reduce its time step", 0)
    factor = weight * sum(t.numel() for t in data.states) / max(without, 1e-12)
    shifts = [torch.zeros_like(t).requires_grad_() for t in data.states]  # (v − u*)/σ
    optimizer = torch.optim.LBFGS(shifts, max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def shifted() -> list[torch.Tensor]:
        return [u + s * d.detach() for u, s, d in zip(data.states, data.scale, shifts)]

    def closure() -> torch.Tensor:
        # sums, not means, so that the tolerances of L-BFGS are for one entry, however many there are
        states = [v.requires_grad_() for v in shifted()]
        loss = sum(square(d.detach()).sum() for d in shifts)
        for piece in corrections.of(states):
            penalty = factor * _squares(piece, data.scale)
            penalty.backward()
            loss = loss + penalty.detach()
        for shift, state, s in zip(shifts, states, data.scale):
            shift.grad = 2 * shift.detach() + s * state.grad
        return loss

    optimizer.step(closure)
    found = tuple(shifted())
    if not all_finite(found):
        raise NonFiniteError("the pre-computed states became NaN or infinite; use a smaller weight", iterations)
    return replace(data, states=found)


PIECE = 512
"""Steps that are computed at once, which limits the memory."""


class _Corrections:
    """vₙ₊₁ − P(vₙ) for all n of all trajectories, piece by piece."""

    def __init__(self, physics: Callable, data: Trajectories) -> None:
        windows = data.windows(1)
        self.pieces = []
        for start in range(0, len(windows), PIECE):
            chosen = range(start, min(start + PIECE, len(windows)))
            batch = windows.collate([windows[n] for n in chosen])
            self.pieces.append((slice(chosen.start, chosen.stop), batch.bind(known_step(physics)), batch.step_inputs))

    def of(self, states: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        """Native tensors `(step, …)`, the steps of one trajectory after those of another."""
        for chosen, bound, inputs in self.pieces:
            before, after = ([v[:, part].flatten(0, 1)[chosen] for v in states] for part in (slice(-1), slice(1, None)))
            yield [v - p for v, p in zip(after, bound.step(*before, *inputs.at(0)))]


def _squares(errors: Sequence[torch.Tensor], scale: Sequence[float]) -> torch.Tensor:
    return sum(square(e / s).sum() for e, s in zip(errors, scale))
