"""Problems of rules_map.py: y = P(x) with dials for condition number, outputs and cost, samples, and a network y* ↦ x."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest

import torch
from half_inverse_gradients import perceptron
from phi.field import Field
from phi.math import batch, channel, precision, spatial, wrap, zeros

import phi_hybrid as ph
from phi_hybrid.optim import GaussNewton, LinearInverse, Rule, TrustRegion
from phi_hybrid.pde import burgers, heat
from phi_hybrid.pde.oscillators import Oscillators

TRAINING, HELD_OUT = 4096, 256

# --- problems ---

Physics = Callable[[torch.Tensor], torch.Tensor]
"""x `(sample, n)` ↦ y `(sample, n)`."""


@dataclass(frozen=True)
class Problem:
    """One square of the map; steps are those of the physics."""

    family: str
    condition: float
    outputs: int
    steps: int

    def __str__(self) -> str:
        return f"{self.family} condition={self.condition:.0e} outputs={self.outputs} steps={self.steps}"


SIZES = {
    "heat": [(16, 1), (4, 1), (64, 1), (16, 8)],
    "oscillators": [(4, 1), (16, 1), (4, 4)],
    "burgers": [(16, 1), (64, 1), (16, 4)],
}
"""Family → outputs and steps."""


def problems(families: Sequence[str]) -> list[Problem]:
    """All of these families, the first size of each first; two oscillators do not get down to a condition number of 1."""
    rounds = zip_longest(*([(family, *size) for size in SIZES[family]] for family in families))
    sizes = [size for of_each in rounds for size in of_each if size is not None]
    dial = 1.0, 1e1, 1e2, 1e3, 1e4
    return [Problem(f, c, *size) for f, *size in sizes for c in dial if (f, c) != ("oscillators", 1.0)]


@dataclass(frozen=True)
class Task:
    """Network y* ↦ x, physics, the rule that inverts them, and samples: first those of the training, then held-out ones."""

    network: torch.nn.Module
    physics: Physics
    inverse: Rule
    truth: torch.Tensor
    """x*, `(sample, n)`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "observed", self.physics(self.truth))
        object.__setattr__(self, "scale", self.observed.std(0))

    def guess(self, seen: torch.Tensor) -> torch.Tensor:
        """x of the network, which sees every entry of y* in units of its own spread."""
        return self.network(seen / self.scale)

    @torch.no_grad()
    def errors(self) -> dict[str, float]:
        """‖P(x) − y*‖/‖y*‖ and ‖x − x*‖/‖x*‖, over all held-out samples together."""
        truth, seen = self.truth[TRAINING:], self.observed[TRAINING:]
        x = self.guess(seen)
        return {
            "y": float((self.physics(x) - seen).norm() / seen.norm()),
            "x": float((x - truth).norm() / truth.norm()),
        }


def task_of(problem: Problem, seed: int) -> Task:
    """The task with a network of two hidden layers of 64."""
    physics, inverse = physics_of(problem)
    torch.manual_seed(seed)
    network = torch.nn.Sequential(*perceptron([problem.outputs, 64, 64, problem.outputs], torch.nn.Tanh)).double()
    truth = torch.randn(TRAINING + HELD_OUT, problem.outputs, dtype=torch.float64)
    return Task(network, physics, inverse, truth if problem.family == "oscillators" else waves(truth))


def waves(noise: torch.Tensor) -> torch.Tensor:
    """Noise with amplitudes like 1/(1 + k) of its modes, of standard deviation ½."""
    modes = torch.fft.rfft(noise) / (1 + torch.arange(noise.shape[1] // 2 + 1))
    smooth = torch.fft.irfft(modes, noise.shape[1])
    return smooth / (2 * smooth.std())


# --- physics ---


def on_line(step: Callable, problem: Problem) -> Physics:
    """Captured steps on a periodic line of length 2π, as a function of its values."""

    def whole(u: Field) -> Field:
        for _ in range(problem.steps):
            u = step(u)
        return u

    with precision(64):
        values = wrap(torch.zeros(2, problem.outputs, 1).double(), batch("sample"), spatial("x"), channel(vector="x"))
        bound = ph.capture(whole).bind(burgers.line(problem.outputs).with_values(values))
    return lambda x: bound.native(x[..., None])[0][..., 0]


def damping(problem: Problem) -> float:
    """νT by which the finest mode, k = n/2, loses a factor of the condition number to the mean."""
    return math.log(problem.condition) / (problem.outputs / 2) ** 2


def diffusion(problem: Problem) -> tuple[Physics, Rule]:
    """The heat equation, and itself backwards."""
    ways = [on_line(heat.heat_step(1 / problem.steps, sign * damping(problem)), problem) for sign in (1, -1)]
    return ways[0], LinearInverse(ways[1])


def advection(problem: Problem) -> tuple[Physics, Rule]:
    """Burgers' equation with exact diffusion, over the time in which waves of ½ move a third of a cell.

    Half of the usual ‖x*‖ is the longest update: the line along which Gauss–Newton looks ends somewhere.
    """
    duration = 4 / problem.outputs
    exact = lambda u, viscosity, dt: heat.heat_step(dt, viscosity)(u)  # noqa: E731
    step = burgers.burgers_step(duration / problem.steps, damping(problem) / duration, diffusion=exact)
    return on_line(lambda u: step(u, 0 * u), problem), TrustRegion(GaussNewton(), math.sqrt(problem.outputs) / 4)


def control(problem: Problem) -> tuple[Physics, Rule]:
    """Pairs of oscillators from rest, each under four forces of duration 1.5; condition numbers are about 1.6/α."""
    pair = Oscillators(2, 1.6 / problem.condition, dt=1.5 / problem.steps)
    with precision(64):
        at_rest = 0 * pair.random_states(2, 0), zeros(batch(time=4, trajectory=2))
        bound = ph.capture(pair.controlled).bind(*at_rest)

    def physics(x: torch.Tensor) -> torch.Tensor:
        forces = x.reshape(-1, 4).T.repeat_interleave(problem.steps, 0)
        return bound.native(x.new_zeros(forces.shape[1], 2, 2), forces)[0].reshape(x.shape)

    backwards = torch.linalg.inv(physics(torch.eye(4, dtype=torch.float64)))
    return physics, LinearInverse(lambda dy: (dy.reshape(-1, 4) @ backwards).reshape(dy.shape))


@cache
def physics_of(problem: Problem) -> tuple[Physics, Rule]:
    """P and the rule that inverts it, captured once."""
    return {"heat": diffusion, "burgers": advection, "oscillators": control}[problem.family](problem)
