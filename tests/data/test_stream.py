"""Data computed while training: the samples of a stored set, with memory that does not grow."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.memory import anonymous_memory
from cases.small import SmallNet, equal, step
from phi.torch.flow import PERIODIC, CenteredGrid, Field, Noise, Tensor, batch, channel, math
from torch.utils.data import DataLoader

import phi_hybrid as ph
from phi_hybrid.data import Mixture, Stream, Trajectories

STEPS, COUNT = 5, 3


def damped(u: Field, rate: Tensor) -> Field:
    return step(u) * (1 - 0.1 * rate)


fine = ph.capture(damped)


def draw(count: int, cells: int = 16) -> tuple[Field, Tensor]:
    u = CenteredGrid(Noise(batch(trajectory=count), channel(vector="x")), PERIODIC, x=cells)
    return u, math.random_uniform(batch(trajectory=count))


def stream(**settings: Any) -> Stream:
    return Stream(fine, steps=STEPS, **{"draw": draw, "trajectories": COUNT, "coarsen": 2, **settings})


def by_hand(numbers: torch.Tensor, blocks: list[Trajectories], steps: int) -> list[torch.Tensor]:
    """Windows of the stored trajectories of some blocks, cut out one by one."""
    states = torch.cat([b.states[0] for b in blocks])
    per_trajectory = STEPS - steps + 1
    return [states[n // per_trajectory, n % per_trajectory : n % per_trajectory + steps + 1] for n in numbers.tolist()]


# --- samples ---


def test_a_block_is_what_the_reference_makes_of_the_draw() -> None:
    found = stream(seed=3).block(2)
    with torch.random.fork_rng():
        torch.manual_seed(3 * 1_000_003 + 2)
        u, rate = draw(COUNT)
    expected = Trajectories.generate(fine, u, STEPS, (rate,), coarsen=2, progress=False)
    assert equal(found.states, expected.states) and equal(found.inputs, expected.inputs)
    assert found.layouts == expected.layouts and found.inputs[0].unique().numel() == COUNT


@pytest.mark.parametrize("keep, reuse", [(1, 1), (3, 1), (2, 4)])
def test_windows_are_those_of_the_stored_set(keep: int, reuse: int) -> None:
    own = stream(keep=keep, reuse=reuse)
    stored = own.stored(12)
    windows = own.windows(2)
    for update in (0, 1, 2, 3, 8, 1):
        first = update // reuse
        blocks = [stored[COUNT * n : COUNT * (n + 1)] for n in range(first, first + keep)]
        batch_ = windows.shuffled(update, 4, seed=7)
        numbers = torch.randperm(
            COUNT * keep * (STEPS - 1), generator=torch.Generator().manual_seed(7 * 1_000_003 + update)
        )
        assert equal(list(batch_.states[0]), by_hand(numbers[:4], blocks, 2))
        assert batch_.scale == own.scale == stored[: COUNT * keep].scale


def test_each_block_is_computed_once() -> None:
    own = stream(keep=3, reuse=2)
    for update in range(10):
        own.windows(2).shuffled(update, 4, 0)
    assert own.computed == 3 + 4


def test_a_look_at_the_first_trajectories_costs_no_block() -> None:
    """The held ones stay, whenever it comes and whatever comes between."""
    own = stream(keep=3)
    expected = own.block(0).states[0]
    own.computed = 0
    for update in (0, 1, 2, 7, 8):
        own.windows(2).shuffled(update, 4, 0)
        assert torch.equal(own.first.states[0][:COUNT], expected)
    own.at(8), own.at(0), own.at(8)
    assert own.computed == 5 + 4  # blocks 0 … 4 and 7 … 10
    late = stream(keep=3)
    late.at(5), late.first, late.at(6)
    assert late.computed == 3 + 3 + 1


def test_draws_depend_on_seed_and_block_alone() -> None:
    """Whichever generator they use; what is drawn outside goes on as if there had been no stream."""

    def many(count: int) -> tuple[Field, Tensor]:
        rate = random.random() + np.random.random() + float(torch.rand(()))
        return draw(count)[0], math.random_uniform(batch(trajectory=count)) * rate

    own, other = (Stream(fine, many, 2, seed=5) for _ in range(2))
    outside = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    first = own.block(4)
    assert outside == [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    random.random(), np.random.random(), torch.rand(3)
    other.block(1)
    again = other.block(4)
    assert equal(first.states, again.states) and equal(first.inputs, again.inputs)
    assert not equal(first.inputs, own.block(5).inputs)
    assert not equal(first.inputs, Stream(fine, many, 2, seed=6).block(4).inputs)


def test_iteration_gives_whole_blocks_and_workers_share_them() -> None:
    own = stream()
    expected = [own.block(n).states[0] for n in range(4)]
    assert equal([b.states[0] for b in islice(own, 4)], expected)
    loader = DataLoader(stream(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert equal([b.states[0] for b in islice(loader, 4)], expected)


def test_states_alone_and_several_batch_dims() -> None:
    alone = Stream(ph.capture(step), lambda count: draw(count)[0], 2, trajectories=2)
    assert len(alone.block(0)) == 2 and alone.input_layout.children == ()

    def grid(count: int) -> Field:
        return CenteredGrid(Noise(batch(a=count // 2, b=2), channel(vector="x")), PERIODIC, x=8)

    assert len(Stream(ph.capture(step), grid, 2, trajectories=4).block(0)) == 4


# --- training ---


def hybrid() -> ph.HybridSolver:
    return ph.HybridSolver(ph.capture(damped), SmallNet(2, 1, 1), sees=(0,))


def trainer(data: Any, **settings: Any) -> ph.Trainer:
    solver = hybrid()
    optimizer = torch.optim.Adam(solver.parameters(), 1e-2)
    settings = {"batch_size": 2, "progress": False, **settings}
    return ph.Trainer(solver, data, ph.Unrolled(3), optimizer=optimizer, **settings)


def weights(trainer: ph.Trainer) -> list[torch.Tensor]:
    return list(trainer.solver.parameters())


def test_training_is_the_loop_by_hand() -> None:
    own, found = stream(keep=2), trainer(stream(keep=2))
    found.fit(4)
    solver = hybrid()
    ph.training.estimate_scales(solver, own.stored(2))
    optimizer, objective = torch.optim.Adam(solver.parameters(), 1e-2), ph.Unrolled(3)
    for update in range(4):
        window = own.windows(3).shuffled(update, 2, 0)
        optimizer.zero_grad()
        objective.loss(objective.outputs(solver, window), window).backward()
        optimizer.step()
    assert equal(weights(found), list(solver.parameters()))


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    whole = trainer(stream(keep=2, reuse=3))
    whole.fit(10)
    trainer(stream(keep=2, reuse=3), checkpoint=tmp_path / "a.pt").fit(5)
    resumed = trainer(stream(keep=2, reuse=3)).resume(tmp_path / "a.pt")
    resumed.fit(10)
    assert equal(weights(whole), weights(resumed)) and whole.history == resumed.history
    with pytest.raises(ph.StateError, match="another training.*'data'.*after 4 updates"):
        trainer(stream(keep=2, reuse=4)).resume(tmp_path / "a.pt")
    with pytest.raises(ph.StateError, match="another training.*'data'"):
        trainer(stream(keep=2, reuse=3, draw=lambda n: draw(n, 32))).resume(tmp_path / "a.pt")


def test_a_stored_set_of_the_same_seed_trains_alike() -> None:
    """All windows of one block, in another order."""
    own = stream()
    solvers = [trained_on(data) for data in (stream(reuse=10), own.stored(1))]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*solvers))


def trained_on(data: Any) -> list[torch.Tensor]:
    made = trainer(data, batch_size=COUNT * (STEPS - 2))
    made.fit(3)
    return weights(made)


def grown(updates: int) -> float:
    """Memory in MB that the last two thirds of the updates add."""
    windows = stream(keep=4, trajectories=8).windows(2)
    for update in range(updates):
        windows.shuffled(update, 8, 0)
        if update == updates // 3:
            start = anonymous_memory()
    return anonymous_memory() - start


@pytest.mark.parametrize("updates", [90, pytest.param(1500, marks=pytest.mark.slow)])
def test_memory_stays_flat(updates: int) -> None:
    assert grown(updates) <= 2


def test_validation_on_the_stream_itself_is_told() -> None:
    own = stream(keep=2)
    with pytest.warns(UserWarning, match="6 of its trajectories are trained on"):
        trainer(own, validation=own.stored(4))
    trainer(own, validation=stream(seed=1).stored(2))


def test_checkpoints_cost_no_block(tmp_path: Path) -> None:
    """Each of them is told which data it belongs to."""
    own = stream(keep=4)
    trainer(own, checkpoint=tmp_path / "a.pt", checkpoint_every=5).fit(20)
    assert own.computed == 19 + 4


# --- wrong uses ---


def exploding(u: Field, rate: Tensor) -> Field:
    return u / (rate * 0)


def own_generator(count: int) -> tuple[Field, Tensor]:
    return draw(count)[0], math.wrap(np.random.default_rng().random(count), batch("trajectory"))


WRONG = [
    (lambda: stream(draw=own_generator).block(0), ph.StateError, "other numbers for the same seed.*default_rng"),
    (lambda: Stream(fine, 3, 4), ph.StateError, "draw = 3"),
    (lambda: Stream(fine, draw, 0), ph.StateError, "steps = 0"),
    (lambda: stream(reuse=0), ph.StateError, "reuse = 0"),
    (lambda: Stream(fine, lambda n: draw(2), 4).block(0), ph.StateError, r"draw\(8\) gave 2 trajectories"),
    (lambda: Stream(fine, lambda n: draw(n)[0], 4).block(0), ph.StateError, "rate"),
    (lambda: Stream(exploding, draw, 4, seed=1).block(2), ph.DataError, "block 2 of the stream with seed 1.*step 1"),
    (lambda: stream().block(-1), ph.StateError, "number = -1"),
    (lambda: stream().windows(6), ph.DataError, "trajectories of 5.*steps=6"),
    (lambda: trainer(stream(), validation=stream()), ph.StateError, r"validation = Stream.*stored\(4\)"),
    (lambda: Mixture({"a": stream()}), ph.StateError, "Stream"),
    (lambda: ph.evaluate({"fine": fine}, stream()), ph.StateError, "data = Stream"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_wrong_uses(number: int) -> None:
    call, error, message = WRONG[number]
    with pytest.raises(error, match=message):
        call()
