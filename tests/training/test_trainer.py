"""Training against hand-written loops; determinism, interruption, and errors."""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.small import SmallNet, equal, forced_step, line, native_of, reference, step
from phi.torch.flow import math, spatial

import phi_hybrid as ph
from phi_hybrid.data import Batch, epoch_generator
from phi_hybrid.training import Objective
from phi_hybrid.training.checkpoint import read_checkpoint, write_checkpoint
from phi_hybrid.training.closure import Closure
from phi_hybrid.training.gradient import Paths, SignConsistent
from phi_hybrid.training.losses import L1, L2, LastStep, Losses
from phi_hybrid.training.processes import Processes

TRAJECTORIES, STEPS = 4, 6


@pytest.fixture(scope="module")
def block() -> ph.PhysicsBlock:
    return ph.capture(forced_step)


@pytest.fixture(scope="module")
def data() -> ph.Trajectories:
    f = line(1, b=TRAJECTORIES, time=STEPS)
    return ph.Trajectories.generate(ph.capture(reference), line(0, b=TRAJECTORIES), STEPS, (f,), progress=False)


Build = Callable[..., ph.Trainer]


@pytest.fixture
def build(block: ph.PhysicsBlock, data: ph.Trajectories) -> Build:
    """Makes everything anew, as in a new process."""

    def make(
        objective: Any = ph.Unrolled(2),  # noqa: B008
        optimizer: Callable = lambda p: torch.optim.Adam(p, 1e-2),
        scheduler: Callable | None = None,
        dropout: float = 0.0,
        weights: int = 0,
        width: int = 4,
        **settings: Any,
    ) -> ph.Trainer:
        solver = ph.HybridSolver(block, SmallNet(2, 1, 1, width=width, seed=weights, dropout=dropout))
        chosen = optimizer(solver.parameters())
        schedule = None if scheduler is None else scheduler(chosen)
        settings = {"batch_size": 3, "progress": False, **settings}
        return ph.Trainer(solver, data, objective, optimizer=chosen, scheduler=schedule, **settings)

    return make


def weights(trainer: ph.Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.solver.parameters()]


class Recorded(Objective):
    """An objective that notes its batches and may interfere."""

    def __init__(
        self, objective: Any, interfere: Callable[[int, torch.Tensor], torch.Tensor] = lambda n, loss: loss
    ) -> None:
        self.inner = ph.Unrolled(objective) if isinstance(objective, int) else objective
        self.steps, self.interfere, self.now = self.inner.steps, interfere, self.inner
        self.batches: list[Batch] = []

    def contributions(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": self.loss(outputs, batch)}

    def at(self, update: int) -> Recorded:
        self.now = self.inner.at(update)
        return self

    def __repr__(self) -> str:
        return repr(self.inner)

    def outputs(self, solver: Any, batch: Batch) -> Any:
        self.batches.append(batch)
        return self.now.outputs(solver, batch)

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        return self.interfere(len(self.batches) - 1, self.now.loss(outputs, batch))


# --- what an update does ---


def test_the_loss_falls(build: Build) -> None:
    history = build(ph.Unrolled(3), batch_size=8).fit(150)
    assert sum(history["loss"][-10:]) < 0.1 * sum(history["loss"][:10])


def adam_by_hand(
    solver: ph.HybridSolver, batches: list[Batch], move: Callable = lambda update, b, u: u, skipped: Sequence[int] = ()
) -> list[float]:
    """Losses of Adam in plain torch on these windows; `move` may change the state that a step starts from."""
    optimizer, losses = torch.optim.Adam(solver.parameters(), 1e-2), []
    for update, b in enumerate(batches):
        u, states = b.states[0][:, 0], []
        for n in range(b.steps):
            (u,) = native_of(solver, move(update, b, u), b.inputs[0][:, n])
            states.append(u)
        loss = (((torch.stack(states, 1) - b.states[0][:, 1:]) / b.scale[0]) ** 2).sum() / (b.steps * u.numel())
        if update not in skipped:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.smoke
def test_training_is_the_loop_by_hand(build: Build) -> None:
    """The same losses and weights to the last bit."""
    recorded = Recorded(3)
    trained, by_hand = build(recorded), build()
    history = trained.fit(7)
    assert history["loss"] == adam_by_hand(by_hand.solver, recorded.batches)
    assert equal(weights(trained), weights(by_hand))
    assert not equal(weights(trained), weights(build()))


def test_every_epoch_visits_every_window_once(build: Build, data: ph.Trajectories) -> None:
    recorded = Recorded(2)
    build(recorded, batch_size=4).fit(10)  # 20 windows: two epochs
    windows = [w.states[0][0] for w in data.windows(2)]
    visited = [
        next(n for n, w in enumerate(windows) if torch.equal(w, row)) for b in recorded.batches for row in b.states[0]
    ]
    assert sorted(visited[:20]) == sorted(visited[20:]) == list(range(20))
    assert visited[:20] != visited[20:] != list(range(20))


def test_small_data_sets_make_small_batches(build: Build) -> None:
    recorded = Recorded(STEPS)
    build(recorded, batch_size=100).fit(2)
    assert [len(b.states[0]) for b in recorded.batches] == [TRAJECTORIES] * 2


def test_schedule_and_history(build: Build) -> None:
    run = build(scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5))
    history = run.fit(5)
    assert history["update"] == [0, 1, 2, 3, 4]
    assert history["lr"] == pytest.approx([1e-2, 1e-2, 5e-3, 5e-3, 2.5e-3])
    assert len(history["loss"]) == len(history["gradient_norm"]) == 5 and history is run.history


def test_scheduler_that_follows_the_loss(build: Build) -> None:
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    run = build(
        optimizer=lambda p: torch.optim.SGD(p, 1e-12),
        scheduler=lambda o: plateau(o, factor=0.5, patience=2, threshold=0.5, eps=0.0),
    )
    run.fit(8)
    assert run.optimizer.param_groups[0]["lr"] < 1e-12


@pytest.mark.parametrize("clip", [None, 1e-3, 1e6])
def test_long_gradients_are_clipped(clip: float | None, build: Build) -> None:
    """With plain SGD of rate 1 the change of the weights is the clipped gradient."""
    run = build(optimizer=lambda p: torch.optim.SGD(p, 1.0), clip=clip)
    before = weights(run)
    norm = run.fit(1)["gradient_norm"][0]
    change = float(sum(((a - b) ** 2).sum() for a, b in zip(before, weights(run)))) ** 0.5
    assert norm > 1e-2
    assert change == pytest.approx(1e-3 if clip == 1e-3 else norm, rel=1e-3)


def test_noise_by_hand(build: Build) -> None:
    """The seed of the training is that of its noise."""
    recorded = Recorded(ph.Unrolled(2, noise=ph.Noise(0.1, "every_step", schedule=ph.training.Ramp(1, 0, 5))))
    trained, by_hand, without = build(recorded, seed=3), build(), build()
    trained.fit(7)

    def move(update: int, b: Batch, u: torch.Tensor) -> torch.Tensor:
        return u + 0.1 * (1 - update / 5) * b.scale[0] * torch.randn(u.shape) if update < 5 else u

    torch.manual_seed(3)
    adam_by_hand(by_hand.solver, recorded.batches, move)
    for a, b in zip(weights(trained), weights(by_hand)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    without.fit(7)
    assert (weights(trained)[0] - weights(without)[0]).norm() > 1e-3


class Draws(Recorded):
    """Notes a random number and the loss of each evaluation, with the update it belongs to."""

    def __init__(self, objective: Any) -> None:
        super().__init__(objective)
        self.noted: list[tuple[int, float, float]] = []
        self.trainer: ph.Trainer | None = None

    def outputs(self, solver: Any, batch: Batch) -> Any:
        self.drawn = float(torch.rand(()))
        return super().outputs(solver, batch)

    def loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        loss = super().loss(outputs, batch)
        self.noted.append((self.trainer.update, self.drawn, float(loss.detach())))
        return loss


def test_every_evaluation_of_a_line_search_sees_the_same_noise(build: Build) -> None:
    draws = Draws(ph.Unrolled(2, noise=ph.Noise(0.3, "every_step")))
    run = build(
        draws, lambda p: torch.optim.LBFGS(p, max_iter=5, line_search_fn="strong_wolfe"), dropout=0.3, batch_size=20
    )
    draws.trainer = run
    history = run.fit(4)
    per_update = [[entry for entry in draws.noted if entry[0] == n] for n in range(4)]
    assert all(len(entries) > 2 for entries in per_update)
    assert [len({drawn for _, drawn, _ in entries}) for entries in per_update] == [1] * 4
    assert len({entries[0][1] for entries in per_update}) == 4
    assert history["loss"] == [entries[0][2] for entries in per_update]
    assert all(entries[-1][2] < entries[0][2] for entries in per_update)  # it went down under this noise


def test_loss_terms_are_recorded(build: Build) -> None:
    """Weighted, at the weights before the update, so that they add up to the loss; those that there are."""
    both = ph.Unrolled(2, Losses({"state": L2(), "end": (0.5, L1(LastStep()))}))
    run = build(ph.Curriculum({0: ph.Unrolled(1), 3: both}), lambda p: torch.optim.LBFGS(p, max_iter=4), batch_size=20)
    history = run.fit(6)
    curves = history["contributions"]
    assert {name: curve["update"] for name, curve in curves.items()} == {"state": [3, 4, 5], "end": [3, 4, 5]}
    parts = [curve["value"] for curve in curves.values()]
    assert [sum(p) for p in zip(*parts)] == pytest.approx(history["loss"][3:], rel=1e-6)
    assert all(value > 0 for part in parts for value in part)


def test_curriculum_is_one_training_after_the_other(build: Build) -> None:
    """The second one goes on with the optimizer and the random state of the first."""
    first, second = ph.Unrolled(1, noise=ph.Noise(0.1)), ph.Unrolled(3)
    run = build(ph.Curriculum({0: first, 4: second}))
    history = run.fit(9)
    stages = build(first)
    early = stages.fit(4)
    settings = dict(optimizer=stages.optimizer, batch_size=3, progress=False)
    after = ph.Trainer(stages.solver, run.data, second, **settings)
    after.update = 4
    late = after.fit(9)
    assert equal(weights(run), weights(stages))
    assert history["loss"] == early["loss"] + late["loss"]


# --- gradients that are too long ---


def spike(at: int, factor: float = 1e4) -> Callable[[int, torch.Tensor], torch.Tensor]:
    return lambda call, loss: loss * factor if call == at else loss


def flat(value: Any) -> list[Any]:
    """The leaves of nested mappings and sequences."""
    if isinstance(value, (dict, list, tuple)):
        return [leaf for v in (value.values() if isinstance(value, dict) else value) for leaf in flat(v)]
    return [value.clone() if isinstance(value, torch.Tensor) else value]


def alike(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True)
    )


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_skipped_update_changes_nothing(optimizer: str, build: Build) -> None:
    run = build(Recorded(2, spike(22)), OPTIMIZERS[optimizer], skip=50)
    run.fit(22)
    before = weights(run), flat(run.optimizer.state_dict())
    history = run.fit(23)
    assert history["skipped"] == [22]
    assert equal(weights(run), before[0])
    assert alike(flat(run.optimizer.state_dict()), before[1])
    run.fit(25)
    assert history["skipped"] == [22] and not equal(weights(run), before[0])
    assert not alike(flat(run.optimizer.state_dict()), before[1])
    assert history["update"] == list(range(25)) == list(range(len(history["loss"])))
    assert history["gradient_norm"][22] > 100 * max(history["gradient_norm"][20:22])
    assert history["loss"][22] > 1e3 * history["loss"][21]


def test_training_with_a_skipped_update_is_the_loop_by_hand(build: Build) -> None:
    recorded = Recorded(2, spike(21))
    trained, by_hand = build(recorded, skip=50), build()
    trained.fit(24)
    adam_by_hand(by_hand.solver, recorded.batches, skipped=[21])
    assert equal(weights(trained), weights(by_hand))


def test_far_trials_of_a_line_search_are_not_skipped(build: Build) -> None:
    """What counts is the gradient at the weights that there are, also in the history."""
    evaluations: list[int] = []

    def interfere(call: int, loss: torch.Tensor) -> torch.Tensor:
        evaluations.append(run.update)
        second = evaluations.count(run.update) == 2
        return loss * 1e4 if run.update == 21 and second else loss

    run = build(
        Recorded(2, interfere), lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=2, max_eval=3), skip=50, batch_size=20
    )
    history = run.fit(22)
    assert evaluations.count(21) > 1 and history["skipped"] == []
    assert max(history["gradient_norm"]) < 50 * min(history["gradient_norm"])


def test_clipped_updates_are_recorded(build: Build) -> None:
    norms = build().fit(10)["gradient_norm"]
    run = build(clip=sorted(norms)[7])
    history = run.fit(10)
    assert history["clipped"] == [n for n, norm in enumerate(history["gradient_norm"]) if norm > run.clip]
    assert 0 < len(history["clipped"]) < 10
    assert build().fit(10)["clipped"] == []


def test_validation_is_recorded(build: Build, data: ph.Trajectories) -> None:
    run = build(validation=data[:2], validate_every=2)
    history = run.fit(4)
    assert history["validation"]["update"] == [2, 4]
    expected = ph.evaluate({"now": run.solver}, data[:2]).summary()["now"]["mae"]
    assert history["validation"]["mae"][1] == pytest.approx(expected, rel=1e-6)
    assert history["validation"]["mae"][0] != history["validation"]["mae"][1]


def test_a_solver_that_is_worse_than_its_physics_is_warned_of(build: Build, data: ph.Trajectories) -> None:
    """With both numbers, as `evaluate` finds them; a solver that is better is not."""
    run = build(validation=data[:2], validate_every=2, optimizer=lambda p: torch.optim.Adam(p, 1.0))
    with pytest.warns(UserWarning, match="makes the solver worse") as caught:
        run.fit(2)
    found = ph.evaluate({"physics": run.solver.physics, "hybrid": run.solver}, data[:2]).summary()
    assert found["hybrid"]["mae"] > found["physics"]["mae"]
    text = str(caught[0].message)
    assert "after 2 updates" in text and "SmallNet" in text and caught[0].filename == __file__
    assert all(f"{row['mae']:.4g}" in text for row in found.values())
    better = build(validation=data[:2], validate_every=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        better.fit(40)
        build().fit(1)  # nothing to compare with
    found = ph.evaluate({"physics": better.solver.physics, "hybrid": better.solver}, data[:2]).summary()
    assert found["hybrid"]["mae"] < found["physics"]["mae"]


def test_validation_does_not_disturb_training(build: Build, data: ph.Trajectories) -> None:
    """Dropout is off while validating: no random numbers are used up, and the mode comes back."""
    plain, validated = build(dropout=0.5), build(dropout=0.5, validation=data[:2], validate_every=1)
    plain.fit(4)
    validated.solver.network.first.eval()
    history = validated.fit(4)
    assert equal(weights(plain), weights(validated))
    assert validated.solver.network.drop.training and not validated.solver.network.first.training
    validated.solver.eval()
    expected = ph.evaluate({"now": validated.solver}, data[:2]).summary()["now"]["mae"]
    assert history["validation"]["mae"][-1] == pytest.approx(expected, rel=1e-6)


def test_scales_are_estimated_unless_they_are_set(build: Build, data: ph.Trajectories) -> None:
    run = build()
    assert run.solver.scaled
    first = run.solver.input_scale.clone()
    ph.Trainer(run.solver, data[:1], ph.Unrolled(1), optimizer=run.optimizer, progress=False)
    assert torch.equal(run.solver.input_scale, first)
    own = ph.HybridSolver(run.solver.physics, SmallNet(2, 1, 1))
    own.set_scales(torch.tensor([2.0, 3.0]), torch.tensor([4.0]))
    ph.Trainer(own, data, ph.Unrolled(1), optimizer=torch.optim.Adam(own.parameters()), progress=False)
    assert own.input_scale.tolist() == [2.0, 3.0] and own.output_scale.tolist() == [4.0]


# --- determinism and interruption ---

FULL = dict(dropout=0.3, scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20), clip=1.0)


def test_seeds_decide(build: Build) -> None:
    a, b, other, other_order = build(**FULL), build(**FULL), build(**FULL, seed=1), build(seed=1)
    histories = [run.fit(6) for run in (a, b, other)]
    assert equal(weights(a), weights(b)) and histories[0] == histories[1]
    assert not equal(weights(a), weights(other))
    no_dropout = build()
    no_dropout.fit(6)
    other_order.fit(6)
    assert not equal(weights(no_dropout), weights(other_order))


def test_the_global_generator_is_left_alone(build: Build) -> None:
    runs = []
    for n in range(2):
        torch.manual_seed(3 + n)
        before = torch.get_rng_state()
        run = build(dropout=0.5)
        run.fit(3)
        assert torch.equal(torch.get_rng_state(), before)
        runs.append(weights(run))
    assert equal(*runs)


def test_fit_in_two_parts(build: Build) -> None:
    whole, parts = build(**FULL), build(**FULL)
    whole.fit(9)
    parts.fit(4)
    parts.fit(9)
    assert equal(weights(whole), weights(parts)) and whole.history == parts.history
    parts.fit(9)
    assert equal(weights(whole), weights(parts))


def test_stopped_and_resumed_is_uninterrupted(build: Build, tmp_path: Path) -> None:
    """Stopped in update 8, two updates after the last checkpoint; everything is made anew, with other first weights."""

    class Stopped(BaseException):
        pass

    def stop(call: int, loss: torch.Tensor) -> torch.Tensor:
        if call == 8:
            raise Stopped
        return loss

    whole = build(**FULL)
    whole.fit(13)
    path = tmp_path / "folder" / "training.pt"
    settings = dict(FULL, checkpoint=path, checkpoint_every=3)
    with pytest.raises(Stopped):
        build(Recorded(2, stop), **settings).fit(13)
    resumed = build(**settings, weights=7)
    torch.manual_seed(99)
    resumed.resume(path)
    assert resumed.update == 8
    history = resumed.fit(13)
    assert equal(weights(whole), weights(resumed))
    assert history == whole.history
    assert [p.name for p in path.parent.iterdir()] == ["training.pt"]


OBJECTIVES = {
    "noise": ph.Unrolled(2, noise=ph.Noise(0.3, "every_step", truncated=2, schedule=ph.training.Ramp(1, 0.5, 20))),
    "curriculum": ph.Curriculum({0: ph.Unrolled(1, noise=ph.Noise(0.2)), 5: ph.training.Pushforward(3)}),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_resumed_training_draws_and_skips_the_same(objective: str, build: Build, tmp_path: Path) -> None:
    """Stopped after 26 updates, between skipped ones: with small steps, gradients are now longer, now shorter."""
    settings = dict(optimizer=lambda p: torch.optim.Adam(p, 1e-4), skip=1.05, batch_size=2)
    whole = build(OBJECTIVES[objective], **settings)
    history = whole.fit(35)
    assert min(history["skipped"]) < 26 < max(history["skipped"]) and len(history["skipped"]) < 12
    build(OBJECTIVES[objective], checkpoint=tmp_path / "a.pt", **settings).fit(26)
    resumed = build(OBJECTIVES[objective], weights=5, **settings)
    torch.manual_seed(99)
    resumed.resume(tmp_path / "a.pt").fit(35)
    assert equal(weights(whole), weights(resumed))
    assert resumed.history == history


def test_finished_training_leaves_a_checkpoint_with_scales(build: Build, tmp_path: Path) -> None:
    run, again = build(checkpoint=tmp_path / "a.pt", checkpoint_every=100), build(weights=3)
    run.solver.set_scales(torch.tensor([2.0, 3.0]), torch.tensor([4.0]))
    run.fit(5)
    assert again.resume(tmp_path / "a.pt") is again
    assert again.update == 5 and equal(weights(run), weights(again))
    assert again.solver.input_scale.tolist() == [2.0, 3.0] and again.solver.output_scale.tolist() == [4.0]


def test_failed_save_leaves_the_old_checkpoint(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, path = build(), tmp_path / "a.pt"
    run.save(path)
    before = path.read_bytes()

    def full_disk(name: str, mode: str) -> Any:
        if mode == "wb":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(name, mode)

    monkeypatch.setattr("phi_hybrid.data.files.open", full_disk, raising=False)
    with pytest.raises(ph.DataError, match="No space left"):
        run.save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_truncated_checkpoint(keep: float, build: Build, tmp_path: Path) -> None:
    run, path = build(), tmp_path / "a.pt"
    run.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    before = weights(run)
    with pytest.raises(ph.DataError, match="a.pt"):
        run.resume(path)
    assert equal(weights(run), before) and run.update == 0


def test_foreign_checkpoint(build: Build, tmp_path: Path) -> None:
    run, path = build(), tmp_path / "a.pt"
    for content in ({"weights": torch.ones(2)}, [1, 2], 3, None):
        path.write_text("update,loss\n") if content is None else torch.save(content, path)
        with pytest.raises(ph.DataError, match="a.pt"):
            run.resume(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(seed=1), "seed"),
        (dict(batch_size=4), "batch_size"),
        (dict(objective=ph.Unrolled(3)), "objective"),
        (dict(clip=2.0), "clip"),
        (dict(skip=5.0), "skip"),
        (dict(objective=ph.Unrolled(2, noise=ph.Noise(0.1))), "objective"),
        (dict(optimizer=lambda p: torch.optim.SGD(p, 1e-2)), "optimizer"),
        (dict(scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2)), "scheduler"),
    ],
)
def test_checkpoint_of_another_training(change: dict, named: str, build: Build, tmp_path: Path) -> None:
    build().save(tmp_path / "a.pt")
    other = build(weights=1, **change)
    before = weights(other)
    with pytest.raises(ph.StateError, match=named):
        other.resume(tmp_path / "a.pt")
    assert equal(weights(other), before)


def test_checkpoint_of_another_network(build: Build, tmp_path: Path) -> None:
    build().save(tmp_path / "a.pt")
    with pytest.raises(ph.StateError, match=r"'layer first': \('Conv1d\(2, 5, .*Conv1d\(2, 4"):
        build(width=5).resume(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_loss_keeps_the_weights(value: float, build: Build) -> None:
    def spoil(call: int, loss: torch.Tensor) -> torch.Tensor:
        return loss * value if call == 3 else loss

    run, good = build(Recorded(2, spoil)), build()
    good.fit(3)
    with pytest.raises(ph.NonFiniteError, match=f"{value} at update 3") as caught:
        run.fit(9)
    assert caught.value.step == 3 and run.update == 3
    assert equal(weights(run), weights(good))


def test_non_finite_gradient_keeps_the_weights(build: Build) -> None:
    """√0 has the finite value 0 and an infinite derivative."""

    def spoil(call: int, loss: torch.Tensor) -> torch.Tensor:
        return loss + torch.sqrt(0 * loss) if call == 2 else loss

    run, good = build(Recorded(2, spoil)), build()
    good.fit(2)
    with pytest.raises(ph.NonFiniteError, match="nan at update 2"):
        run.fit(9)
    assert equal(weights(run), weights(good))


def test_non_finite_loss_in_a_line_search_keeps_the_weights(build: Build) -> None:
    """LBFGS has moved the weights when it asks for the second loss of an update."""

    def spoil(call: int, loss: torch.Tensor) -> torch.Tensor:
        return loss * float("nan") if call == 2 else loss

    run = build(Recorded(2, spoil), optimizer=lambda p: torch.optim.LBFGS(p, max_iter=5))
    before = weights(run)
    with pytest.raises(ph.NonFiniteError, match="at update 0"):
        run.fit(9)
    assert equal(weights(run), before)


def test_the_bar_is_named_by_its_label_or_else_by_the_objective(build: Build, capsys: pytest.CaptureFixture) -> None:
    build(progress=True).fit(1)
    build(progress=True, label="stage 2 of 3").fit(1)
    build(label="silent").fit(1)
    bars = capsys.readouterr().err
    assert "train Unrolled(2): 100%" in bars and "stage 2 of 3: 100%" in bars and "silent" not in bars
    with pytest.raises(ph.StateError, match="label = 2"):
        build(label=2)


def test_settings_out_of_range(build: Build) -> None:
    """A negative clip would turn the gradient round."""
    settings = {"skip": (1.0, float("nan")), "clip": (0.0, -1.0, float("nan"))}
    for name, values in (settings | dict.fromkeys(("batch_size", "validate_every", "checkpoint_every"), (0,))).items():
        for value in values:
            with pytest.raises(ph.StateError, match=f"{name} = {value}"):
                build(**{name: value})


IGNORED = {
    "gradient = ": ph.Unrolled(2, gradient=SignConsistent()),
    r"gradient = Paths\(": ph.Unrolled(2, gradient=Paths(step=0.5, chaining=SignConsistent())),
    r"stages\[5\]\.gradient = ": ph.Curriculum({0: ph.Unrolled(1), 5: ph.Unrolled(2, gradient=SignConsistent())}),
}


@pytest.mark.parametrize("optimizer", [ph.optim.HIG, ph.optim.LevenbergMarquardt])
def test_gradient_modes_that_an_optimizer_would_ignore(optimizer: Any, block: Any, data: ph.Trajectories) -> None:
    """It differentiates the outputs itself, along the paths of the mode."""
    solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
    for named, objective in IGNORED.items():
        with pytest.raises(ph.StateError, match=f"{named}.*{optimizer.__name__}"):
            ph.Trainer(solver, data, objective, optimizer=optimizer(solver), progress=False)
        ph.Trainer(solver, data, objective, optimizer=torch.optim.Adam(solver.parameters()), progress=False)
    along = ph.Unrolled(2, gradient=Paths(network=0))
    ph.Trainer(solver, data, ph.Curriculum({0: along}), optimizer=optimizer(solver), progress=False)


def test_optimizer_of_another_network(build: Build) -> None:
    run, other = build(), build()
    with pytest.raises(ph.StateError, match="4 of the optimizer's 4 parameters"):
        ph.Trainer(run.solver, run.data, ph.Unrolled(1), optimizer=other.optimizer)


def test_too_few_updates_and_too_long_windows(build: Build) -> None:
    with pytest.raises(ph.StateError, match="-1"):
        build().fit(-1)
    with pytest.raises(ph.DataError, match="7 steps"):
        build(ph.Unrolled(STEPS + 1))


def test_data_without_the_inputs_of_the_step() -> None:
    data = ph.Trajectories.generate(step, line(0, b=2), 3, progress=False)
    solver = ph.HybridSolver(forced_step, SmallNet(2, 1, 1))
    optimizer = torch.optim.SGD(solver.parameters(), 1.0)
    with pytest.raises(ph.StateError, match="1 by position"):
        ph.Trainer(solver, data, ph.Unrolled(1), optimizer=optimizer, progress=False)
    solver.set_scales(torch.ones(2), torch.ones(1))
    with pytest.raises(ph.StateError, match="1 by position"):
        ph.Trainer(solver, data, ph.Unrolled(1), optimizer=optimizer, progress=False).fit(1)


def test_random_numbers_on_gpus_follow_update_and_seed(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator of a GPU is another one than that which checkpoints hold."""
    trainer, seeds = build(), []
    batch = trainer.windows.shuffled(0, 2, 0)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeds.append)
    monkeypatch.setattr(trainer, "_device", torch.device("cuda"))
    for update, seed in ((0, 0), (0, 0), (1, 0), (0, 1)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trainer.update = update
            closure = Closure(trainer, trainer.objective, batch)
            for _ in range(2):  # as a line search evaluates
                closure.outputs()
    assert seeds[0] == seeds[1] == seeds[2] == seeds[3] and seeds[4] == seeds[5] and seeds[6] == seeds[7]
    assert len({seeds[0], seeds[4], seeds[6]}) == 3


def test_an_optimizer_need_not_return_the_loss(build: Build) -> None:
    class Silent(torch.optim.SGD):
        def step(self, closure: Callable) -> None:
            with torch.enable_grad():
                closure()
            super().step()
            with torch.enable_grad():
                closure()

    silent, plain = build(optimizer=lambda p: Silent(p, 0.1)), build(optimizer=lambda p: torch.optim.SGD(p, 0.1))
    assert silent.fit(3)["loss"] == plain.fit(3)["loss"]


def test_an_optimizer_that_asks_for_no_gradient(build: Build) -> None:
    class Deaf(torch.optim.SGD):
        def step(self, closure: Callable) -> None:
            super().step()

    with pytest.raises(ph.StateError, match=r"Deaf.step\(closure\) has not called"):
        build(optimizer=lambda p: Deaf(p, 0.1)).fit(1)


def test_half_inverse_gradients_of_a_network_that_is_frozen_in_part_later(
    block: ph.PhysicsBlock, data: ph.Trajectories
) -> None:
    solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
    optimizer = ph.optim.HIG(solver, 0.1, progress=False)
    bias = solver.network.first.bias.requires_grad_(False)
    before = bias.clone()
    trainer = ph.Trainer(solver, data, ph.Unrolled(1), optimizer=optimizer, batch_size=3, progress=False)
    (norm,) = trainer.fit(1)["gradient_norm"]
    moved = [p.grad for p in solver.parameters() if p is not bias]
    assert torch.equal(bias, before) and norm == pytest.approx(sum(float((g**2).sum()) for g in moved) ** 0.5)


Schedules = torch.optim.lr_scheduler


def in_sequence(optimizer: torch.optim.Optimizer, total: int = 5, at: int = 2) -> Schedules.SequentialLR:
    parts = [Schedules.LinearLR(optimizer, total_iters=total), Schedules.ExponentialLR(optimizer, 0.9)]
    return Schedules.SequentialLR(optimizer, parts, [at])


@pytest.mark.parametrize(
    ("then", "now", "named"),
    [
        (
            lambda o: Schedules.CosineAnnealingLR(o, 10),
            lambda o: Schedules.CosineAnnealingLR(o, 40),
            "T_max': (40, 10)",
        ),
        (lambda o: Schedules.MultiStepLR(o, [2, 5]), lambda o: Schedules.MultiStepLR(o, [2, 7]), "((2, 7), (2, 5))"),
        (
            lambda o: Schedules.OneCycleLR(o, 0.1, 10),
            lambda o: Schedules.OneCycleLR(o, 0.1, 20),
            "total_steps': (20, 10)",
        ),
        (Schedules.ReduceLROnPlateau, lambda o: Schedules.ReduceLROnPlateau(o, patience=3), "patience': (3, 10)"),
        (in_sequence, lambda o: in_sequence(o, total=6), "_schedulers[0] total_iters': (6, 5)"),
        (in_sequence, lambda o: in_sequence(o, at=3), "_milestones': ((3,), (2,))"),
    ],
)
def test_checkpoint_of_another_schedule(
    then: Callable, now: Callable, named: str, build: Build, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    build(scheduler=then, checkpoint=path).fit(3)
    with pytest.raises(ph.StateError, match=re.escape(named)):
        build(scheduler=now).resume(path)
    again = build(scheduler=then, checkpoint=path).resume(path)
    again.fit(5)
    assert again.resume(path).update == 5


@pytest.mark.parametrize(
    ("then", "now", "named"),
    [
        (lambda p: torch.optim.Adam(p, 1e-2), lambda p: torch.optim.Adam(p, 1e-4), "optimizer lr': (0.0001, 0.01)"),
        (torch.optim.Adam, lambda p: torch.optim.Adam(p, betas=(0.8, 0.9)), "betas': ((0.8, 0.9), (0.9, 0.999))"),
        (
            lambda p: ph.training.Optimizers(torch.optim.Adam(p, 1e-2)),
            lambda p: ph.training.Optimizers(torch.optim.Adam(p, 1e-3)),
            "optimizer lr': (0.001, 0.01)",
        ),
    ],
)
def test_checkpoint_of_another_rate(then: Callable, now: Callable, named: str, build: Build, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    build(optimizer=then, checkpoint=path).fit(2)
    with pytest.raises(ph.StateError, match=re.escape(named)) as refused:
        build(optimizer=now).resume(path)
    solver = build().solver
    exec(str(refused.value).rpartition(": ")[2], {"solver": solver, "torch": torch})  # the way out that it names
    assert equal(list(solver.parameters()), list(build(optimizer=then).resume(path).solver.parameters()))


def test_older_checkpoints_do_not_know_their_rates(build: Build, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    build(checkpoint=path).fit(2)
    older = read_checkpoint(path)
    older["settings"] = {name: v for name, v in older["settings"].items() if not name.startswith("optimizer ")}
    write_checkpoint(path, older)
    assert build(optimizer=lambda p: torch.optim.Adam(p, 1e-3)).resume(path).update == 2


def test_how_an_optimizer_computes_may_change(build: Build, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    build(checkpoint=path).fit(2)
    assert build(optimizer=lambda p: torch.optim.Adam(p, 1e-2, foreach=False)).resume(path).update == 2


def test_validation_with_inputs_that_the_solver_does_not_take(build: Build, data: ph.Trajectories) -> None:
    foreign = data[:2].with_inputs(math.wrap([1.0, 2.0, 3.0], spatial("y")))
    with pytest.raises(ph.StateError, match=r"validation data.*y=3.*grid"):
        build(validation=foreign)


def test_validation_with_other_inputs_that_the_solver_takes(build: Build, data: ph.Trajectories) -> None:
    """They are tried without a trace."""
    torch.manual_seed(5)
    expected, uniform = torch.rand(3), data[:2].with_inputs(math.wrap(0.5))
    torch.manual_seed(5)
    tried, plain = build(validation=uniform, validate_every=2), build()
    assert torch.equal(torch.rand(3), expected)
    assert tried.fit(2)["loss"] == plain.fit(2)["loss"] and len(tried.history["validation"]["mae"]) == 1


def test_callbacks_that_will_see_no_validation_are_warned_of(build: Build, data: ph.Trajectories) -> None:
    def warned(updates: int, **settings: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            build(validation=data[:1], **settings).fit(updates)
        return [str(w.message) for w in caught if "validate_every" in str(w.message)]

    (message,) = warned(2, callbacks=[ph.training.BestWeights()], validate_every=3)
    assert "BestWeights will see no validation error in 2 updates" in message
    assert not warned(2, callbacks=[ph.training.BestWeights()], validate_every=2)
    assert not warned(2, validate_every=3) and not warned(0, callbacks=[ph.training.BestWeights()])


def test_batches_that_become_smaller_are_warned_of(build: Build) -> None:
    windows = TRAJECTORIES * (STEPS - 1)
    with pytest.warns(
        UserWarning, match=f"batch_size = 1000, accumulate = 9: .* {windows} .* = {windows}, accumulate = 1 "
    ):
        build(batch_size=1000, accumulate=9)
    with pytest.warns(UserWarning, match="accumulate = 100: .* batch_size = 5, accumulate = 4 are taken"):
        build(batch_size=5, accumulate=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(batch_size=5, accumulate=4)


@pytest.mark.parametrize("seed", [10**14, 2**64, -(10**30)])
def test_seeds_may_be_long(seed: int, build: Build) -> None:
    first = build(seed=seed).fit(2)["loss"]
    assert first == build(seed=seed).fit(2)["loss"] != build(seed=seed + 1).fit(2)["loss"]
    assert 0 <= SeededProcess().seed_for(seed, 10**6) < 2**64


class SeededProcess(Processes):
    """The last of many."""

    def __init__(self) -> None:
        self.rank, self.count = 1023, 1024


def test_long_seeds_leave_short_ones_what_they_are() -> None:
    for seed in (0, 5, -3):
        expected = torch.Generator().manual_seed(seed * 1_000_003 + 7)
        assert epoch_generator(seed, 7).initial_seed() == expected.initial_seed()
