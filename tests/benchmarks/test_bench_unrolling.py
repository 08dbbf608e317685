"""Time and memory of unrolled training against the number of steps, and of checkpointing against the full gradient.

    pytest tests/benchmarks/test_bench_unrolling.py

2D Burgers, 32², captured, two 5×5 convolutions with 32 channels: forward and backward pass, one thread. Ways of a case
are timed in turn, round by round, for 64 steps each; what counts is the shortest of the rounds, which other work on the
machine has disturbed least.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from cases.timed import device, finished, saved_bytes, there
from phi.torch.flow import PERIODIC, Noise, StaggeredGrid, batch

import phi_hybrid as ph
from phi_hybrid.data import Batch
from phi_hybrid.pde.burgers import burgers_step
from phi_hybrid.training.gradient import Checkpointed, Full

HORIZONS, LONGEST, ROUNDS = (4, 8, 16, 32, 64), 64, 7
CHECKPOINTED_TIME, CHECKPOINTED_MEMORY, NON_LINEAR = 1.7, 0.35, 0.1
"""What is aimed at: ratios to the full gradient, and how much the cost per step may vary."""


@pytest.fixture(autouse=True)
def one_thread(two_threads: None) -> None:
    torch.set_num_threads(1)


@cache
def setting() -> tuple[ph.HybridSolver, Batch]:
    torch.manual_seed(0)
    state, force = (there(StaggeredGrid(Noise(batch(trajectory=1)), PERIODIC, x=32, y=32) * 0.1) for _ in range(2))
    physics = ph.capture(burgers_step(0.1, 0.1))
    data = ph.Trajectories.generate(physics, state, LONGEST, (force,), progress=False)
    layers = [torch.nn.Conv2d(4, 32, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(32, 2, 5, padding=2)]
    torch.nn.init.normal_(layers[-1].weight, std=1e-3)
    return there(ph.HybridSolver(physics, torch.nn.Sequential(*layers))), data.whole().to(device())


def iteration(steps: int, mode: Any = Full()) -> Callable[[], Any]:  # noqa: B008
    solver, whole = setting()
    window = Batch(
        tuple(s[:, : steps + 1] for s in whole.states),
        whole.inputs,
        whole.layouts,
        whole.scale,
    )
    objective = ph.Unrolled(steps, gradient=mode)

    def run() -> None:
        solver.zero_grad(set_to_none=True)
        objective.loss(objective.outputs(solver, window), window).backward()

    return run


def repeated(work: Callable[[], Any], times: int) -> Callable[[], Any]:
    return lambda: [work() for _ in range(times)]


def in_turn(benchmark: Any, works: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Least seconds of each way; the benchmark's own figure is that of one round of all."""
    seconds: dict[str, list[float]] = {name: [] for name in works}

    def all_of_them() -> None:
        for name, work in works.items():
            work = finished(work)
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)

    benchmark.pedantic(all_of_them, rounds=ROUNDS, warmup_rounds=1)
    least = {name: min(s[1:]) for name, s in seconds.items()}
    benchmark.extra_info.update(least)
    return least


def report(title: str, figures: dict[str, float], unit: str) -> None:
    first = next(iter(figures.values()))
    print(f"\n{title}: " + ", ".join(f"{n} {v:.3g} {unit} ({v / first:.3f}×)" for n, v in figures.items()))


def test_checkpointing_time(benchmark: Any) -> None:
    ways = {"full": iteration(LONGEST), "checkpointed": iteration(LONGEST, Checkpointed())}
    seconds = in_turn(benchmark, ways)
    report(f"{LONGEST} steps", {n: s * 1e3 for n, s in seconds.items()}, "ms")
    assert seconds["checkpointed"] <= CHECKPOINTED_TIME * seconds["full"]


def test_checkpointing_memory() -> None:
    """Kept states, those between segments, which no hook sees, among them, and the steps of one segment."""
    full, kept = (saved_bytes(iteration(LONGEST, mode)) for mode in (Full(), Checkpointed()))
    kept += (LONGEST // 8 - 1) * sum(s[:, 0].nbytes for s in setting()[1].states)
    segment = saved_bytes(iteration(LONGEST // 8))
    report(f"{LONGEST} steps", {"full": full / 1e6, "checkpointed": (kept + segment) / 1e6, "kept": kept / 1e6}, "MB")
    assert kept + segment <= CHECKPOINTED_MEMORY * full


def test_time_is_linear_in_the_horizon(benchmark: Any) -> None:
    seconds = in_turn(benchmark, {str(n): repeated(iteration(n), LONGEST // n) for n in HORIZONS})
    per_step = {n: s / LONGEST * 1e3 for n, s in seconds.items()}
    report("time per step", per_step, "ms")
    assert max(per_step.values()) <= (1 + NON_LINEAR) * min(per_step.values())


def test_memory_is_linear_in_the_horizon() -> None:
    per_step = {str(n): saved_bytes(iteration(n)) / n / 1e6 for n in HORIZONS}
    report("memory per step", per_step, "MB")
    assert max(per_step.values()) <= (1 + NON_LINEAR) * min(per_step.values())
