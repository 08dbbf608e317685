"""Stages of a training: an objective with a number of updates, or a time, and the rate at which they start."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch

from phi_hybrid.bridge.checks import require, require_count, require_instance, require_number
from phi_hybrid.data import Mixture, Stream, Trajectories
from phi_hybrid.steps import Step
from phi_hybrid.training import Callback, Objective, Trainer
from phi_hybrid.training.functions import description, instructions, remembered


@dataclass(frozen=True)
class Stage:
    """One stage of a training, with a rate that falls to zero like half a cosine, lr·(1 + cos πt)/2.

    Args:
        objective: e.g. `Unrolled(4)`.
        updates: number of updates, or
        seconds: time of all updates, without looks at anything else.
        lr: learning rate at the start.
        batch_size: windows per update.
        clip: largest norm of the gradient, `None` for no limit.
        optimizer: called as `optimizer(parameters, lr=lr)`; Adam by default.

    Raises:
        StateError: unless there is either a number of updates or a time; for settings that cannot be.
    """

    objective: Objective
    updates: int | None = None
    seconds: float | None = None
    lr: float = 1e-3
    batch_size: int = 16
    clip: float | None = 1.0
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam

    def __post_init__(self) -> None:
        require_instance("objective", self.objective, Objective, "e.g. Unrolled(4)")
        way_out = "either updates or seconds, e.g. Stage(Unrolled(4), updates=500)"
        require(
            (self.updates is None) != (self.seconds is None), "updates, seconds", (self.updates, self.seconds), way_out
        )
        if self.updates is not None:
            require_count("updates", self.updates)
        else:
            require_number("seconds", self.seconds, above=0)
        require_number("lr", self.lr, above=0)
        require_count("batch_size", self.batch_size)
        if self.clip is not None:
            require_number("clip", self.clip, above=0)
        way_out = "called as optimizer(parameters, lr=lr), e.g. torch.optim.Adam"
        require(callable(self.optimizer), "optimizer", self.optimizer, way_out)

    @cached_property
    def text(self) -> str:
        """The same for the same stage in every process; taken once, since calls may change what functions remember."""
        return description(self)

    def scaled(self, budget: float) -> Stage:
        """The stage with its updates, at least one, and what its objective does at certain updates, or its time, multiplied."""
        objective = self.objective.scaled(budget)
        if self.updates is not None:
            return replace(self, objective=objective, updates=max(1, round(budget * self.updates)))
        return replace(self, objective=objective, seconds=budget * self.seconds)

    def train(
        self,
        solver: Step,
        data: Trajectories | Mixture | Stream,
        seed: int,
        checkpoint: Path,
        label: str | None = None,
    ) -> dict[str, Any]:
        """Trains, or goes on where a checkpoint left off, with a label before the progress bar.

        Returns:
            The history of the trainer, and the `seconds` of all updates.

        Raises:
            NonFiniteError: if the training diverges.
            SolveError: if a linear solve in the physics fails.
            StateError: if the checkpoint is of another training.
        """
        clock = Clock(self.seconds)
        optimizer = self.optimizer(solver.parameters(), lr=self.lr)
        if self.updates is not None:
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.updates)
        else:
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, clock.falling)
        trainer = Trainer(
            solver,
            data,
            self.objective,
            optimizer=optimizer,
            scheduler=scheduler,
            batch_size=self.batch_size,
            clip=self.clip,
            seed=seed,
            checkpoint=checkpoint,
            callbacks=[clock],
            label=label,
        )
        if os.path.exists(checkpoint):
            trainer.resume(checkpoint)
        if not clock.is_over:
            trainer.fit(self.updates)
        return {**trainer.history, "seconds": clock.used}


class Clock(Callback):
    """Measures the time of updates, across interruptions, and ends the training when it is over.

    Args:
        seconds: time for all updates, if limited.

    Attributes:
        used: seconds of all updates so far.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds, self.used, self._began = seconds, 0.0, 0.0

    @property
    def is_over(self) -> bool:
        return self.seconds is not None and self.used >= self.seconds

    def falling(self, update: int) -> float:
        """Factor of the learning rate, whatever the number of the update."""
        return (1 + math.cos(math.pi * min(self.used / self.seconds, 1.0))) / 2

    def before_update(self, trainer: Trainer) -> None:
        self._began = time.perf_counter()

    def after_update(self, trainer: Trainer, loss: float) -> None:
        self.used += time.perf_counter() - self._began
        if self.is_over:
            trainer.stop(f"the time of {self.seconds:g} s is over")

    def state(self) -> dict[str, Any]:
        return {"used": self.used}

    def load(self, state: dict[str, Any]) -> None:
        self.used = state["used"]


def alike(a: Any, b: Any, assumed: frozenset[tuple[int, int]] = frozenset()) -> bool:
    """Whether two settings are the same: values by their parts, functions by what they do and remember."""
    if a is b or (id(a), id(b)) in assumed:
        return True
    if type(a) is not type(b):
        return False
    same = partial(alike, assumed=assumed | {(id(a), id(b))})  # functions may remember themselves
    if isinstance(a, FunctionType):
        return instructions(a) == instructions(b) and same(remembered(a), remembered(b))
    if isinstance(a, partial):
        return same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
    if is_dataclass(a):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping):
        return list(a) == list(b) and same(list(a.values()), list(b.values()))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)
