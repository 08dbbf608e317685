"""What the `Trainer` adds to updates of a small problem: checks, snapshots, fingerprints, callbacks.

    pytest tests/benchmarks/test_bench_trainer.py -n 0

Forced Burgers, 64 cells, 8 windows, 16 unrolled steps, Adam, three convolutions of 32 channels; ten updates each, by turns.
`bare` is the trainer without snapshots and fingerprints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases.timed import device, there
from phi.torch.flow import PERIODIC, CenteredGrid, Noise, batch, channel

import phi_hybrid as ph
from phi_hybrid.pde.burgers import burgers_step
from phi_hybrid.training import AveragedWeights, Callback, Log
from phi_hybrid.training.snapshot import Snapshot

STEPS, UPDATES = 16, 10


class NoWriter:
    def add_scalar(self, tag: str, value: float, step: int) -> None:
        pass


class Keep(Callback):
    """Looks at what there is to be seen."""

    def after_update(self, trainer: ph.Trainer, loss: float) -> None:
        self.last = trainer.history["loss"][-1]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Conv1d(a, b, 5, padding=2, padding_mode="circular") for a, b in ((2, 32), (32, 32), (32, 1))]
    return torch.nn.Sequential(layers[0], torch.nn.GELU(), layers[1], torch.nn.GELU(), layers[2])


def trajectories() -> ph.Trajectories:
    torch.manual_seed(0)
    vector = channel(vector="x")
    state, force = (CenteredGrid(Noise(batch(trajectory=8), vector), PERIODIC, x=64) * 0.1 for _ in range(2))
    return ph.Trajectories.generate(ph.capture(burgers_step(0.01, 0.02)), state, 64, (force,), progress=False)


def by_hand(solver: ph.HybridSolver, data: ph.Trajectories, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """The shortest loop on native tensors, with no check at all."""
    windows, count = data.windows(STEPS), 0

    def work() -> None:
        nonlocal count
        for _ in range(UPDATES):
            window = windows.shuffled(count, 8, 0).to(device())
            bound, inputs = window.bind(solver), window.step_inputs
            state, loss = bound.state, 0.0
            optimizer.zero_grad()
            for n, target in enumerate(window.targets[0].unbind(1)):
                state = bound.step(*state, *inputs.at(n))
                loss = loss + ((state[0] - target) ** 2).mean() / STEPS
            loss.backward()
            optimizer.step()
            count += 1

    return work


class Bare(ph.Trainer):
    """A trainer without snapshots and fingerprints."""

    def fit(self, updates: int = 1000) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("take", "restore"):
                patch.setattr(Snapshot, name, lambda *args, **settings: None)
            patch.setattr("phi_hybrid.tracing.graph.CapturedGraph.is_fresh", lambda graph: True)
            return super().fit(updates)


def trainer(kind: type[ph.Trainer], data: ph.Trajectories, callbacks: list[Callback]) -> Callable[[], Any]:
    solver = there(ph.HybridSolver(ph.capture(burgers_step(0.01, 0.02)), network()))
    optimizer = torch.optim.Adam(solver.parameters(), 1e-4)
    made = kind(solver, data, ph.Unrolled(STEPS), optimizer=optimizer, callbacks=callbacks, progress=False)
    return lambda: made.fit(made.update + UPDATES)


def test_updates(by_turns: Callable) -> None:
    data = trajectories()
    solver = there(ph.HybridSolver(ph.capture(burgers_step(0.01, 0.02)), network()))
    ph.training.estimate_scales(solver, data)
    ways = {
        "loop by hand": by_hand(solver, data, torch.optim.Adam(solver.parameters(), 1e-4)),
        "bare": trainer(Bare, data, []),
        "Trainer": trainer(ph.Trainer, data, []),
        "Trainer, four callbacks": trainer(ph.Trainer, data, [AveragedWeights(), Log(NoWriter()), Keep(), Callback()]),
    }
    by_turns(f"{UPDATES} updates, 64 cells", ways, rounds=40)
