"""Find the flow that carried smoke from one snapshot to the next: a network trained by physical and by plain gradients.

The network sees the densities m₀ and m* = m(t) of smoke in periodic incompressible flow, 64² cells, t = 8 steps of 0.25,
and returns the initial velocity v₀. Physical gradients (Holl et al. 2022, arXiv 2109.15048) simulate it to v(t), m(t),
estimate by how much v(t) should differ to carry m(t) into m*, and run the changed flow backwards in time for a better v₀.
Since that is a solution rather than a direction, it is kept: between simulations, which take longest, the network is
trained towards what has been found for other samples before. Equal time for all.

    python demos/studies/pg_navier_stokes.py [--quick | --full] [--seed N] [--seeds N] [--out DIR]
    python demos/studies/pg_navier_stokes.py --tune ENTRANT --seed 100    learning rates of one entrant
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import lab
import matplotlib.pyplot as plt
import numpy as np
import torch
from contest import History, at_other_rates, batches, cosine, curves, distance_to, last, race, seconds_to_reach
from matplotlib.figure import Figure
from phi.math import batch, wrap

import phi_hybrid as ph
from phi_hybrid.inverse.flow import carried, navier_stokes_back
from phi_hybrid.inverse.motion import estimate_flow, solenoidal_waves
from phi_hybrid.optim import Chain, ChainStep, Closure, Gradient, Inverse, Link
from phi_hybrid.pde import heat, navier_stokes

CELLS, STEPS, DT = 64, 8, 0.25
SAMPLES, HELD_OUT, BATCH, SECONDS, LOOKS = 2048, 64, 16, 60, 12
CHUNK = 16
"""Samples that are simulated at once."""

# Fields are torch tensors here: markers `(sample, x, y)` and velocities on faces `(sample, component, x, y)`.


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
        """Input of the network, `(sample, 2, x, y)`."""
        return torch.stack([self.before, self.after], 1)


class Simulation:
    """Captured on a periodic square with cells of size 1."""

    def __init__(self, cells: int = CELLS) -> None:
        self.cells = cells
        velocity = navier_stokes.periodic_square(cells, cells)
        marker = heat.square(cells, cells)
        flow = navier_stokes.navier_stokes_step(DT)
        samples = wrap(torch.ones(1), batch("sample"))
        velocity, marker = velocity * samples, marker * samples
        self._step = ph.capture(carried(DT, lambda u: flow(u, 0.0))).bind({"velocity": velocity, "marker": marker})
        self._back = ph.capture(navier_stokes_back(DT)).bind(velocity)
        self._estimate = ph.capture(lambda m, after: estimate_flow(m, after, STEPS * DT)).bind(marker, marker)
        self.waves = torch.stack(ph.bridge.flatten(solenoidal_waves(marker, 4))[0], 1)
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

    estimate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    after: torch.Tensor

    def __call__(self, function: Callable, x: tuple[torch.Tensor, ...]) -> tuple[tuple[torch.Tensor, ...], Callable]:
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


@dataclass(frozen=True)
class Entrant:
    """Ways to change v₀, in equal parts of the time, and Adam's largest learning rate."""

    chains: tuple[ChainOf, ...]
    rate: float
    replays: int = 0
    """Updates of the network towards targets found before, per physical gradient."""
    share: float = 1.0
    """Of the time that the others have."""


ENTRANTS = {
    "adam": Entrant((plain_gradient,), 1e-3),
    "pg": Entrant((physical_gradient,), 1e-3, replays=20),
    "pg_half_time": Entrant((physical_gradient,), 1e-3, replays=20, share=0.5),
    "pg_then_adam": Entrant((physical_gradient, plain_gradient), 1e-3, replays=20),
    "supervised": Entrant((supervised,), 1e-3),
}


def train(
    simulation: Simulation, network: Network, smoke: Smoke, entrant: Entrant, seconds: float, looks: int, seed: int
) -> History:
    """History of the errors on held-out samples."""
    training, held_out = smoke[:-HELD_OUT], smoke[-HELD_OUT:]
    stream, memory = batches(torch.arange(len(training)), BATCH, seed), Memory(training, seed)

    def phase(chain_of: ChainOf) -> Callable[[float], None]:
        optimizer = torch.optim.Adam(network.parameters(), entrant.rate)
        chain_of(simulation, smoke[:BATCH]).update(predicted(network, smoke[:BATCH]))  # captures

        def descend(part: Smoke, loss: Callable) -> None:
            optimizer.step(Closure(lambda: network(part.snapshots), loss, network.parameters()))

        def update(share: float) -> None:
            optimizer.param_groups[0]["lr"] = entrant.rate * cosine(share)
            chosen = next(stream)
            part = training[chosen]
            step = chain_of(simulation, part).update(predicted(network, part))
            descend(part, step.proxy)
            if chain_of is physical_gradient:
                memory.keep(chosen, step)
                for _ in range(entrant.replays):
                    descend(*memory.recall())

        return update

    phases = [(partial(phase, c), (n + 1) / len(entrant.chains)) for n, c in enumerate(entrant.chains)]
    return race(phases, lambda: errors(simulation, predicted(network, held_out), held_out), seconds, looks)


class Memory:
    """The last x + Δx of every sample for which there is one."""

    def __init__(self, smoke: Smoke, seed: int) -> None:
        self.smoke, self.targets = smoke, torch.zeros_like(smoke.velocity)
        self.known, self.generator = torch.zeros(len(smoke), dtype=torch.bool), torch.Generator().manual_seed(seed)

    def keep(self, chosen: torch.Tensor, step: ChainStep) -> None:
        self.targets[chosen], self.known[chosen] = step.inputs[0][0] + step.update, True

    def recall(self) -> tuple[Smoke, Callable[[torch.Tensor], torch.Tensor]]:
        """Random samples, and the proxy loss towards their targets."""
        known = self.known.nonzero()[:, 0]
        old = known[torch.randint(len(known), (BATCH,), generator=self.generator)]
        return self.smoke[old], lambda x: distance_to(self.targets[old])(x).mean()


@torch.no_grad()
def predicted(network: Network, smoke: Smoke) -> torch.Tensor:
    """v₀ by the network."""
    return network(smoke.snapshots)


# --- without a network ---


def alone(simulation: Simulation, smoke: Smoke, target: float, iterations: int = 100) -> float:
    """Seconds until L-BFGS through the simulation has brought one sample's marker error down to that; infinite if not."""
    weights = torch.zeros(1, len(simulation.waves), requires_grad=True)
    scale = float(norms(smoke.before - smoke.after) ** 2)

    def markers() -> torch.Tensor:
        return simulation.forward(torch.einsum("sw,wcxy->scxy", weights, simulation.waves), smoke.before)[1]

    closure = Closure(markers, lambda m: distance_to(smoke.after)(m).sum() / scale, [weights])
    return seconds_to_reach(closure, target**2 / 2, iterations)


def break_even(simulation: Simulation, smoke: Smoke, row: dict[str, float], uses: int = 2) -> dict[str, float]:
    """Uses after which the training is paid back, if the other way to this marker error is L-BFGS on each sample."""
    seconds = sum(alone(simulation, smoke[n : n + 1], row["marker"]) for n in range(uses)) / uses
    return {"alone_seconds": seconds, "break_even": row["seconds"] / seconds} if math.isfinite(seconds) else {}


def searched(simulation: Simulation, smoke: Smoke, updates: int) -> torch.Tensor:
    """v₀ by physical gradients of each sample alone, from rest."""
    found = []
    for n in range(0, len(smoke), BATCH):
        part = smoke[n : n + BATCH]
        velocity = torch.zeros_like(part.velocity)
        for _ in range(updates):
            velocity = velocity + physical_gradient(simulation, part).update(velocity).update
        found.append(velocity)
    return torch.cat(found)


# --- results ---


def errors(simulation: Simulation, velocity: torch.Tensor, smoke: Smoke) -> dict[str, float]:
    """‖v₀ − v₀*‖/‖v₀*‖ and ‖m(t) − m*‖/‖m₀ − m*‖, means over the samples."""
    found = simulation.marker(velocity, smoke.before)
    pairs = {
        "velocity": (velocity - smoke.velocity, smoke.velocity),
        "marker": (found - smoke.after, smoke.before - smoke.after),
    }
    return {k: float((norms(a) / norms(b)).mean()) for k, (a, b) in pairs.items()}


def norms(x: torch.Tensor) -> torch.Tensor:
    """Norm of every sample."""
    return x.flatten(1).norm(dim=1)


def seconds_to(history: History, goal: float) -> float:
    """Seconds until the marker error has first been as small as that; infinite if never."""
    times = [s for s, error in zip(history["seconds"], history["marker"]) if error <= goal]
    return min(times, default=math.inf)


def compete(
    entrants: dict[str, Entrant], count: int, seconds: float, looks: int, seed: int
) -> tuple[lab.Rows, Callable]:
    """The same initial network, trained by every entrant; metrics, and figures to draw."""
    simulation = Simulation()
    smoke = samples(simulation, count, seed)
    held_out, histories, shown = smoke[-HELD_OUT:], {}, {"true": smoke.velocity[-1:]}
    rows = {"source": errors(simulation, torch.zeros_like(held_out.velocity), held_out)}
    rows |= {f"pg_alone_{n}": errors(simulation, searched(simulation, held_out, n), held_out) for n in (1, 2)}
    for name, entrant in entrants.items():
        torch.manual_seed(seed)
        network = Network(simulation)
        history = histories[name] = train(simulation, network, smoke, entrant, entrant.share * seconds, looks, seed)
        rows[name] = last(history)
        if "adam" in rows:
            rows[name]["seconds_to_adam"] = seconds_to(history, rows["adam"]["marker"])
        rows[name] |= break_even(simulation, held_out, rows[name])
        shown[name] = predicted(network, smoke[-1:])
    panels = [("seconds", "marker"), ("updates", "marker"), ("seconds", "velocity")]
    return rows, lambda: {"training": curves(histories, panels), "examples": pictures(simulation, smoke[-1:], shown)}


def pictures(simulation: Simulation, smoke: Smoke, shown: dict[str, torch.Tensor]) -> Figure:
    """One sample: vorticity and arrows of every v₀ above the marker to which it leads; m₀ and m* on the left."""
    figure, axes = plt.subplots(2, len(shown) + 1, figsize=(2.3 * (len(shown) + 1), 4.9))
    images = dict(vmin=0, vmax=float(smoke.before.max()), cmap="Greys", origin="lower")
    largest = float(_vorticity(shown["true"]).abs().max())
    axes[0, 0].imshow(smoke.before[0].T, **images)
    axes[0, 0].set_title("m₀")
    axes[1, 0].imshow(smoke.after[0].T, **images)
    axes[1, 0].set_title("m*")
    for column, (name, velocity) in zip(axes.T[1:], shown.items()):
        column[0].imshow(_vorticity(velocity)[0].T, vmin=-largest, vmax=largest, cmap="RdBu", origin="lower")
        at = torch.arange(4, simulation.cells, 8)
        u, v = velocity[0][:, at][:, :, at]
        column[0].quiver(at, at, u.T, v.T, scale=120)
        column[1].imshow(simulation.marker(velocity, smoke.before)[0].T, **images)
        column[1].contour(smoke.after[0].T, [0.5], colors="tab:red", linewidths=1)
        column[0].set_title(name.replace("_", " "))
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.tight_layout()
    return figure


def _vorticity(velocity: torch.Tensor) -> torch.Tensor:
    u, v = velocity.unbind(1)
    return v - v.roll(1, 1) - u + u.roll(1, 2)


def main() -> None:
    tune = dict(choices=list(ENTRANTS), help="this one alone, at a third, one and three times its learning rate")
    options = lab.options(__doc__, "pg_navier_stokes", tune=tune)
    entrants = at_other_rates(options.tune, ENTRANTS[options.tune]) if options.tune else ENTRANTS
    seconds, looks = SECONDS * lab.share(options, 0.03), 3 if options.quick else LOOKS
    count = (SAMPLES // 4 if options.quick else SAMPLES) + HELD_OUT
    columns = ["updates", "seconds", "seconds_to_adam"]
    lab.study(options, lambda seed: compete(entrants, count, seconds, looks, seed), ["velocity", "marker"], columns)


if __name__ == "__main__":
    main()
