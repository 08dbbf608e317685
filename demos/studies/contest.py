"""Optimizers side by side on a control task: equal time, loss over time and updates, break-even."""

from __future__ import annotations

import copy
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
import torch
from common import save_figures, seed_table, write_metrics
from matplotlib.figure import Figure

import phi_hybrid as ph
from phi_hybrid.optim import Closure, Update

LOOKS = 40
"""How often the loss is looked at; that time does not count."""


@dataclass(frozen=True)
class Task:
    """A network whose output goes into physics, y = physics(network(x), x), and states to train it with."""

    network: torch.nn.Module
    physics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """`(y, x) -> scalar`, a mean over the samples."""
    training: torch.Tensor
    held_out: torch.Tensor

    def closure(self, x: torch.Tensor) -> Closure:
        """What an optimizer sees of the samples x."""
        return Closure(
            lambda: self.physics(self.network(x), x), lambda y: self.loss(y, x), tuple(self.network.parameters())
        )

    @torch.no_grad()
    def losses(self) -> tuple[float, float]:
        """On training samples, as many as are held out, and on the held-out ones."""
        seen = self.training[: len(self.held_out)]
        return tuple(float(self.loss(self.physics(self.network(x), x), x)) for x in (seen, self.held_out))

    def anew(self) -> Task:
        """The same task with a copy of the network."""
        return replace(self, network=copy.deepcopy(self.network))

    def to(self, device: str) -> Task:
        states = {"training": self.training.to(device), "held_out": self.held_out.to(device)}
        return replace(self, network=self.network.to(device), **states)


@dataclass(frozen=True)
class Entrant:
    """An optimizer of a network, and its batch size."""

    make: Callable[[torch.nn.Module], torch.optim.Optimizer]
    batch: int


def run(make_task: Callable[[int], Task], entrants: dict[str, Entrant], seconds: float, options: Namespace) -> None:
    """The whole demo: `make_task(seed)` for every seed, figures of the first, metrics.json, and a table."""
    began, per_seed = time.perf_counter(), []
    for seed in range(options.seed, options.seed + options.seeds):
        print(f"seed {seed}")
        metrics, drawn = compete(make_task(seed).to(options.device), entrants, seconds, seed)
        per_seed.append(metrics)
        if seed == options.seed:
            save_figures(options.out, {"training": figure(drawn)})
    print(seed_table(per_seed, ["loss", "held_out"]))
    write_metrics(options.out, per_seed, (time.perf_counter() - began) / options.seeds)


def compete(
    start: Task, entrants: dict[str, Entrant], seconds: float, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Every entrant trains a copy of the same network; returns metrics and what `figure` draws."""
    loss, held_out = start.losses()
    metrics, drawn = {"source": {"loss": loss, "held_out": held_out}}, {}
    for name, entrant in entrants.items():
        task = start.anew()
        history, last = train(task, entrant, seconds, seed)
        drawn[name] = (history, None if last is None else last.singular_values)
        row = metrics[name] = {key: history[key][-1] for key in ("loss", "held_out", "updates", "seconds")}
        row["ms_per_update"] = 1e3 * row["seconds"] / max(row["updates"], 1)
        row.update(break_even(task, row["held_out"], row["seconds"]))
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()))
    return metrics, drawn


def train(task: Task, entrant: Entrant, seconds: float, seed: int) -> tuple[dict[str, list[float]], Update | None]:
    """Until the time is over or the training fails; a failure is an infinite loss at the end.

    Returns:
        The history, `{'seconds', 'updates', 'loss', 'held_out': [...]}`, and the last update of optimizers that keep it.
    """
    optimizer, stream = entrant.make(task.network), batches(task.training, entrant.batch, seed)
    history = {"seconds": [0.0], "updates": [0], **{k: [v] for k, v in zip(("loss", "held_out"), task.losses())}}
    used, updates = 0.0, 0
    try:
        _warm_up(task, entrant)
        while used < seconds:
            next_look = min(used + seconds / LOOKS, seconds)
            while used < next_look:
                used += _timed_update(optimizer, task.closure(next(stream)))
                updates += 1
            _append(history, used, updates, *_finite(*task.losses()))
    except (ph.NonFiniteError, ph.SolveError) as error:
        print(f"stopped after {updates} updates: {error}")
        _append(history, used, updates, math.inf, math.inf)
    return history, getattr(optimizer, "last", None)


def _warm_up(task: Task, entrant: Entrant) -> None:
    """An update of a copy, since what is captured and allocated once is no part of the training."""
    task = task.anew()
    entrant.make(task.network).step(task.closure(task.training[: entrant.batch]))


def _timed_update(optimizer: torch.optim.Optimizer, closure: Closure) -> float:
    """Seconds."""
    began = time.perf_counter()
    _finite(float(optimizer.step(closure)))  # waits for the device
    return time.perf_counter() - began


def _append(history: dict[str, list[float]], *values: float) -> None:
    for key, value in zip(history, values):
        history[key].append(value)


def _finite(*losses: float) -> tuple[float, ...]:
    if not all(map(math.isfinite, losses)):
        raise ph.NonFiniteError(f"the loss is {losses[0]}", 0)
    return losses


def break_even(
    task: Task, target: float, training_seconds: float, uses: int = 4, iterations: int = 400
) -> dict[str, float]:
    """After how many uses the training is paid back, the other way being L-BFGS on the controls of each sample anew.

    Both are to have the network's held-out loss. Without an entry `break_even`, the network failed or L-BFGS did not get
    there; it is infinite if L-BFGS is as fast as the network.
    """
    samples = task.held_out[:uses].split(1)
    if not math.isfinite(target):
        return {}
    direct = [_direct_seconds(task, x, target, iterations) for x in samples]
    if not all(math.isfinite(d) for d in direct):
        return {}
    began = time.perf_counter()
    with torch.no_grad():
        for x in samples:
            task.network(x)
    saved = (sum(direct) - (time.perf_counter() - began)) / uses
    mean = sum(direct) / uses
    return {"direct_seconds": mean, "break_even": training_seconds / saved if saved > 0 else math.inf}


def _direct_seconds(task: Task, x: torch.Tensor, target: float, iterations: int) -> float:
    """Until L-BFGS has found controls of so low a loss; infinite if it does not."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        like = task.network(x)
    controls = (0.1 * torch.randn(like.shape, generator=generator)).to(like).requires_grad_()  # 0 may be a saddle
    closure = Closure(lambda: task.physics(controls, x), lambda y: task.loss(y, x), [controls])
    return seconds_to_reach(closure, target, iterations)


def seconds_to_reach(closure: Closure, target: float, iterations: int) -> float:
    """Until L-BFGS has brought the loss down to that, where its parameters are left; infinite if it does not."""
    closure()  # captures
    stops = dict(tolerance_grad=0, tolerance_change=0)
    optimizer = torch.optim.LBFGS(closure.parameters, 1.0, 20, **stops, line_search_fn="strong_wolfe")
    reached: list[tuple[float, list[torch.Tensor]]] = []

    def watched() -> torch.Tensor:
        loss = closure()
        if float(loss) <= target:
            reached.append((time.perf_counter() - began, [p.detach().clone() for p in closure.parameters]))
        return loss

    began = time.perf_counter()
    for _ in range(iterations // 20):
        optimizer.step(watched)
        if reached:
            seconds, found = reached[0]
            for parameter, value in zip(closure.parameters, found):
                parameter.data.copy_(value)
            return seconds
    return math.inf


def figure(drawn: dict[str, Any]) -> Figure:
    """Loss over time and over updates, and the spectrum of each last Jacobian."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    for name, (history, singular_values) in drawn.items():
        for ax, over in zip(axes, ("seconds", "updates")):
            (line,) = ax.semilogy(history[over], history["loss"], label=name)
            ax.semilogy(history[over], history["held_out"], ":", color=line.get_color())
            ax.set(xlabel=over, ylabel="loss (dotted: held out)")
        if singular_values is not None:
            axes[2].semilogy((singular_values / singular_values[0]).cpu(), color=line.get_color())
    axes[1].set_xscale("log")
    axes[2].set(xlabel="number", ylabel="σ / σ_max of the last update")
    axes[0].legend()
    figure.tight_layout()
    return figure


def batches(x: torch.Tensor, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Samples in random order, over and over, `size` at a time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(x), generator=generator).split(size):
            if len(chosen) == size:
                yield x[chosen]
