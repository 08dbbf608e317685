"""Find the flow that carried smoke from one snapshot to the next: a network trained by physical and by plain gradients.

The network sees the densities m₀ and m* = m(t) of smoke in periodic incompressible flow, 64² cells, t = 8 steps of 0.25,
and returns the initial velocity v₀. Physical gradients (Holl et al. 2022, arXiv 2109.15048) simulate it to v(t), m(t),
estimate by how much v(t) should differ to carry m(t) into m*, and run the changed flow backwards in time for a better v₀.
Since that is a solution rather than a direction, it is kept: between simulations, which take longest, the network is
trained towards what has been found for other samples before. Equal time for all.

    python demos/pg_navier_stokes.py [--quick | --full] [--seed N] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import arguments, require_cpu, save_figures, seed_table, write_metrics
from contest import batches, seconds_to_reach
from inversion import distance_to
from smoke_inversion import (
    ChainOf,
    Network,
    Simulation,
    Smoke,
    physical_gradient,
    plain_gradient,
    samples,
    supervised,
)
from smoke_results import curves, errors, norms, pictures, seconds_to

from phi_hybrid.optim import Closure, Step

SAMPLES, HELD_OUT, BATCH, SECONDS, LOOKS = 2048, 64, 16, 60, 12


@dataclass(frozen=True)
class Entrant:
    """How v₀ is updated in equal parts of the time, and Adam's largest learning rate."""

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
) -> dict[str, list[float]]:
    """History `{'seconds', 'updates', 'velocity', 'marker': [...]}` of the errors on held-out samples."""
    training, held_out, history = smoke[:-HELD_OUT], smoke[-HELD_OUT:], {}
    stream, memory, used, updates = batches(torch.arange(len(training)), BATCH, seed), Memory(training, seed), 0.0, 0
    _append(history, used, updates, errors(simulation, predicted(network, held_out), held_out))
    for phase, chain_of in enumerate(entrant.chains):
        optimizer = torch.optim.Adam(network.parameters(), entrant.rate)
        chain_of(simulation, smoke[:BATCH]).update(predicted(network, smoke[:BATCH]))  # captures
        while used < seconds * (phase + 1) / len(entrant.chains):
            next_look = used + seconds / looks
            while used < next_look:
                optimizer.param_groups[0]["lr"] = entrant.rate * (1 + math.cos(math.pi * min(used / seconds, 1))) / 2
                chosen, began = next(stream), time.perf_counter()
                step = chain_of(simulation, training[chosen]).update(predicted(network, training[chosen]))
                _descend(optimizer, network, training[chosen], step.proxy)
                if chain_of is physical_gradient:
                    memory.keep(chosen, step)
                    for _ in range(entrant.replays):
                        _descend(optimizer, network, *memory.recall())
                used, updates = used + time.perf_counter() - began, updates + 1
            _append(history, used, updates, errors(simulation, predicted(network, held_out), held_out))
    return history


class Memory:
    """The last x + Δx of every sample for which there is one."""

    def __init__(self, smoke: Smoke, seed: int) -> None:
        self.smoke, self.targets = smoke, torch.zeros_like(smoke.velocity)
        self.known, self.generator = torch.zeros(len(smoke), dtype=torch.bool), torch.Generator().manual_seed(seed)

    def keep(self, chosen: torch.Tensor, step: Step) -> None:
        self.targets[chosen], self.known[chosen] = step.inputs[0][0] + step.update, True

    def recall(self) -> tuple[Smoke, Callable[[torch.Tensor], torch.Tensor]]:
        """Random samples, and the proxy loss towards their targets."""
        known = self.known.nonzero()[:, 0]
        old = known[torch.randint(len(known), (BATCH,), generator=self.generator)]
        return self.smoke[old], lambda x: distance_to(self.targets[old])(x).mean()


def _descend(optimizer: torch.optim.Optimizer, network: Network, smoke: Smoke, loss: Callable) -> None:
    optimizer.step(Closure(lambda: network(smoke.snapshots), loss, network.parameters()))


@torch.no_grad()
def predicted(network: Network, smoke: Smoke) -> torch.Tensor:
    return network(smoke.snapshots)


def _append(history: dict[str, list[float]], seconds: float, updates: int, errors: dict[str, float]) -> None:
    for key, value in {"seconds": seconds, "updates": updates, **errors}.items():
        history.setdefault(key, []).append(value)


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

COLUMNS = ["velocity", "marker", "updates", "seconds_to_adam"]


def compete(
    simulation: Simulation, smoke: Smoke, seconds: float, looks: int, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, list[float]]], dict[str, torch.Tensor]]:
    """Metrics, histories, and what every network makes of the last sample, all from the same initial network."""
    held_out, histories, shown = smoke[-HELD_OUT:], {}, {"true": smoke.velocity[-1:]}
    rows = {"source": errors(simulation, torch.zeros_like(held_out.velocity), held_out)}
    rows |= {f"pg_alone_{n}": errors(simulation, searched(simulation, held_out, n), held_out) for n in (1, 2)}
    for name, entrant in ENTRANTS.items():
        torch.manual_seed(seed)
        network = Network(simulation)
        history = histories[name] = train(simulation, network, smoke, entrant, entrant.share * seconds, looks, seed)
        rows[name] = {key: values[-1] for key, values in history.items()}
        rows[name] |= seconds_to(history, rows["adam"]) | break_even(simulation, held_out, rows[name])
        shown[name] = predicted(network, smoke[-1:])
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in rows[name].items()))
    return rows, histories, shown


def main() -> None:
    options = arguments(__doc__, "pg_navier_stokes").parse_args()
    require_cpu(options.device)
    torch.set_num_threads(1)
    seconds, looks = (0.03 * SECONDS, 3) if options.quick else (SECONDS * (3 if options.full else 1), LOOKS)
    count = (SAMPLES // 4 if options.quick else SAMPLES) + HELD_OUT
    began, per_seed, simulation = time.perf_counter(), [], Simulation()
    for seed in range(options.seed, options.seed + options.seeds):
        print(f"seed {seed}")
        smoke = samples(simulation, count, seed)
        metrics, histories, shown = compete(simulation, smoke, seconds, looks, seed)
        per_seed.append(metrics)
        if seed == options.seed:
            drawn = {"training": curves(histories), "examples": pictures(simulation, smoke[-1:], shown)}
            save_figures(options.out, drawn)
    print(seed_table([{name: metrics[name] for name in ENTRANTS} for metrics in per_seed], COLUMNS))
    write_metrics(options.out, per_seed, (time.perf_counter() - began) / options.seeds)


if __name__ == "__main__":
    main()
