"""What is controlled: Burgers' equation by a force everywhere, and smoke by forces in a band along the walls.

A case has physics `(state, force, target, remaining) -> state`, plain PhiFlow. It ignores target and remaining time, which
are there for the controller to see. Its state begins with the force applied last, and ends with what has a target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from phi import math
from phi.field import CenteredGrid, Field, StaggeredGrid, resample
from phi.geom import Box
from phi.math import Tensor, batch, channel, spatial, wrap
from phi.math.extrapolation import ZERO_GRADIENT
from phi.physics import advect, fluid
from torch.nn.functional import avg_pool2d

import phi_hybrid as ph
from phi_hybrid.pde import burgers

State = dict[str, Field]


@dataclass(frozen=True)
class Budget:
    """Sizes of data and training."""

    pairs: int
    supervised: int
    """Updates of 128 samples each."""
    through_solver: int
    """Updates, from the supervised controller on."""
    model_free: int
    """Steps of an environment."""
    optimised: int
    """Iterations for the lower bound."""

    def times(self, factor: float) -> Budget:
        return Budget(*(max(1, round(factor * n)) for n in vars(self).values()))


@dataclass(frozen=True)
class PPO:
    """Settings of proximal policy optimisation, chosen by hand on other seeds."""

    environments: int
    rate: float
    batch: int
    epochs: int
    log_std: float
    reward_scale: float
    gamma: float = 0.99


@dataclass(frozen=True)
class Burgers:
    """∂u/∂t + u ∂u/∂x = ν ∂²u/∂x² + f on a periodic line, as in Holl et al. 2020 (arXiv 2001.07457).

    Two bumps run into each other; in the data the force is a third one, constant in time. Actions correct the force that
    would do without physics, (u* − u)/remaining time.
    """

    cells: int = 32
    steps: int = 32
    dt: float = 0.03
    viscosity: float = 0.003
    effort_weight: float = 0.1
    front: tuple[float, ...] = ()
    supervised_rate: float = 5e-3
    rate: float = 2e-3
    batch: int = 16
    budget: Budget = Budget(500, 3000, 100, 700_000, 150)
    rl: PPO = PPO(environments=128, rate=1e-3, batch=512, epochs=10, log_std=-1.5, reward_scale=50)
    dims: int = 1
    goal: str = "velocity"
    actions: int = 32
    observations: int = 65
    quick: float = 0.2
    floor: float = 0.1
    """Least share of time by which actions are divided, so that they grow towards the end."""

    softness: float = 1e-3
    """Distance below which its square counts."""

    @property
    def exploring(self) -> Burgers:
        """What is left to trial and error: the noise of actions had better not grow."""
        return replace(self, floor=1.0)

    @property
    def smooth(self) -> Burgers:
        """What is left to L-BFGS, which gets stuck at kinks."""
        return replace(self, floor=1.0, softness=1e-2)

    @property
    def cell_volume(self) -> float:
        return 1 / self.cells

    def physics(self) -> ph.PhysicsBlock:
        flow = burgers.burgers_step(self.dt, self.viscosity)

        def step(state: State, force: Field, target: Field, remaining: Tensor) -> State:
            return {"force": force, "velocity": flow(state["velocity"], force)}

        return ph.capture(step)

    def samples(self, count: int, seed: int) -> tuple[State, Field]:
        """Initial states and forces, `(trajectory, x, vector)`."""
        rng, line = np.random.default_rng(seed), burgers.line(self.cells, 1.0)
        x = (np.arange(self.cells) + 0.5) / self.cells

        def bump(*limits: tuple[float, float]) -> np.ndarray:
            amplitude, centre, width = (rng.uniform(*pair, (count, 1)) for pair in limits)
            return amplitude * np.exp(-0.5 * (((x - centre + 0.5) % 1 - 0.5) / width) ** 2)

        def field(values: np.ndarray) -> Field:
            dims = batch("trajectory"), spatial("x"), channel(vector="x")
            return line.with_values(wrap(torch.as_tensor(values[..., None], dtype=torch.float32), *dims))

        u = bump((0, 3), (0.2, 0.4), (0.05, 0.15)) + bump((-3, 0), (0.6, 0.8), (0.05, 0.15))
        force = field(bump((-1.6, 1.6), (0.4, 0.6), (0.1, 0.4)))
        return {"force": 0 * force, "velocity": field(u)}, force

    def usable(self, target: torch.Tensor) -> torch.Tensor:
        """Which trajectories to keep."""
        return torch.ones(len(target), dtype=torch.bool)

    def observe(self, channels: torch.Tensor) -> torch.Tensor:
        """u, u* and the share of time that remains."""
        _, u, target, remaining = channels.unbind(1)
        return torch.cat([u, target, remaining[:, :1]], 1)

    def force(self, channels: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        _, u, target, remaining = channels.unbind(1)
        straight = (target - u) / (remaining * self.steps * self.dt)
        return (straight + action / remaining.clamp(min=self.floor))[:, None]

    def distance(self, u: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """‖u − u*‖ of each sample; not squared, so that a small distance is still worth some force."""
        return (((u - target) ** 2).flatten(1).sum(1) * self.cell_volume + self.softness**2).sqrt()


@dataclass(frozen=True)
class Smoke:
    """Smoke in a closed box, ∂s/∂t + u·∇s = 0, ∂u/∂t + u·∇u = f + β s e_y − ∇p, ∇·u = 0.

    It rises by itself. Forces act in a band along the walls only, where there is no smoke: 3 actuators of Gaussian
    profile on every wall, each with two components; they reach the smoke through the pressure and the flow they cause.
    In the data their strengths are random, and constant in time.
    """

    cells: int = 32
    steps: int = 24
    dt: float = 1.0
    band: int = 4
    per_wall: int = 3
    buoyancy: float = 0.02
    strength: float = 0.1
    effort_weight: float = 0.7
    front: tuple[float, ...] = (3.0,)
    supervised_rate: float = 1e-3
    rate: float = 4e-3
    batch: int = 4
    budget: Budget = Budget(600, 1500, 300, 440_000, 30)
    rl: PPO = PPO(environments=64, rate=1e-3, batch=512, epochs=10, log_std=-0.5, reward_scale=0.1)
    dims: int = 2
    goal: str = "smoke"
    cell_volume: float = 1.0
    observations: int = 257
    quick: float = 0.08

    @property
    def exploring(self) -> Smoke:
        return self

    @property
    def smooth(self) -> Smoke:
        return self

    @property
    def actions(self) -> int:
        return 8 * self.per_wall

    def physics(self) -> ph.PhysicsBlock:
        def step(state: State, force: Field, target: Field, remaining: Tensor) -> State:
            velocity, smoke = state["velocity"], state["smoke"]
            lift = resample(smoke * math.vec(x=0.0, y=self.buoyancy), velocity)
            smoke = advect.mac_cormack(smoke, velocity, self.dt)
            velocity = advect.semi_lagrangian(velocity, velocity, self.dt) + self.dt * (force + lift)
            return {"force": force, "velocity": fluid.make_incompressible(velocity)[0], "smoke": smoke}

        return ph.capture(step)

    def samples(self, count: int, seed: int) -> tuple[State, Field]:
        """Round clouds of smoke in fluid at rest, and forces of the actuators."""
        rng, n = np.random.default_rng(seed), self.cells
        grid = dict(x=n, y=n, bounds=Box(x=n, y=n))
        x = np.arange(n) + 0.5
        cx, cy, radius = (rng.uniform(*limits, (count, 1, 1)) * n for limits in ((0.35, 0.65), (0.3, 0.6), (0.1, 0.14)))
        smoke = 1 / (1 + np.exp(2 * (np.hypot(x[:, None] - cx, x - cy) - radius)))
        smoke = wrap(torch.as_tensor(smoke, dtype=torch.float32), batch("trajectory"), spatial("x,y"))
        rest = StaggeredGrid(0, 0, **grid)
        rest = rest.with_values(math.expand(rest.values, batch(trajectory=count)))
        strengths = torch.as_tensor(rng.normal(0, self.strength, (count, self.actions)), dtype=torch.float32)
        force = ph.bridge.from_channels(torch.einsum("ba,acxy->bcxy", strengths, self.actuators()), rest)
        return {"force": rest, "velocity": rest, "smoke": CenteredGrid(smoke, ZERO_GRADIENT, **grid)}, force

    def actuators(self) -> torch.Tensor:
        """Force of each on the lower faces of the cells, `(actuator, component, x, y)`."""
        n, x = self.cells, torch.arange(self.cells) + 0.5
        centres = (torch.arange(self.per_wall) + 0.5) * n / self.per_wall
        along = torch.exp(-0.5 * ((x - centres[:, None]) / (0.4 * n / self.per_wall)) ** 2)
        walls = [(x < self.band).float(), (x > n - self.band).float()]
        maps = torch.stack([m for a in along for w in walls for m in (torch.outer(a, w), torch.outer(w, a))])
        return torch.cat([torch.stack([maps, 0 * maps], 1), torch.stack([0 * maps, maps], 1)])

    def in_band(self) -> torch.Tensor:
        """1 in the band along the walls, else 0, `(x, y)`."""
        x = torch.arange(self.cells)
        inner = ((x >= self.band) & (x < self.cells - self.band)).float()
        return 1 - torch.outer(inner, inner)

    def usable(self, target: torch.Tensor) -> torch.Tensor:
        """Those whose target is clear of the band."""
        return (target * self.in_band()).sum((1, 2)) < 0.03 * target.sum((1, 2))

    def observe(self, channels: torch.Tensor) -> torch.Tensor:
        """Means of velocity, smoke and target over 4 × 4 cells, and the share of time that remains."""
        return torch.cat([avg_pool2d(channels[:, 2:6], self.cells // 8).flatten(1), channels[:, 6:, 0, 0]], 1)

    def force(self, channels: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ba,acxy->bcxy", self.strength * action, self.actuators().to(action))

    def distance(self, smoke: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Σ(s − s*)² of each sample, as it is and blurred: clouds side by side want to know the way."""
        difference = (smoke - target)[:, None]
        blurred = avg_pool2d(avg_pool2d(difference, 9, 1, 4), 9, 1, 4)
        return (difference**2).flatten(1).sum(1) + 16 * (blurred**2).flatten(1).sum(1)
