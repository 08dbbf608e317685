"""Training on mixtures of data sets: against single sets, loops by hand, and itself resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.small import DT, SmallNet, equal, forced_step, line, native_of, step
from phi.torch.flow import Field

import phi_hybrid as ph
from phi_hybrid.data import Mixture
from phi_hybrid.evaluation import trajectory_errors
from phi_hybrid.training import BestWeights, Log, estimate_scales


def reference(u: Field, f: Field) -> Field:
    return 0.9 * step(u) + 2 * DT * f


def make(trajectories: int, steps: int, seed: int) -> ph.Trajectories:
    inputs = (line(seed + 1, b=trajectories, time=steps),)
    return ph.Trajectories.generate(ph.capture(reference), line(seed, b=trajectories), steps, inputs, progress=False)


@pytest.fixture(scope="module")
def block() -> ph.PhysicsBlock:
    return ph.capture(forced_step)


@pytest.fixture(scope="module")
def short() -> ph.Trajectories:
    return make(4, 4, 0)


@pytest.fixture(scope="module")
def long() -> ph.Trajectories:
    return make(3, 9, 2)


Build = Callable[..., ph.Trainer]


@pytest.fixture
def build(block: ph.PhysicsBlock) -> Build:
    def train(data: Any, objective: Any = ph.Unrolled(2), **settings: Any) -> ph.Trainer:  # noqa: B008
        solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
        chosen = torch.optim.Adam(solver.parameters(), 1e-2)
        settings = {"batch_size": 3, "progress": False, **settings}
        return ph.Trainer(solver, data, objective, optimizer=chosen, **settings)

    return train


def weights(trainer: ph.Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.solver.parameters()]


@pytest.mark.parametrize("weight", [None, 0.7])
def test_a_mixture_of_one_set_trains_like_that_set(weight: float | None, build: Build, short: ph.Trajectories) -> None:
    curriculum = ph.Curriculum({0: ph.Unrolled(1), 4: ph.Unrolled(3)})
    mixture = Mixture({"all": short if weight is None else (weight, short)})
    mixed, plain = (build(d, curriculum, validation=d, validate_every=3) for d in (mixture, short))
    a, b = mixed.fit(9), plain.fit(9)
    assert a["loss"] == b["loss"] and equal(weights(mixed), weights(plain))
    assert a["validation"]["mae"] == a["validation"]["mae all"] == b["validation"]["mae"]
    for name in ("input_scale", "output_scale"):
        assert torch.equal(getattr(mixed.solver, name), getattr(plain.solver, name))


@pytest.mark.smoke
@pytest.mark.parametrize("weight", [None, 2.0])
def test_training_on_two_sets_by_hand(
    weight: float | None, build: Build, short: ph.Trajectories, long: ph.Trajectories
) -> None:
    """Windows found by their numbers, losses in units of the deviation of all values; the same to the last bit."""
    mixture = Mixture({"short": short, "long": long if weight is None else (weight, long)})
    trained, by_hand = build(mixture), build(mixture)
    losses, optimizer = [], by_hand.optimizer
    places = [(d, t, s) for d in (short, long) for t in range(len(d)) for s in range(d.steps - 1)]
    windows = mixture.windows(2)
    owners = set()
    for number in range(6):
        chosen = [find(windows, row) for row in windows.shuffled(number, 3, 0).states[0]]
        owners |= {n < 12 for n in chosen}
        parts = [places[n] for n in chosen]
        states = torch.stack([d.states[0][t, s : s + 3] for d, t, s in parts])
        force = torch.stack([d.inputs[0][t, s : s + 2] for d, t, s in parts])
        u, found = states[:, 0], []
        for n in range(2):
            (u,) = native_of(by_hand.solver, u, force[:, n])
            found.append(u)
        loss = (((torch.stack(found, 1) - states[:, 1:]) / mixture.scale[0]) ** 2).sum() / (2 * u.numel())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert owners == {True, False}
    assert trained.fit(6)["loss"] == losses and equal(weights(trained), weights(by_hand))


def find(windows: Any, states: torch.Tensor) -> int:
    return next(n for n in range(len(windows)) if torch.equal(windows[n].states[0][0], states))


def test_scales_count_sets_as_often_as_they_are_drawn(
    block: ph.PhysicsBlock, short: ph.Trajectories, long: ph.Trajectories
) -> None:
    def squares(data: Any) -> tuple[torch.Tensor, torch.Tensor]:
        solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
        estimate_scales(solver, data)
        return solver.input_scale**2, solver.output_scale**2

    for entry, share in ((long, 16 / 43), ((3.0, long), 1 / 4)):  # 16 and 27 windows of one step
        mixed = squares(Mixture({"short": short, "long": entry}))
        for found, a, b in zip(mixed, squares(short), squares(long)):
            torch.testing.assert_close(found, share * a + (1 - share) * b)


def test_resuming_is_exact(build: Build, short: ph.Trajectories, long: ph.Trajectories, tmp_path: Path) -> None:
    data = Mixture({"short": (1.0, short[:3]), "long": (2.0, long[:2])})
    held = Mixture({"short": short[3:], "long": long[2:]})

    def train(**settings: Any) -> ph.Trainer:
        return build(data, validation=held, validate_every=2, callbacks=[BestWeights()], **settings)

    whole = train()
    whole.fit(12)
    train(checkpoint=tmp_path / "a.pt").fit(7)
    resumed = train().resume(tmp_path / "a.pt")
    resumed.fit(12)
    assert resumed.history == whole.history and equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("change", ["weights", "values", "sets"])
def test_another_mixture_is_another_training(
    change: str, build: Build, short: ph.Trajectories, long: ph.Trajectories, tmp_path: Path
) -> None:
    build(Mixture({"short": short, "long": (2.0, long)}), checkpoint=tmp_path / "a.pt").fit(1)
    other = {
        "weights": {"short": short, "long": (3.0, long)},
        "values": {"short": short, "long": (2.0, make(3, 9, 7))},
        "sets": {"long": (2.0, long), "short": short},
    }
    with pytest.raises(ph.StateError, match="data"):
        build(Mixture(other[change])).resume(tmp_path / "a.pt")


def test_validation_has_an_error_for_every_set_and_steers_by_their_mean(
    build: Build, short: ph.Trajectories, long: ph.Trajectories
) -> None:
    class Writer:
        def __init__(self) -> None:
            self.entries: dict[str, list[float]] = {}

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            self.entries.setdefault(tag, []).append(scalar_value)

    best, writer = BestWeights(), Writer()
    held = Mixture({"short": short[3:], "long": (5.0, long[2:])})
    trainer = build(short[:3], validation=held, validate_every=2, callbacks=[best, Log(writer)])
    curves = trainer.fit(4)["validation"]
    errors = {n: float(trajectory_errors(trainer.solver, d, d.steps)[0].mean()) for n, d in held.sets.items()}
    assert curves["update"] == [2, 4]
    assert {name: curve[-1] for name, curve in curves.items() if name != "update"} == {
        "mae": (errors["short"] + errors["long"]) / 2,
        "mae short": errors["short"],
        "mae long": errors["long"],
    }
    assert best.error == min(curves["mae"])
    for name in ("mae", "mae short", "mae long"):
        assert writer.entries[f"validation/{name}"] == curves[name]


def test_rates_follow_the_mean_error(build: Build, short: ph.Trajectories, long: ph.Trajectories) -> None:
    held = Mixture({"short": short[3:], "long": long[2:]})
    trainer = build(short[:3], validation=held, validate_every=1)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(trainer.optimizer)
    trainer.scheduler = schedule
    assert schedule.best > 1e3
    assert min(trainer.fit(3)["validation"]["mae"]) == schedule.best


def test_sets_that_are_too_short_are_named(build: Build, short: ph.Trajectories, long: ph.Trajectories) -> None:
    with pytest.raises(ph.DataError, match=r"6 steps .*\{'short': 4\}"):
        build(Mixture({"short": short, "long": long}), ph.Curriculum({0: ph.Unrolled(2), 5: ph.Unrolled(6)}))


def test_validation_of_another_kind(build: Build, short: ph.Trajectories, long: ph.Trajectories) -> None:
    held = Mixture({"a": long.with_inputs()})
    with pytest.raises(ph.StateError, match="validation data has 0 inputs"):
        build(Mixture({"short": short, "long": long}), validation=held)
    with pytest.raises(ph.StateError, match="Trajectories.*Mixture"):
        build({"short": short, "long": long})


def test_physics_that_fails_on_a_set(short: ph.Trajectories, long: ph.Trajectories) -> None:
    solver = ph.HybridSolver(lambda u, f: u / 0.0, SmallNet(2, 1, 1))
    with pytest.raises(ph.NonFiniteError, match="of set 'short'"):
        estimate_scales(solver, Mixture({"short": short, "long": long}))
