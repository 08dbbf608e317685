"""Noise on the states that a solver is trained from, the baseline against training through the solver.

The perturbed state uₙ + εₙ is what the next step starts from. The network learns to undo the perturbation where the
target stays clean, and to ignore it where the target is shifted along.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from phi_hybrid.bridge.checks import require, require_callable, require_count, require_number
from phi_hybrid.bridge.layout import TreeLayout, tuple_of
from phi_hybrid.bridge.numbers import square
from phi_hybrid.data import Batch
from phi_hybrid.errors import StateError
from phi_hybrid.steps.plain import known_step, require_step

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Ramp:
    """A factor that goes linearly from `first` to `last` over a number of updates, and stays there.

    Args:
        first: factor at update 0.
        last: factor from update `updates` on.
        updates: length of the ramp.
    """

    first: float
    last: float
    updates: int

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            require_number(name, getattr(self, name))
        require_count("updates", self.updates, 0)

    def scaled(self, budget: float) -> Ramp:
        """The same over so many times the updates."""
        return replace(self, updates=round(budget * self.updates))

    def __call__(self, update: int) -> float:
        done = 1.0 if update >= self.updates else update / self.updates
        return self.first + (self.last - self.first) * done


@dataclass(frozen=True)
class Noise:
    """Gaussian noise ε of standard deviation σ on the initial state, or on every iterate of an unrolled rollout.

    Of complex states, real and imaginary part are perturbed alike, with σ/√2 each.

    Args:
        sigma: σ ≥ 0; 0 is exactly no noise, and draws nothing.
        where: `'initial'` perturbs the state that the window starts from (Kohl et al. 2023, jax-cfd), `'every_step'` the
            input of every solver step.
        target: `'clean'` leaves the reference as it is, so that the solver has to return to it; `'adjusted'` shifts it by
            the noise of the step's input, so that a clean step is learned from noisy states (Sanchez-Gonzalez et al.
            2020, arXiv 2002.09405; γ = 1 and γ = 0 of Pfaff et al. 2021).
        random_walk: for states that are a tuple of K consecutive states, oldest first: noise accumulates along the
            history with σ/√K per step, so that it has σ on the newest (Sanchez-Gonzalez et al. 2020). Adjusted targets
            move with the entry they continue.
        relative: whether σ is in units of the data's standard deviation, one per state tensor; else in those of the state.
        truncated: noise beyond this many σ is drawn again, e.g. 2 (the deviation is then smaller than σ: 0.88 σ for 2).
            No limit by default.
        project: PhiFlow function or captured block `state -> state` that makes a state admissible, e.g.
            `lambda v: fluid.make_incompressible(v)[0]`: the noise becomes project(u + ε) − project(u), u the state that the
            window starts from, scaled back to the root mean square of ε. For linear projections.
        schedule: factor on σ as a function of the update, e.g. `Ramp(1, 0, 1000)`; called by the `Trainer`.

    Raises:
        StateError: for values out of range.
    """

    sigma: float
    where: Literal["initial", "every_step"] = "initial"
    target: Literal["clean", "adjusted"] = "clean"
    random_walk: bool = False
    relative: bool = True
    truncated: float | None = None
    project: Callable[..., Any] | None = None
    schedule: Callable[[int], float] | None = None

    def __post_init__(self) -> None:
        require_number("sigma", self.sigma, least=0)
        require(self.where in ("initial", "every_step"), "where", self.where, "'initial' or 'every_step'")
        require(self.target in ("clean", "adjusted"), "target", self.target, "'clean' or 'adjusted'")
        if self.truncated is not None:
            require_number("truncated", self.truncated, above=0, way_out="a multiple of sigma, e.g. 2")
        if self.project is not None:
            require_step("project", self.project)
        if self.schedule is not None:
            require_callable("schedule", self.schedule, "a function of the update, e.g. Ramp(1, 0, 1000)")
        if self.random_walk and self.where != "initial":
            raise StateError(f"random_walk is noise on an input history, where = {self.where!r}: use where='initial'")

    def at(self, update: int) -> Noise:
        """The noise of one update, its schedule applied."""
        if self.schedule is None:
            return self
        factor = self.schedule(update)
        if not 0 <= factor < math.inf:
            raise StateError(f"schedule = {factor} at update {update}: a factor on sigma is a finite number ≥ 0")
        return replace(self, sigma=self.sigma * float(factor), schedule=None)

    def scaled(self, budget: float) -> Noise:
        """For so many times the updates: a `Ramp` is shortened or stretched, other schedules are left alone."""
        return replace(self, schedule=self.schedule.scaled(budget)) if isinstance(self.schedule, Ramp) else self

    def draw(self, batch: Batch) -> Tensors:
        """One sample of ε for the states of a batch, native tensors `(trajectory, …)`, from torch's CPU generator.

        Raises:
            StateError: for `random_walk` on a state that is no history.
        """
        sigmas = [self.sigma * (s if self.relative else 1.0) for s in batch.scale]
        noise = tuple(s * self._normal(u) for s, u in zip(sigmas, batch.initial))
        if self.random_walk:
            noise = _walk(noise, batch)
        return noise if self.project is None else self._admissible(noise, batch)

    def draw_for(self, batch: Batch, steps: int) -> list[Tensors | None]:
        """Noise on the input of each step."""
        return [self.draw(batch) if n == 0 or self.where == "every_step" else None for n in range(steps)]

    def shift(self, noise: Tensors, batch: Batch) -> Tensors:
        """Displacement of the state after a step, where that before it was moved by `noise`."""
        if not self.random_walk:
            return noise
        per_state = len(noise) // len(batch.state_layout.children)
        return (*noise[per_state:], *noise[-per_state:])

    @torch.no_grad()
    def _admissible(self, noise: Tensors, batch: Batch) -> Tensors:
        noisy = tuple(u + e for u, e in zip(batch.initial, noise))
        step = known_step(self.project).native_for(tuple_of(batch.layout), noisy)
        projected = [a - b for a, b in zip(step(*noisy), step(*batch.initial))]
        # one factor per trajectory: scaled component by component it would not be admissible any more
        before, after = (_squares(n, batch.scale) for n in (noise, projected))
        ratio = (before / after.clamp_min(torch.finfo(after.dtype).tiny)).sqrt()
        return tuple(e * ratio.view(-1, *[1] * (e.ndim - 1)) for e in projected)

    def _normal(self, like: torch.Tensor) -> torch.Tensor:
        if like.is_complex():  # real and imaginary part share the variance
            parts = self._normal(torch.view_as_real(like)) / math.sqrt(2)
            return torch.view_as_complex(parts)
        shape, dtype = like.shape, like.dtype
        if not dtype.is_floating_point:
            return torch.zeros_like(like)
        values = torch.empty(shape, dtype=dtype)
        if self.truncated is None:
            values.normal_()
        else:
            torch.nn.init.trunc_normal_(values, a=-self.truncated, b=self.truncated)
        return values.to(like.device, non_blocking=True)


def _walk(noise: Tensors, batch: Batch) -> Tensors:
    """Accumulates independent increments along the history."""
    layout = batch.state_layout
    children = layout.children if isinstance(layout, TreeLayout) and layout.keys is None else ()
    if len(children) < 2 or any(c != children[0] for c in children):
        raise StateError(
            "random_walk needs a state that is a tuple of consecutive states of one kind, oldest first, e.g. "
            "(u_before, u); for a single state use random_walk=False"
        )
    count, per_state, noise = len(children), len(children[0].leaves), list(noise)
    for n in range(per_state, len(noise)):
        noise[n] = noise[n - per_state] + noise[n]
    return tuple(e / math.sqrt(count) for e in noise)


def _squares(noise: Tensors, scale: tuple[float, ...]) -> torch.Tensor:
    """Σ |ε/σ|² over all tensors, `(trajectory,)`."""
    return sum(square(e / s).flatten(1).sum(1) for e, s in zip(noise, scale))
