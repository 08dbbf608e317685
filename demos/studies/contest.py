"""Contests of optimizers: equal time for all, errors over time and updates, and uses after which a training pays."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

import phi_hybrid as ph
from phi_hybrid.optim import Closure

History = dict[str, list[float]]
"""`{'seconds', 'updates': [...]}` and the errors of every look."""

Phase = tuple[Callable[[], Callable[[float], None]], float]
"""`() -> update`, which sets up and warms up, and the share of the time at which the phase ends; `update(share of the
time used)` is one update."""


def race(
    phases: Iterable[Phase],
    look: Callable[[], dict[str, float]],
    seconds: float,
    looks: int,
    clock: Callable[[], float] = time.process_time,
) -> History:
    """Updates until the time is over or one fails; a failure is an infinite error at the end.

    Args:
        phases: of the training, one after the other.
        look: errors now; the time that it takes does not count.
        seconds: time of all updates.
        looks: about how often errors are looked at, besides the beginning.
        clock: of the updates; by processor time, programs that run beside do not count. `time.perf_counter` for a GPU.
    """
    used, updates, first = 0.0, 0, look()
    history = {"seconds": [0.0], "updates": [0], **{name: [error] for name, error in first.items()}}
    try:
        for make, end in phases:
            update = make()
            while used < end * seconds:
                next_look = min(used + seconds / looks, end * seconds)
                while used < next_look:
                    began = clock()
                    update(used / seconds)
                    used, updates = used + clock() - began, updates + 1
                errors = look()
                require_finite(*errors.values())
                _append(history, used, updates, *errors.values())
    except (ph.NonFiniteError, ph.SolveError) as error:
        print(f"stopped after {updates} updates: {error}")
        _append(history, used, updates, *[math.inf] * len(first))
    return history


def _append(history: History, *values: float) -> None:
    for column, value in zip(history.values(), values):
        column.append(value)


def last(history: History) -> dict[str, float]:
    """Numbers at the end."""
    return {name: values[-1] for name, values in history.items()}


def require_finite(*losses: float) -> None:
    """Raises NonFiniteError unless all are finite."""
    if not all(map(math.isfinite, losses)):
        raise ph.NonFiniteError(f"the loss is {losses[0]}", 0)


def cosine(share: float) -> float:
    """Factor of the learning rate, which falls from 1 to 0 over the time."""
    return (1 + math.cos(math.pi * min(share, 1.0))) / 2


def at_other_rates(name: str, entrant: Any) -> dict[str, Any]:
    """An entrant, a dataclass with a `rate`, at a third, one and three times its learning rate."""
    return {f"{name} at {rate:.1e}": replace(entrant, rate=rate) for rate in (f * entrant.rate for f in (1 / 3, 1, 3))}


def batches(x: torch.Tensor, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Samples in random order, over and over, `size` at a time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(x), generator=generator).split(size):
            if len(chosen) == size:
                yield x[chosen]


def distance_to(target: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """½ Σ (y − y*)² of each sample."""
    return lambda y: ((y - target) ** 2).flatten(1).sum(1) / 2


# --- the other way: each case by itself ---


def seconds_to_reach(closure: Closure, target: float, iterations: int) -> float:
    """Seconds until L-BFGS has brought the loss down to that, where its parameters are left; infinite if it does not."""
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


def uses_to_pay(training_seconds: float, saved_seconds: float) -> float:
    """Uses after which a training is paid back that saves so much in each; infinite if it saves nothing."""
    return training_seconds / saved_seconds if saved_seconds > 0 else math.inf


def seconds_of(network: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> float:
    """Mean time of a call."""
    began = time.perf_counter()
    with torch.no_grad():
        for x in inputs:
            network(x)
    return (time.perf_counter() - began) / len(inputs)


# --- figures ---


def curves(
    histories: dict[str, History], panels: Sequence[tuple[str, str]], spectra: dict[str, torch.Tensor] | None = None
) -> Figure:
    """Errors over seconds or updates, dotted what is held out, and the spectrum of each last Jacobian.

    Args:
        histories: by entrant.
        panels: `(over, of)`, e.g. `("seconds", "loss")`.
        spectra: entrant → singular values, the largest first; no such panel without.
    """
    count = len(panels) + (spectra is not None)
    figure, axes = plt.subplots(1, count, figsize=(4 * count, 3.4), layout="constrained")
    for name, history in histories.items():
        for ax, (over, of) in zip(axes, panels):
            (line,) = ax.semilogy(history[over], history[of], label=name.replace("_", " "))
            if of == "loss":
                ax.semilogy(history[over], history["held_out"], ":", color=line.get_color())
            ax.set(xlabel=over, ylabel="loss (dotted: held out)" if of == "loss" else f"held-out error of {of}")
            if over == "updates":
                ax.set_xscale("symlog", linthresh=10)
        if spectra is not None and name in spectra:
            axes[-1].semilogy((spectra[name] / spectra[name][0]).cpu(), color=line.get_color())
            axes[-1].set(xlabel="number", ylabel="σ / σ_max of the last update")
    axes[0].legend()
    return figure
