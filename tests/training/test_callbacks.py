"""Callbacks, averaged weights, validation that steers, gradients in parts: against the same by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.small import SmallNet, equal

import phi_hybrid as ph
from phi_hybrid.evaluation import trajectory_errors
from phi_hybrid.training import AveragedWeights, BestWeights, Callback, EarlyStop, Log, Optimizers
from phi_hybrid.training.checkpoint import read_checkpoint, write_checkpoint
from phi_hybrid.training.checks import check_accumulation

Build = Callable[..., ph.Trainer]


@pytest.fixture
def build(block: ph.PhysicsBlock, data: ph.Trajectories) -> Build:
    def make(scheduler: Callable | None = None, optimizer: Callable | None = None, **settings: Any) -> ph.Trainer:
        solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
        chosen = (optimizer or (lambda p: torch.optim.Adam(p, 1e-2)))(solver.parameters())
        schedule = None if scheduler is None else scheduler(chosen)
        settings = {"batch_size": 3, "validation": data[4:], "validate_every": 2, "progress": False, **settings}
        return ph.Trainer(solver, data[:4], ph.Unrolled(2), optimizer=chosen, scheduler=schedule, **settings)

    return make


def weights(trainer: ph.Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.solver.parameters()]


class Noted(Callback):
    """Notes when it is called."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def before_update(self, trainer: ph.Trainer) -> None:
        self.calls.append(("before", trainer.update))

    def after_update(self, trainer: ph.Trainer, loss: float) -> None:
        self.calls.append(("after", trainer.update, loss))

    def after_validation(self, trainer: ph.Trainer, error: float) -> None:
        self.calls.append(("validation", trainer.update, error))

    def after_checkpoint(self, trainer: ph.Trainer, path: str) -> None:
        self.calls.append(("checkpoint", trainer.update, path))


def test_callbacks_are_called_around_updates(build: Build, tmp_path: Path) -> None:
    noted, path = Noted(), str(tmp_path / "a.pt")
    trainer = build(callbacks=[noted], checkpoint=path, checkpoint_every=2)
    history = trainer.fit(2)
    (error,) = history["validation"]["mae"]
    first, second = history["loss"]
    assert noted.calls == [
        ("before", 0),
        ("after", 1, first),
        ("before", 1),
        ("after", 2, second),
        ("validation", 2, error),
        ("checkpoint", 2, path),
        ("checkpoint", 2, path),
    ]
    plain = build()
    plain.fit(2)
    assert equal(weights(plain), weights(trainer))


def test_an_error_in_a_callback_takes_the_update_back(build: Build) -> None:
    class Failing(Callback):
        def after_update(self, trainer: ph.Trainer, loss: float) -> None:
            if trainer.update == 4 and not failed:
                failed.append(1)
                raise OSError("no connection to the logger")

    failed: list[int] = []
    trainer, plain = build(callbacks=[Failing(), AveragedWeights()]), build(callbacks=[AveragedWeights()])
    with pytest.raises(OSError, match="no connection"):
        trainer.fit(6)
    assert trainer.update == 3 == trainer.callbacks[1].updates
    trainer.fit(6), plain.fit(6)
    assert equal(weights(plain), weights(trainer)) and plain.history == trainer.history
    assert equal(plain.callbacks[0].weights, trainer.callbacks[1].weights)


def test_best_weights_are_those_of_the_smallest_validation_error(build: Build, data: ph.Trajectories) -> None:
    best = BestWeights()
    trainer = build(callbacks=[best], optimizer=lambda p: torch.optim.Adam(p, 0.3), validate_every=1)
    curve = trainer.fit(8)["validation"]
    assert best.error == min(curve["mae"]) < curve["mae"][-1]
    assert best.update == curve["update"][curve["mae"].index(best.error)]
    trainer.solver.load_state_dict(best.weights)
    assert float(trajectory_errors(trainer.solver, data[4:], 6)[0].mean()) == best.error


def test_training_stops_when_the_error_falls_no_more(build: Build) -> None:
    trainer = build(callbacks=[EarlyStop(3, by=0.999)], validate_every=1)
    trainer.fit(50)
    assert trainer.update == 4 and "3 validations" in trainer.stopped
    trainer.fit(50)
    assert trainer.update == 4
    steady = build(callbacks=[EarlyStop(3)], validate_every=1)
    steady.fit(10)
    assert steady.update == 10 and steady.stopped is None


def test_without_a_number_of_updates_a_callback_ends_the_training(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    """The progress bar has no total then."""
    trainer = build(callbacks=[EarlyStop(3, by=0.999)], validate_every=1, progress=True)
    trainer.fit(None)
    assert trainer.update == 4 and "3 validations" in trainer.stopped
    shown = capsys.readouterr().err
    assert "4update" in shown and "/" not in shown.replace("update/s", "").replace("s/update", "")
    with pytest.raises(ValueError, match="updates = -1"):
        trainer.fit(-1)


def test_averaged_weights_by_hand(build: Build, data: ph.Trajectories) -> None:
    trainer, average = build(callbacks=[AveragedWeights(0.7)], validate_every=5), None
    for update in range(5):
        trainer.fit(update + 1)
        d = min(0.7, (1 + update) / (10 + update))
        live = weights(trainer)
        average = live if average is None else [d * a + (1 - d) * p for a, p in zip(average, live)]
    trained = weights(trainer)
    with trainer.evaluation_weights() as solver:
        found = [p.detach().clone() for p in solver.parameters()]
        error = float(trajectory_errors(solver, data[4:], 6)[0].mean())
    for own, expected in zip(found, average):
        torch.testing.assert_close(own, expected)
    assert equal(weights(trainer), trained)
    assert trainer.history["validation"]["mae"] == [error]


def test_training_beside_an_average_is_the_same(build: Build) -> None:
    averaged, plain = build(callbacks=[AveragedWeights()]), build()
    assert averaged.fit(7)["loss"] == plain.fit(7)["loss"] and equal(weights(averaged), weights(plain))


def test_schedule_free_optimizers_are_asked_for_their_weights(build: Build, data: ph.Trajectories) -> None:
    class Halved(torch.optim.SGD):
        """Its weights for evaluation are half of those that are trained."""

        def eval(self) -> None:
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.mul_(0.5)

    trainer = build(optimizer=lambda p: Halved(p, 1e-3), validate_every=3)
    (error,) = trainer.fit(3)["validation"]["mae"]
    plain = build(optimizer=lambda p: torch.optim.SGD(p, 1e-3), validate_every=3)
    plain.fit(3)
    assert equal(weights(trainer), weights(plain))
    with torch.no_grad():
        torch._foreach_mul_(list(plain.solver.parameters()), 0.5)
    assert float(trajectory_errors(plain.solver, data[4:], 6)[0].mean()) == error


def test_optimizers_forward_what_schedule_free_ones_are_asked_for() -> None:
    class Noting(torch.optim.SGD):
        calls: list[str] = []

        def eval(self) -> None:
            self.calls.append("eval")

        def train(self) -> None:
            self.calls.append("train")

    one, two = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    both = Optimizers(Noting([one]), torch.optim.SGD([two]))
    both.train(), both.eval()
    assert Noting.calls == ["train", "eval"]


def test_callbacks_resume(build: Build, tmp_path: Path) -> None:
    def make(**settings: Any) -> ph.Trainer:
        return build(callbacks=[BestWeights(), EarlyStop(4), AveragedWeights(0.8)], validate_every=1, **settings)

    whole = make()
    whole.fit(9)
    make(checkpoint=tmp_path / "a.pt").fit(5)
    resumed = make().resume(tmp_path / "a.pt")
    resumed.fit(9)
    assert resumed.history == whole.history
    for own, expected in zip(resumed.callbacks, whole.callbacks):
        a, b = own.state(), expected.state()
        kept = (a.pop("weights", None), b.pop("weights", None))
        assert a == b
        values = [list(w.values()) if isinstance(w, dict) else w or [] for w in kept]
        assert equal(*([t for t in v if isinstance(t, torch.Tensor)] for v in values))
    with pytest.raises(ph.StateError, match="callbacks"):
        build().resume(tmp_path / "a.pt")


def test_the_log_is_the_history(build: Build) -> None:
    class Writer:
        def __init__(self) -> None:
            self.entries: dict[str, list[tuple[int, float]]] = {}

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            self.entries.setdefault(tag, []).append((global_step, scalar_value))

    writer = Writer()
    history = build(callbacks=[Log(writer, every=2)]).fit(5)
    for name in ("loss", "lr", "gradient_norm"):
        assert writer.entries[f"training/{name}"] == [(n, history[name][n]) for n in (0, 2, 4)]
    assert writer.entries["validation/mae"] == list(zip([2, 4], history["validation"]["mae"]))


def test_the_rate_falls_with_the_validation_error(build: Build) -> None:
    def plateau(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.9)

    rates = build(scheduler=plateau, validate_every=3).fit(12)["lr"]
    assert rates == [1e-2] * 6 + [5e-3] * 3 + [2.5e-3] * 3  # no fall to a tenth at updates 6 and 9


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, 0.1), lambda p: torch.optim.LBFGS(p, lr=0.1)])
def test_parts_have_the_gradient_of_the_whole(optimizer: Callable, build: Build) -> None:
    whole, parts = build(optimizer=optimizer, batch_size=6), build(optimizer=optimizer, batch_size=2, accumulate=3)
    a, b = whole.fit(3), parts.fit(3)
    for name in ("loss", "gradient_norm"):
        assert b[name] == pytest.approx(a[name], rel=1e-4)
    for own, expected in zip(weights(parts), weights(whole)):
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-4)


def test_clip_and_skip_look_at_the_whole(build: Build) -> None:
    norms = build(batch_size=6).fit(4)["gradient_norm"]
    history = build(batch_size=2, accumulate=3, clip=sorted(norms)[2]).fit(4)
    assert 0 < len(history["clipped"]) < 4
    assert history["gradient_norm"][0] == pytest.approx(norms[0], rel=1e-5)


def test_parts_draw_random_numbers_of_their_own(block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    class Drawing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.drawn = torch.nn.Parameter(torch.ones(())), []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.drawn.append(float(torch.rand(())))
            return self.scale * x[:, :1]

    network = Drawing()
    solver = ph.HybridSolver(block, network)
    optimizer = torch.optim.SGD(solver.parameters(), 1e-3)
    settings = {"batch_size": 2, "accumulate": 3, "progress": False}
    trainer = ph.Trainer(solver, data, ph.Unrolled(1), optimizer=optimizer, **settings)
    network.drawn.clear()
    trainer.fit(2)
    assert len(set(network.drawn)) == 6


def test_running_statistics_count_the_first_evaluation_only(block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    def statistics(optimizer: Callable, **gradient: Any) -> torch.Tensor:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.BatchNorm1d(2, momentum=0.5), SmallNet(2, 1, 1))
        solver = ph.HybridSolver(block, network)
        objective = ph.Unrolled(4, **gradient)
        ph.Trainer(solver, data, objective, optimizer=optimizer(solver.parameters()), progress=False).fit(1)
        return network[0].running_mean

    expected = statistics(lambda p: torch.optim.SGD(p, 0.0))
    assert expected.abs().max() > 1e-3
    search = lambda p: torch.optim.LBFGS(p, lr=1e-12, max_iter=5)  # noqa: E731
    torch.testing.assert_close(statistics(search), expected)
    for mode in (ph.gradient.Checkpointed(2), ph.gradient.SignConsistent(ph.gradient.Checkpointed(2))):
        torch.testing.assert_close(statistics(lambda p: torch.optim.SGD(p, 0.0), gradient=mode), expected)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"callbacks": BestWeights()}, "callbacks"),
        ({"callbacks": [print]}, "callback"),
    ],
)
def test_settings_out_of_range(settings: dict, named: str, build: Build) -> None:
    with pytest.raises(ph.StateError, match=named):
        build(**settings)


def test_half_inverse_gradients_take_no_parts(build: Build) -> None:
    solver = build().solver
    with pytest.raises(ph.StateError, match="accumulate = 2.*HIG"):
        check_accumulation(2, ph.optim.HIG(solver))


@pytest.mark.parametrize(
    "make", [lambda: EarlyStop(0), lambda: EarlyStop(2, by=-1), lambda: AveragedWeights(1.0), lambda: Log(print)]
)
def test_callbacks_out_of_range(make: Callable) -> None:
    with pytest.raises(ph.StateError):
        make()


def test_evaluation_weights_within_a_validation_leave_the_trained_ones(build: Build, data: ph.Trajectories) -> None:
    class Evaluating(Callback):
        errors: list[float] = []

        def after_validation(self, trainer: ph.Trainer, error: float) -> None:
            with trainer.evaluation_weights() as solver:
                self.errors.append(float(trajectory_errors(solver, data[4:], 6)[0].mean()))

    trainer, plain = build(callbacks=[AveragedWeights(0.99), Evaluating()]), build(callbacks=[AveragedWeights(0.99)])
    trainer.fit(6), plain.fit(6)
    assert equal(weights(trainer), weights(plain)) and trainer.history == plain.history
    assert Evaluating.errors == plain.history["validation"]["mae"]


def test_a_training_that_was_ended_stays_ended_when_it_is_resumed(build: Build, tmp_path: Path) -> None:
    def make() -> ph.Trainer:
        return build(callbacks=[EarlyStop(3, by=0.999)], validate_every=1)

    path, ended = tmp_path / "a.pt", make()
    ended.fit(50)
    ended.save(path)
    again = make().resume(path)
    again.fit(50)
    assert again.update == 4 and again.stopped == ended.stopped
    older = read_checkpoint(path)
    del older["stopped"]
    write_checkpoint(path, older)
    assert make().resume(path).stopped is None


class Unsaveable(Callback):
    def state(self) -> dict[str, Any]:
        return {"function": print}


class Lost(Callback):
    def after_checkpoint(self, trainer: ph.Trainer, path: str) -> None:
        raise ConnectionError("no place to upload to")


@pytest.mark.parametrize("callback", [Unsaveable, Lost])
def test_the_first_error_is_seen_when_saving_fails_too(callback: type, build: Build, tmp_path: Path) -> None:
    class Failing(Callback):
        def after_update(self, trainer: ph.Trainer, loss: float) -> None:
            raise ph.NonFiniteError("the first error", 0)

    trainer = build(callbacks=[Failing(), callback()], checkpoint=tmp_path / "a.pt")
    with pytest.warns(RuntimeWarning, match="could not be saved"), pytest.raises(ph.NonFiniteError, match="the first"):
        trainer.fit(2)


def test_a_network_that_cannot_be_saved_does_not_hide_what_went_wrong(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SmallNet, "get_extra_state", lambda self: print)
    monkeypatch.setattr(SmallNet, "set_extra_state", lambda self, state: None)
    trainer = build(optimizer=lambda p: torch.optim.SGD(p, float("inf")), checkpoint=tmp_path / "a.pt")
    with (
        pytest.warns(RuntimeWarning, match="could not be saved"),
        pytest.raises(ph.NonFiniteError, match="not be kept"),
    ):
        trainer.fit(1)
