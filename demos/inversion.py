"""Networks that invert physics, trained by physical gradients, by plain gradients, and with the truth: equal time.

The network sees y* and returns x, and is judged by ‖x − x*‖ and by ‖P(x) − y*‖, both relative, on held-out samples.
"""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import torch
from common import save_figures, seed_table, write_metrics
from contest import batches
from matplotlib.figure import Figure

import phi_hybrid as ph
from phi_hybrid.optim import Chain, Closure, Gradient, LinearInverse, Link, SeparableNewton

LOOKS = 15
"""How often held-out errors are looked at; that time does not count."""

Operator = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Inversion:
    """Linear physics y = P(x) in double precision, samples `(sample, x, y)`, and a network y* ↦ x in single precision."""

    network: torch.nn.Module
    physics: Operator
    inverse: Operator
    """Δy ↦ Δx."""
    truth: torch.Tensor
    """x*, of training and then of held-out samples."""
    held_out: int

    @property
    def observed(self) -> torch.Tensor:
        """y* of all samples."""
        return self.physics(self.truth)


ChainOf = Callable[[Inversion, torch.Tensor, torch.Tensor], Chain]
"""Task, y*, x* ↦ how the network's x is to be changed."""


def plain_gradient(task: Inversion, observed: torch.Tensor, truth: torch.Tensor) -> Chain:
    """Differentiable physics: both links by their adjoint."""
    return Chain(Link(task.physics, Gradient()), Link(distance_to(observed), Gradient()), precision=torch.float64)


def physical_gradient(task: Inversion, observed: torch.Tensor, truth: torch.Tensor) -> Chain:
    """Δx = P⁻¹(y* − P(x))."""
    inverse = Link(task.physics, LinearInverse(task.inverse))
    return Chain(inverse, Link(distance_to(observed), SeparableNewton()), precision=torch.float64)


def supervised(task: Inversion, observed: torch.Tensor, truth: torch.Tensor) -> Chain:
    """Without physics, towards x*, which the others do not see."""
    return Chain(Link(distance_to(truth), Gradient()), precision=torch.float64)


def distance_to(target: torch.Tensor) -> Operator:
    return lambda y: ((y - target) ** 2).flatten(1).sum(1) / 2


@dataclass(frozen=True)
class Entrant:
    """How updates are passed back, and Adam's learning rate."""

    chain: ChainOf
    rate: float


def errors(task: Inversion, observed: torch.Tensor) -> dict[str, float]:
    """Relative distances of held-out samples, mean over them."""
    truth, seen = task.truth[-task.held_out :], observed[-task.held_out :]
    with torch.no_grad():
        x = torch.cat([task.network(part.float()) for part in seen.split(16)]).double()
        y = task.physics(x)
    return {name: float(_relative(a, b).mean()) for name, a, b in (("x", x, truth), ("y", y, seen))}


def train(task: Inversion, entrant: Entrant, size: int, seconds: float, seed: int) -> dict[str, list[float]]:
    """History `{'seconds', 'updates', 'x', 'y': [...]}` of the errors on held-out samples."""
    observed, training = task.observed, len(task.truth) - task.held_out
    optimizer = torch.optim.Adam(task.network.parameters(), entrant.rate)
    history = {"seconds": [0.0], "updates": [0], **{k: [v] for k, v in errors(task, observed).items()}}
    numbers, used, updates = batches(torch.arange(training), size, seed), 0.0, 0
    while used < seconds and math.isfinite(history["x"][-1]):
        target = used + seconds / LOOKS
        while used < target:
            chosen = next(numbers)
            began = time.perf_counter()
            chain, seen = entrant.chain(task, observed[chosen], task.truth[chosen]), observed[chosen].float()
            optimizer.step(Closure(lambda seen=seen: task.network(seen), chain.proxy, task.network.parameters()))
            used += time.perf_counter() - began
            updates += 1
        for key, value in {"seconds": used, "updates": updates, **errors(task, observed)}.items():
            history[key].append(value)
    return history


def compete(
    make_task: Callable[[int], Inversion], entrants: dict[str, Entrant], size: int, seconds: float, options: Namespace
) -> None:
    """The whole demo: all entrants for every seed, figures of the first, metrics.json, and tables."""
    began, per_seed = time.perf_counter(), []
    for seed in range(options.seed, options.seed + options.seeds):
        histories, shown = {}, {}
        for name, entrant in entrants.items():
            task = make_task(seed)
            histories[name] = train(task, entrant, size, seconds, seed)
            shown[name] = examples(task)
        metrics = summary(make_task(seed), histories)
        per_seed.append(metrics)
        print(f"seed {seed}")
        if seed == options.seed:
            save_figures(options.out, {"training": curves(histories), "examples": pictures(shown)})
    print(seed_table([{k: v for k, v in m.items() if k != "source"} for m in per_seed], COLUMNS))
    write_metrics(options.out, per_seed, (time.perf_counter() - began) / options.seeds)


COLUMNS = ["x", "y", "x_equal_updates", "y_equal_updates", "updates"]


def summary(untrained: Inversion, histories: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """At the end, that is at equal time, and at the largest number of updates that all have made."""
    least = min(history["updates"][-1] for history in histories.values())
    rows = {"source": errors(untrained, untrained.observed)}
    for name, history in histories.items():
        at = max(n for n, updates in enumerate(history["updates"]) if updates <= least)
        rows[name] = {key: history[key][-1] for key in ("x", "y", "updates", "seconds")}
        rows[name] |= {f"{key}_equal_updates": history[key][at] for key in ("x", "y")}
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in rows[name].items()))
    return rows


def examples(task: Inversion) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y*, x* and the network's x of one held-out sample."""
    seen = task.physics(task.truth[-1:])
    with torch.no_grad():
        return seen[0], task.truth[-1], task.network(seen.float())[0]


def curves(histories: dict[str, dict[str, list[float]]]) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    for name, history in histories.items():
        for ax, over, of in zip(axes, ("seconds", "updates", "seconds"), ("x", "x", "y")):
            ax.semilogy(history[over], history[of], label=name)
            ax.set(xlabel=over, ylabel=f"held-out ‖{of} − {of}*‖ / ‖{of}*‖")
    axes[0].legend()
    figure.tight_layout()
    return figure


def pictures(shown: dict[str, Any]) -> Figure:
    """y*, x*, and what every network makes of it."""
    figure, axes = plt.subplots(1, len(shown) + 2, figsize=(2.4 * (len(shown) + 2), 2.6))
    seen, truth, _ = next(iter(shown.values()))
    largest = float(truth.abs().max())
    for ax, (title, values) in zip(axes, {"y*": seen, "x*": truth, **{n: s[2] for n, s in shown.items()}}.items()):
        limit = float(values.abs().max()) if title == "y*" else largest
        ax.imshow(values.T, origin="lower", cmap="RdBu", vmin=-limit, vmax=limit)
        ax.set(title=title, xticks=[], yticks=[])
    figure.tight_layout()
    return figure


class Scaled(torch.nn.Module):
    """A network between images `(sample, x, y)`, in units of what it sees and of what it returns."""

    def __init__(self, network: torch.nn.Module, seen: float, returned: float) -> None:
        super().__init__()
        self.network, self.seen, self.returned = network, seen, returned

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.returned * self.network(y[:, None] / self.seen)[:, 0]


def native(step: Callable, example: Any) -> Operator:
    """A captured operator on fields, as a function of torch tensors."""
    block = ph.capture(step)
    block.flatten(example)
    return lambda x: block.native(x)[0]


def _relative(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
