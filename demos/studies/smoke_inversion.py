"""Smoke in periodic incompressible flow: samples, simulation and its inverse, a network from snapshots to flows, updates.

All functions take torch tensors: markers `(sample, x, y)` and velocities on faces `(sample, component, x, y)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from inversion import distance_to
from phi.math import batch, wrap

import phi_hybrid as ph
from phi_hybrid.inverse.flow import carried, navier_stokes_back
from phi_hybrid.inverse.motion import estimate_flow, solenoidal_waves
from phi_hybrid.optim import Chain, Gradient, Inverse, Link
from phi_hybrid.optim.rules import Function, Pullback
from phi_hybrid.optim.vectors import Tensors
from phi_hybrid.pde import heat, navier_stokes

CELLS, STEPS, DT = 64, 8, 0.25
CHUNK = 16
"""Samples that are simulated at once."""


@dataclass(frozen=True)
class Smoke:
    """Samples of v₀, m₀ and m*."""

    velocity: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor

    def __getitem__(self, chosen: slice | torch.Tensor) -> Smoke:
        return Smoke(self.velocity[chosen], self.before[chosen], self.after[chosen])

    def __len__(self) -> int:
        return len(self.before)

    @property
    def snapshots(self) -> torch.Tensor:
        """What the network sees, `(sample, 2, x, y)`."""
        return torch.stack([self.before, self.after], 1)


class Simulation:
    """Captured on a periodic square with cells of size 1."""

    def __init__(self, cells: int = CELLS) -> None:
        self.cells = cells
        velocity = navier_stokes.periodic_square(cells, cells)
        marker = heat.square(cells, cells)
        flow = navier_stokes.navier_stokes_step(DT)
        self._step = ph.capture(carried(DT, lambda u: flow(u, 0.0)))
        self._back = ph.capture(navier_stokes_back(DT))
        self._estimate = ph.capture(lambda m, after: estimate_flow(m, after, STEPS * DT))
        samples = wrap(torch.ones(1), batch("sample"))
        velocity, marker = velocity * samples, marker * samples
        self._step.flatten({"velocity": velocity, "marker": marker})
        self._back.flatten(velocity)
        self._estimate.flatten(marker, marker)
        waves = solenoidal_waves(marker, 4)
        self.waves = torch.stack(ph.bridge.flatten(waves)[0], 1)
        """Of `solenoidal_waves`, `(wave, component, x, y)`."""

    def forward(self, velocity: torch.Tensor, marker: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """v(0), m(0) ↦ v(t), m(t)."""
        state = (*velocity.unbind(1), marker)
        for _ in range(STEPS):
            state = self._step.native(*state)
        return torch.stack(state[:2], 1), state[2]

    def backward(self, velocity: torch.Tensor) -> torch.Tensor:
        """v(t) ↦ v(0), to the order of the scheme."""
        components = velocity.unbind(1)
        for _ in range(STEPS):
            components = self._back.native(*components)
        return torch.stack(components, 1)

    def estimate(self, marker: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """A flow that carries one marker into the other within t."""
        return torch.stack(self._estimate.native(marker, after), 1)

    @torch.no_grad()
    def marker(self, velocity: torch.Tensor, marker: torch.Tensor) -> torch.Tensor:
        """m(t) of any number of samples."""
        parts = zip(velocity.split(CHUNK), marker.split(CHUNK))
        return torch.cat([self.forward(v, m)[1] for v, m in parts])


def samples(simulation: Simulation, count: int, seed: int) -> Smoke:
    """Bars of smoke near the middle, in a uniform flow and a vortex, all random; multiples of `CHUNK`.

    The vortex has the stream function ω·R²·exp(−r²/2R²), periodically continued: ω, up to 0.8, is its angular velocity.
    """
    rng, cells = np.random.default_rng(seed), simulation.cells
    unit = cells / 64
    markers, velocities = np.zeros((count, cells, cells)), np.zeros((count, 2, cells, cells))
    for marker, velocity in zip(markers, velocities):
        centre = cells / 2 + unit * rng.uniform(-4, 4, 2)
        marker[:] = _bar(cells, centre, rng.uniform(0, np.pi), unit * rng.uniform((9, 4), (14, 7)))
        radius, spin = unit * rng.uniform(8, 12), rng.uniform(0.2, 0.8) * rng.choice((-1, 1))
        psi = spin * radius**2 * _vortex(cells, centre + unit * rng.normal(0, 3, 2), radius)
        velocity[:] = np.roll(psi, -1, 1) - psi, psi - np.roll(psi, -1, 0)
        velocity += unit * rng.normal(0, 3, 2)[:, None, None]
    before, velocity = (torch.from_numpy(a).float() for a in (markers, velocities))
    return Smoke(velocity, before, simulation.marker(velocity, before))


def _bar(cells: int, centre: np.ndarray, angle: float, half: np.ndarray) -> np.ndarray:
    """A rectangle with soft edges at the centres of cells."""
    x, y = np.meshgrid(*[np.arange(cells) + 0.5 - c for c in centre], indexing="ij")
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    return 1 / (1 + np.exp(abs(along) - half[0])) / (1 + np.exp(abs(across) - half[1]))


def _vortex(cells: int, centre: np.ndarray, radius: float) -> np.ndarray:
    """exp(−r²/2R²) at the lower corners of cells, with r² made periodic: r²/2 ≈ (1 − cos kx + 1 − cos ky)/k²."""
    k = 2 * np.pi / cells
    x, y = (np.exp((np.cos(k * (np.arange(cells) - c)) - 1) / (k * radius) ** 2) for c in centre)
    return np.outer(x, y)


class Network(torch.nn.Module):
    """Snapshots on coarser cells → weights of `solenoidal_waves` → velocity."""

    def __init__(self, simulation: Simulation, hidden: int = 256, speed: float = 4.0) -> None:
        super().__init__()
        self.register_buffer("waves", speed * simulation.waves)
        self.layers = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(16),
            torch.nn.Flatten(),
            torch.nn.Linear(512, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, len(self.waves)),
        )
        with torch.no_grad():
            self.layers[-1].weight *= 0.1  # near rest: what no marker shows stays as it begins

    def forward(self, snapshots: torch.Tensor) -> torch.Tensor:
        return torch.einsum("sw,wcxy->scxy", self.layers(4 * snapshots), self.waves)


# --- how v₀ is to be changed ---

ChainOf = Callable[[Simulation, Smoke], Chain]
"""How v₀ is to be changed for some samples."""


@dataclass(frozen=True)
class Carry:
    """Rule of the distance between markers: Δm = m* − m, and Δv = v₁ the flow that carries m into m*."""

    estimate: Function
    after: torch.Tensor

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        _, marker = x
        return function(*x), lambda _: (self.estimate(marker, self.after), self.after - marker)


def plain_gradient(simulation: Simulation, smoke: Smoke) -> Chain:
    """Differentiable physics: back through the simulation."""
    forward = Link(lambda v: simulation.forward(v, smoke.before), Gradient())
    return Chain(forward, Link(lambda _, m: distance_to(smoke.after)(m), Gradient()))


def physical_gradient(simulation: Simulation, smoke: Smoke) -> Chain:
    """The inverse simulator needs no v₀ to start from, and no marker."""
    inverse = Inverse(lambda velocity, marker, start: simulation.backward(velocity))
    loss = Link(lambda _, m: distance_to(smoke.after)(m), Carry(simulation.estimate, smoke.after))
    return Chain(Link(lambda v: simulation.forward(v, smoke.before), inverse), loss)


def supervised(simulation: Simulation, smoke: Smoke) -> Chain:
    """Without physics, towards the true v₀, which the others do not see."""
    return Chain(Link(distance_to(smoke.velocity), Gradient()))
