"""Optimizers side by side on a control task: equal time, loss over time and updates, break-even."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import torch
from common import save_figures, seed_table, write_metrics
from matplotlib.figure import Figure

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
        """On all training and on held-out samples."""
        return tuple(float(self.loss(self.physics(self.network(x), x), x)) for x in (self.training, self.held_out))


@dataclass(frozen=True)
class Entrant:
    """An optimizer of a network, and its batch size."""

    make: Callable[[torch.nn.Module], torch.optim.Optimizer]
    batch: int


def train(task: Task, entrant: Entrant, seconds: float, seed: int) -> tuple[dict[str, list[float]], Update | None]:
    """Until the time is over or the loss is not finite.

    Returns:
        The history, `{'seconds', 'updates', 'loss', 'held_out': [...]}`, and the last update of optimizers that keep it.
    """
    optimizer = entrant.make(task.network)
    history = {"seconds": [0.0], "updates": [0], **{k: [v] for k, v in zip(("loss", "held_out"), task.losses())}}
    batches, used, updates, next_look = _batches(task.training, entrant.batch, seed), 0.0, 0, 0.0
    while used < seconds and math.isfinite(history["loss"][-1]):
        next_look += seconds / LOOKS
        while used < next_look:
            closure = task.closure(next(batches))
            began = time.perf_counter()
            loss = optimizer.step(closure)
            used += time.perf_counter() - began
            updates += 1
            if not math.isfinite(loss):
                break
        for key, value in zip(history, (used, updates, *task.losses())):
            history[key].append(value)
    return history, getattr(optimizer, "last", None)


def run(make_task: Callable[[int], Task], entrants: dict[str, Entrant], seconds: float, options: Namespace) -> None:
    """The whole demo: `make_task(seed)` for every seed, figures of the first, metrics.json, and a table."""
    began, per_seed = time.perf_counter(), []
    for seed in range(options.seed, options.seed + options.seeds):
        print(f"seed {seed}")
        metrics, drawn = compete(partial(make_task, seed), entrants, seconds, seed)
        per_seed.append(metrics)
        if seed == options.seed:
            save_figures(options.out, {"training": figure(drawn)})
    print(seed_table(per_seed, ["loss", "held_out"]))
    write_metrics(options.out, per_seed, (time.perf_counter() - began) / options.seeds)


def compete(
    make_task: Callable[[], Task], entrants: dict[str, Entrant], seconds: float, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Every entrant trains the same initial network; returns metrics and what `figure` draws."""
    metrics, drawn = {}, {}
    loss, held_out = make_task().losses()
    metrics["source"] = {"loss": loss, "held_out": held_out}
    for name, entrant in entrants.items():
        task = make_task()
        history, last = train(task, entrant, seconds, seed)
        drawn[name] = (history, None if last is None else last.singular_values)
        row = metrics[name] = {key: history[key][-1] for key in ("loss", "held_out", "updates", "seconds")}
        row["ms_per_update"] = 1e3 * row["seconds"] / max(row["updates"], 1)
        row.update(break_even(task, row["held_out"], row["seconds"]))
        print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()))
    return metrics, drawn


def break_even(
    task: Task, target: float, training_seconds: float, uses: int = 4, iterations: int = 400
) -> dict[str, float]:
    """After how many uses the training is paid back, the other way being L-BFGS on the controls of each sample anew.

    Both are to have the network's held-out loss. Without an entry `break_even`, L-BFGS did not get there.
    """
    samples = task.held_out[:uses].split(1)
    direct = [_direct_seconds(task, x, target, iterations) for x in samples]
    began = time.perf_counter()
    with torch.no_grad():
        for x in samples:
            task.network(x)
    own = (time.perf_counter() - began) / uses
    if not all(math.isfinite(d) for d in direct):
        return {}
    mean = sum(direct) / uses
    return {"direct_seconds": mean, "break_even": training_seconds / (mean - own) if mean > own else math.inf}


def _direct_seconds(task: Task, x: torch.Tensor, target: float, iterations: int) -> float:
    """Until L-BFGS has found controls of so low a loss; infinite if it does not."""
    with torch.no_grad():
        controls = torch.zeros_like(task.network(x)).requires_grad_()
        controls.add_(1e-3 * torch.randn(controls.shape, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.LBFGS([controls], max_iter=20, line_search_fn="strong_wolfe")
    closure = Closure(lambda: task.physics(controls, x), lambda y: task.loss(y, x), [controls])
    began = time.perf_counter()
    for _ in range(iterations // 20):
        optimizer.step(closure)
        if float(closure()) <= target:
            return time.perf_counter() - began
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


def _batches(x: torch.Tensor, size: int, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(x), generator=generator).split(size):
            if len(chosen) == size:
                yield x[chosen]
