"""Scales of a hybrid solver's network, estimated from data."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from phi_hybrid.bridge.checks import require_count, require_instance
from phi_hybrid.data import Mixture, Stream, Trajectories, require_sets, sets_of
from phi_hybrid.data.pieces import rounding
from phi_hybrid.errors import NonFiniteError
from phi_hybrid.hybrid import HybridSolver, HybridStep
from phi_hybrid.linear_solve import checked_solves
from phi_hybrid.steps import all_finite

CONSTANT = 1e-6
"""Deviation, relative to the root mean square, up to which a channel counts as constant; roundings are below it."""


@torch.no_grad()
def estimate_scales(
    solver: HybridSolver, data: Trajectories | Mixture | Stream, samples: int = 16, *, centred: bool = False
) -> None:
    """Sets σ_in and σ_out per channel, so that the network sees and returns numbers of order one.

    Every component of a state or input is a channel, with scales of its own. σ_in is the root mean square of what the
    network sees; components of a vector field that are zero up to rounding have the σ_in of the largest one. σ_out is such
    that an output of ±1 at random changes the state as much as it is wrong: with additive coupling
    σ_out² = ⟨(u*ₙ₊₁ − P(u*ₙ))²⟩, the error of one uncorrected step; with others this is divided by the response of the step
    to its output.

    Args:
        solver: whose scales are set.
        data: reference trajectories `(trajectory, time, …)`; the sets of a `Mixture` count as often as they are drawn.
        samples: number of times, equally spaced, at which all trajectories of a set are looked at.
        centred: whether the network sees (x − μ_in)/σ_in with the mean μ_in and the standard deviation σ_in of what it sees,
            for what varies little about a large mean, such as a temperature or a density. What does not vary keeps its root
            mean square for σ_in. By default μ_in = 0, so that what is zero stays zero, and reflected states stay reflected.

    Raises:
        StateError: if the data do not fit the solver.
        NonFiniteError: if the data, or one step of the physics from them, are not finite.
        SolveError: if a linear solve of the physics fails.
    """
    require_instance("solver", solver, HybridSolver, "the HybridSolver whose scales are set")
    require_sets("data", data)
    require_count("samples", samples)
    require_instance("centred", centred, bool, "True or False")
    if isinstance(solver.physics, HybridSolver) and not solver.physics.scaled:
        estimate_scales(solver.physics, data, samples, centred=centred)
    shares = data.shares(1) if isinstance(data, Mixture) else {"": 1.0}
    means = [
        [share * mean for mean in _means(solver, part, samples, f"set {name!r}" if name else "the data")]
        for (name, part), share in zip(sets_of(data).items(), shares.values())
    ]
    seen, needed, mean, variation = (sum(parts[1:], parts[0]) for parts in zip(*means))
    scale, boundaries = seen.sqrt(), data.state_layout.boundary_kinds
    first = next(iter(sets_of(data).values()))
    smallest = max(map(rounding, first.states))
    for vector in _vectors(solver, first):
        largest = scale[vector].max()
        scale[vector] = torch.where(scale[vector] > smallest * largest, scale[vector], largest)
    if not centred:
        solver.set_scales(scale, needed.sqrt(), boundaries)
        return
    deviation = (variation - mean**2).clamp_min(0).sqrt()
    varies = deviation > CONSTANT * scale
    solver.set_scales(torch.where(varies, deviation.to(scale), scale), needed.sqrt(), boundaries, mean)


def _vectors(solver: HybridSolver, data: Trajectories) -> list[slice]:
    """Channels of each vector field that the network sees."""
    return data.cut(slice(None), 0, 1).to(solver.output_scale.device).bind(solver).step.vectors


@checked_solves()
def _means(solver: HybridSolver, data: Trajectories, samples: int, name: str) -> list[torch.Tensor]:
    """Means `(channel,)`: squares of what the network sees, and of what it has to return; what it sees, and its squares."""
    starts = torch.linspace(0, data.steps - 1, min(samples, data.steps)).long().unique().tolist()
    sums: list[torch.Tensor] = []
    for start in starts:
        batch = data.cut(slice(None), start, 1).to(solver.output_scale.device)
        bound = batch.bind(solver)
        step, arguments = bound.step, (*bound.state, *batch.step_inputs.at(0))
        uncorrected, _, seen = step.respond(arguments, step.no_output())
        # channels first, difference then: faces fixed by a boundary show its value in both
        target = step.to_channels(tuple(t[:, 0] for t in batch.targets))
        error = [t - u for t, u in zip(target, step.to_channels(uncorrected))]
        if not all_finite((*arguments, *batch.targets)):
            raise NonFiniteError(
                f"{name} holds NaN or infinite values at step {start} or {start + 1}, so no scales can be estimated: "
                "generate it again, or leave out these trajectories, data[:n]",
                start,
            )
        if not all_finite(error):
            raise NonFiniteError(
                f"one step of the physics from step {start} of {name} is NaN or infinite, so no scales can be estimated: "
                "the physics is the cause, not the network. Reduce its time step, or look at its inputs",
                start,
            )
        needed = _needed_outputs(step, arguments, torch.cat([*map(_mean_square, error)]))
        found = [_mean_square(seen), needed, *_moments(seen)]
        sums = [a + b for a, b in zip(sums, found)] if sums else found
    return [s / len(starts) for s in sums]


def _needed_outputs(step: HybridStep, arguments: Sequence[torch.Tensor], error: torch.Tensor) -> torch.Tensor:
    """Mean square per output channel that changes the state by `error`, its mean square per state channel.

    With J the Jacobian of the new state by the output, ‖J_kc‖² = ⟨‖J_kcᵀ·w‖²⟩ for random signs w in state channel k. The
    faces that cells own are counted, so that additive coupling responds with exactly 1.
    """
    generator = torch.Generator().manual_seed(0)
    responses = []
    with torch.enable_grad():
        output = step.no_output().requires_grad_()
        for part in step.to_channels(step.respond(arguments, output).state):
            for channel in range(part.shape[1]):
                random = torch.randint(0, 2, part[:, channel].shape, generator=generator)
                signs = torch.zeros_like(part)
                signs[:, channel] = (2 * random - 1).to(part)
                back = None
                if part.requires_grad:  # parts that are not corrected do not
                    (back,) = torch.autograd.grad(part, output, signs, retain_graph=True, allow_unused=True)
                responses.append(_mean_square(torch.zeros_like(output) if back is None else back))
    owned = step.owned_share().to(error).clamp_min(1e-12)
    response = torch.stack(responses) / owned[:, None]  # (state channel, output channel)
    total = response.sum(0)
    needed = (response * error[:, None]).sum(0) / total**2
    return torch.where(total > 0, needed, torch.zeros_like(total))


def _mean_square(channels: torch.Tensor) -> torch.Tensor:
    exact = not channels.is_floating_point()  # whole numbers have no mean in torch
    return (channels.float() if exact else channels).square().mean([0, *range(2, channels.ndim)])


def _moments(channels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and mean square `(channel,)` in float64, so that their difference is right where the mean is large."""
    axes = [0, *range(2, channels.ndim)]
    mean = channels.mean(axes, keepdim=True, dtype=torch.float64)
    return mean.flatten(), _mean_square(channels - mean.to(channels)).double() + mean.flatten() ** 2
