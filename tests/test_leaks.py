"""Memory that long runs hold on to: steps, captures, updates, files. Slow."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases.memory import anonymous_memory
from cases.small import SmallNet, forced_data, forced_step, line, step
from phi.torch.flow import PERIODIC, CenteredGrid, Field, Noise, diffuse

import phi_hybrid as ph

pytestmark = pytest.mark.slow


def tensors() -> int:
    """Number of torch tensors that Python knows."""
    gc.collect()
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


def assert_no_growth(work: Callable[[], object], rounds: int, megabytes: float) -> None:
    """Compares the memory after a third of the rounds with that after all of them, when caches have filled."""
    kept, used = [], []
    for number in range(rounds):
        work()
        if number + 1 in (rounds // 3, rounds):
            kept.append(tensors())
            used.append(anonymous_memory())
    assert kept[1] <= kept[0] and used[1] - used[0] <= megabytes, f"tensors {kept}, MB {used}"


def test_ten_thousand_steps() -> None:
    block, u = ph.capture(step), line(0, b=4)

    def many() -> None:
        nonlocal u
        for _ in range(100):
            u = block(u)

    assert_no_growth(many, 100, megabytes=2)


def test_ten_thousand_native_steps() -> None:
    block, u = ph.capture(step), line(0, b=4)
    assert_no_growth(lambda: ph.repeat(block, u, 1000), 12, megabytes=2)


def test_a_hundred_captures() -> None:
    """Of new functions, each with a solve, of which none is kept."""
    u = CenteredGrid(Noise(), PERIODIC, x=16, y=16)

    def captured() -> None:
        def implicit(v: Field, rate: float = 0.1) -> Field:
            return diffuse.implicit(v, rate, 0.1)

        assert ph.capture(implicit, u)(u).values.shape.volume == 256

    assert_no_growth(captured, 100, megabytes=8)


def test_a_hundred_signatures_of_one_block() -> None:
    """The cache of a block is bounded."""
    block, size = ph.capture(lambda u: 0.9 * u), 8

    def another() -> None:
        nonlocal size
        size += 1
        block(line(0, cells=size))

    with pytest.warns(RuntimeWarning, match="was captured"):
        assert_no_growth(another, 100, megabytes=8)


def test_a_thousand_updates(tmp_path: Path) -> None:
    data = forced_data()
    solver = ph.HybridSolver(ph.capture(forced_step), SmallNet(2, 1, 1))
    optimizer = torch.optim.Adam(solver.parameters(), 1e-3)
    settings = {"batch_size": 3, "checkpoint": tmp_path / "a.pt", "validation": data[:1], "progress": False}
    trainer = ph.Trainer(solver, data, ph.Unrolled(3), optimizer=optimizer, clip=1.0, **settings)
    assert_no_growth(lambda: trainer.fit(trainer.update + 100), 12, megabytes=2)
