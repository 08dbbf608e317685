"""Scales of a hybrid solver's network, estimated from data."""

from __future__ import annotations

import torch

from phi_hybrid.bridge.layout import boundary_kinds
from phi_hybrid.data import Trajectories
from phi_hybrid.errors import StateError
from phi_hybrid.hybrid import HybridSolver


@torch.no_grad()
def estimate_scales(solver: HybridSolver, data: Trajectories, samples: int = 16) -> None:
    """Sets σ_in and σ_out per channel: root mean squares of what the network sees and of what it has to return.

    σ_out² = ⟨(u*ₙ₊₁ − P(u*ₙ))²⟩, the error of one uncorrected step.

    Args:
        solver: whose scales are set.
        data: reference trajectories `(trajectory, time, …)`.
        samples: number of times, equally spaced, at which all trajectories are looked at.

    Raises:
        StateError: if the data do not fit the solver.
    """
    if samples < 1:
        raise StateError(f"samples = {samples}: at least one time is needed")
    device = solver.output_scale.device
    starts = torch.linspace(0, data.steps - 1, min(samples, data.steps)).long().unique().tolist()
    sums: list[torch.Tensor] = []
    for start in starts:
        batch = data.cut(slice(None), start, 1).to(device)
        inputs = batch.step_inputs
        bound = batch.bind(solver)
        arguments = (*bound.state, *inputs.at(0))
        after = bound.step.physics(*arguments)
        # channels first, difference then: faces fixed by a boundary show its value in both
        reference = bound.step.to_channels(tuple(t[:, 0] for t in batch.targets))
        residual = reference - bound.step.to_channels(after)
        channels = bound.step.network_input(bound.step.seen(after, arguments)), residual
        squares = [(c**2).mean([0, *range(2, c.ndim)]) for c in channels]
        sums = [a + b for a, b in zip(sums, squares)] if sums else squares
    scales = (torch.sqrt(s / len(starts)) for s in sums)
    solver.set_scales(*scales, boundaries=boundary_kinds(data.state_layout))
