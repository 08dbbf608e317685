"""Networks that invert physics, trained by physical gradients, by plain gradients, and with the truth: equal time.

The network sees y* and returns x, and is judged by ‖x − x*‖ and by ‖P(x) − y*‖, both relative, on held-out samples.
"""

from __future__ import annotations

import copy
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import torch
from common import arguments, require_cpu, save_figures, seed_table, write_metrics
from contest import batches, seconds_to_reach
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


def cosine(largest: float) -> Callable[[float], float]:
    """Learning rate by the share of the time that is used, from the largest down to 0."""
    return lambda share: largest * (1 + math.cos(math.pi * min(share, 1.0))) / 2


@dataclass(frozen=True)
class Entrant:
    """How updates are passed back, by which optimizer they reach the network, and how many samples it sees at a time."""

    chains: tuple[tuple[ChainOf, float], ...]
    """Each used until that share of the time is over."""
    rate: Callable[[float], float]
    batch: int
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam


def throughout(chain: ChainOf) -> tuple[tuple[ChainOf, float], ...]:
    return ((chain, 1.0),)


def lbfgs(batch: int) -> Entrant:
    """Second-order training of the network: 10 iterations with a line search on so many samples, then on others."""
    optimizer = partial(torch.optim.LBFGS, max_iter=10, history_size=20, line_search_fn="strong_wolfe")
    return Entrant(throughout(plain_gradient), lambda share: 1.0, batch, optimizer)


def errors(task: Inversion, observed: torch.Tensor) -> dict[str, float]:
    """Relative distances of held-out samples, mean over them; infinite if the network fails."""
    truth, seen = task.truth[-task.held_out :], observed[-task.held_out :]
    with torch.no_grad():
        x = torch.cat([task.network(part) for part in seen.split(16)]).double()
        y = task.physics(x)
    return {
        name: float(_relative(a, b).mean().nan_to_num(math.inf)) for name, a, b in (("x", x, truth), ("y", y, seen))
    }


def train(task: Inversion, entrant: Entrant, seconds: float, seed: int, looks: int = LOOKS) -> dict[str, list[float]]:
    """History `{'seconds', 'updates', 'x', 'y': [...]}` of the errors on held-out samples; infinite where it failed."""
    observed, training = task.observed, len(task.truth) - task.held_out
    history = {"seconds": [0.0], "updates": [0], **{k: [v] for k, v in errors(task, observed).items()}}
    numbers, used, updates = batches(torch.arange(training), entrant.batch, seed), 0.0, 0
    try:
        for chain_of, end in entrant.chains:
            optimizer = entrant.optimizer(task.network.parameters(), entrant.rate(used / seconds))
            while used < end * seconds:
                look = min(used + seconds / looks, end * seconds)
                while used < look:
                    optimizer.param_groups[0]["lr"] = entrant.rate(used / seconds)
                    chosen = next(numbers)
                    began = time.perf_counter()
                    chain = chain_of(task, observed[chosen], task.truth[chosen])
                    _update(optimizer, task.network, observed[chosen], chain)
                    used, updates = used + time.perf_counter() - began, updates + 1
                _append(history, used, updates, errors(task, observed))
    except (ph.NonFiniteError, ph.SolveError) as error:
        print(f"stopped after {updates} updates: {error}")
        _append(history, used, updates, {"x": math.inf, "y": math.inf})
    return history


def _update(optimizer: torch.optim.Optimizer, network: torch.nn.Module, seen: torch.Tensor, chain: Chain) -> None:
    optimizer.step(Closure(lambda: network(seen), partial(loss_of, chain), network.parameters()))


def _append(history: dict[str, list[float]], seconds: float, updates: int, errors: dict[str, float]) -> None:
    for key, value in {"seconds": seconds, "updates": updates, **errors}.items():
        history[key].append(value)


def loss_of(chain: Chain, x: torch.Tensor) -> torch.Tensor:
    """The loss at the end of the chain, which line searches look at; its gradient is that of the proxy."""
    step = chain.update(x)
    proxy = step.proxy(x)
    return proxy + (step.loss.mean() - proxy).detach()


def run(
    description: str, name: str, make_task: Callable[[int], Inversion], entrants: dict[str, Entrant], seconds: float
) -> None:
    """The demo of that name, from its command line on."""
    options = arguments(description, name).parse_args()
    require_cpu(options.device)
    torch.set_num_threads(1)
    compete(make_task, entrants, seconds * (0.03 if options.quick else 3 if options.full else 1), options)


def compete(
    make_task: Callable[[int], Inversion], entrants: dict[str, Entrant], seconds: float, options: Namespace
) -> None:
    """All entrants for every seed, figures of the first, metrics.json, and tables."""
    began, per_seed = time.perf_counter(), []
    for seed in range(options.seed, options.seed + options.seeds):
        histories, shown, start = {}, {}, make_task(seed)
        for name, entrant in entrants.items():
            task = replace(start, network=copy.deepcopy(start.network))
            histories[name] = train(task, entrant, seconds, seed, 3 if options.quick else LOOKS)
            shown[name] = examples(task)
        metrics = summary(start, histories)
        per_seed.append(metrics)
        print(f"seed {seed}")
        if seed == options.seed:
            save_figures(options.out, {"training": curves(histories), "examples": pictures(shown)})
    write_metrics(options.out, per_seed, (time.perf_counter() - began) / options.seeds)
    print(seed_table([trained_only(metrics, entrants) for metrics in per_seed], COLUMNS))


COLUMNS = ["x", "y", "updates", "alone_x", "break_even"]


def trained_only(metrics: dict[str, dict[str, float]], names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Rows of the table; infinite where L-BFGS on single samples did not get as far."""
    return {name: {column: metrics[name].get(column, math.inf) for column in COLUMNS} for name in names}


def summary(untrained: Inversion, histories: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Of every network at the end, of the untrained one, and of the inverse applied to y* without a network."""
    observed = untrained.observed
    rows = {
        "source": errors(untrained, observed),
        "inverse": errors(replace(untrained, network=untrained.inverse), observed),
    }
    for name, history in histories.items():
        rows[name] = {key: history[key][-1] for key in ("x", "y", "updates", "seconds")}
        rows[name] |= break_even(untrained, rows[name]["y"], rows[name]["seconds"])
    for name, row in rows.items():
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()))
    return rows


def break_even(
    task: Inversion, target: float, training_seconds: float, uses: int = 4, iterations: int = 1000
) -> dict[str, float]:
    """After how many uses the training is paid back, the other way being L-BFGS on x of each sample alone, from 0.

    Both are to have the same ‖y − y*‖; `alone_x` is ‖x − x*‖ of the other way. Without these entries, L-BFGS did not get there.
    """
    if not math.isfinite(target):
        return {}
    truths = task.truth[-task.held_out :][:uses].split(1)
    found = [_alone(task, task.physics(truth), target, iterations) for truth in truths]
    if not all(math.isfinite(seconds) for _, seconds in found):
        return {}
    began = time.perf_counter()
    with torch.no_grad():
        for truth in truths:
            task.network(truth)
    seconds = sum(s for _, s in found) / uses
    saved = seconds - (time.perf_counter() - began) / uses
    distance = sum(float(_relative(x, truth)) for (x, _), truth in zip(found, truths)) / uses
    return {
        "alone_x": distance,
        "alone_ms": 1e3 * seconds,
        "break_even": training_seconds / saved if saved > 0 else math.inf,
    }


def _alone(task: Inversion, seen: torch.Tensor, target: float, iterations: int) -> tuple[torch.Tensor, float]:
    """x of one sample, and the seconds until its ‖y − y*‖ is that small; infinite after too many iterations."""
    x = torch.zeros_like(seen, requires_grad=True)
    scale = 1e8 / float((seen**2).sum())  # torch drops curvatures below 1e-10
    closure = Closure(lambda: task.physics(x), lambda y: scale * distance_to(seen)(y).sum(), [x])
    seconds = seconds_to_reach(closure, 1e8 * target**2 / 2, iterations)
    return x.detach(), seconds


def examples(task: Inversion) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y*, x* and the network's x of one held-out sample."""
    seen = task.physics(task.truth[-1:])
    with torch.no_grad():
        return seen[0], task.truth[-1], task.network(seen)[0]


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
    figure, axes = plt.subplots(1, len(shown) + 2, figsize=(2.2 * (len(shown) + 2), 2.6), layout="constrained")
    seen, truth, _ = next(iter(shown.values()))
    largest = float(truth.abs().max())
    for ax, (title, values) in zip(axes, {"y*": seen, "x*": truth, **{n: s[2] for n, s in shown.items()}}.items()):
        limit = float(values.abs().max()) if title == "y*" else largest
        ax.imshow(values.T, origin="lower", cmap="RdBu", vmin=-limit, vmax=limit)
        ax.set(title=title, xticks=[], yticks=[])
    return figure


class Scaled(torch.nn.Module):
    """A network between images `(sample, x, y)`, in single precision and in units of what it sees and returns."""

    def __init__(self, network: torch.nn.Module, seen: float, returned: float) -> None:
        super().__init__()
        self.network, self.seen, self.returned = network, seen, returned

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.returned * self.network((y[:, None] / self.seen).float())[:, 0]


def native(step: Callable, example: Any) -> Operator:
    """A captured operator on fields, as a function of torch tensors."""
    block = ph.capture(step)
    block.flatten(example)
    return lambda x: block.native(x)[0]


def _relative(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
