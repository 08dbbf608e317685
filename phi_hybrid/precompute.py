"""Corrections computed before training, without the network (PRE)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from phi_hybrid.data import Trajectories
from phi_hybrid.errors import NonFiniteError, StateError
from phi_hybrid.unroll import all_finite, known_step


def precompute_corrections(
    physics: Callable, data: Trajectories, weight: float = 1.0, iterations: int = 100
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
    if not 0 <= weight < math.inf:
        raise StateError(f"weight = {weight!r}: must be a finite number ≥ 0")
    if not isinstance(iterations, int) or iterations < 1:
        raise StateError(f"iterations = {iterations!r}: must be an integer ≥ 1")
    if weight == 0:
        return data
    residual = _Residual(physics, data)
    true = [t.clone() for t in data.states]
    with torch.no_grad():
        unit = torch.sqrt(_mean_square(residual(true), data.scale)).clamp_min(1e-12)
    if not all_finite([unit]):
        raise NonFiniteError("one step of the physics from the data is NaN or infinite; reduce its time step", 0)
    count = sum(t.numel() for t in true)
    shifts = [torch.zeros_like(t).requires_grad_() for t in true]  # (v − u*)/σ
    optimizer = torch.optim.LBFGS(shifts, max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def shifted() -> list[torch.Tensor]:
        return [u + s * d for u, s, d in zip(true, data.scale, shifts)]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        corrections = _mean_square(residual(shifted()), data.scale) / unit**2
        # times the number of entries, so that the tolerances of L-BFGS are for one of them, however many there are
        loss = sum((d**2).sum() for d in shifts) + count * weight * corrections
        loss.backward()
        return loss

    optimizer.step(closure)
    found = tuple(v.detach() for v in shifted())
    if not all_finite(found):
        raise NonFiniteError("the pre-computed states became NaN or infinite; use a smaller weight", iterations)
    return replace(data, states=found)


class _Residual:
    """vₙ₊₁ − P(vₙ) for all n, as native tensors `(trajectory, time, …)`."""

    def __init__(self, physics: Callable, data: Trajectories) -> None:
        batch = data.whole()
        self.inputs, self.steps = batch.step_inputs, data.steps
        self.bound = batch.bind(known_step(physics))

    def __call__(self, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        after = [self.bound.step(*(v[:, n] for v in states), *self.inputs.at(n)) for n in range(self.steps)]
        return [v[:, 1:] - torch.stack(leaf, 1) for v, leaf in zip(states, zip(*after))]


def _mean_square(errors: Sequence[torch.Tensor], scale: Sequence[float]) -> torch.Tensor:
    return sum(((e / s) ** 2).sum() for e, s in zip(errors, scale)) / sum(e.numel() for e in errors)
