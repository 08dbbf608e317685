"""A training that is interrupted or fails is left as after its last update, and goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from cases.full_disk import FullDisk
from cases.small import SmallNet, equal, forced_step, line, step
from phi.torch.flow import Field, math

import phi_hybrid as ph
from phi_hybrid.data import Batch
from phi_hybrid.training import Objective
from phi_hybrid.training.diagnosis import first_non_finite

UPDATES = 24


class Normalised(torch.nn.Module):
    """A network with running statistics and random numbers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.network = SmallNet(2, 1, 1, seed=seed, dropout=0.2)
        self.norm = torch.nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(self.norm(x))


def build(block: ph.PhysicsBlock, data: ph.Trajectories, seed: int = 0, **settings: Any) -> ph.Trainer:
    solver = ph.HybridSolver(block, Normalised(seed))
    optimizer = torch.optim.Adam(solver.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    settings = {
        "objective": ph.Unrolled(2, noise=ph.Noise(0.1)),
        "clip": 1.0,
        "skip": 20,
        "progress": False,
        **settings,
    }
    objective = settings.pop("objective")
    validation = {"validation": data[:1], "validate_every": 5}
    return ph.Trainer(
        solver, data, objective, optimizer=optimizer, scheduler=scheduler, batch_size=3, **validation, **settings
    )


def whole(block: ph.PhysicsBlock, data: ph.Trajectories) -> ph.Trainer:
    trainer = build(block, data)
    trainer.fit(UPDATES)
    return trainer


def assert_same(trainer: ph.Trainer, expected: ph.Trainer) -> None:
    assert equal(tensors(trainer), tensors(expected)) and trainer.history == expected.history


def tensors(trainer: ph.Trainer) -> list[torch.Tensor]:
    return [t for t in trainer.solver.state_dict().values() if isinstance(t, torch.Tensor)]


class Watched(Objective):
    """An objective that does something when it is asked for the n-th time."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self.inner = ph.Unrolled(2, noise=ph.Noise(0.1))
        self.steps, self.left, self.act = self.inner.steps, number, act

    def at(self, update: int) -> Watched:
        return self

    def outputs(self, solver: Any, batch: Batch) -> Any:
        self.left -= 1
        if self.left == -1:
            self.act()
        return self.inner.outputs(solver, batch)

    def contributions(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return self.inner.contributions(outputs, batch)

    def __repr__(self) -> str:
        return repr(self.inner)


class Interrupt:
    """Counts calls of functions, those of C included, and raises KeyboardInterrupt in one of them, wherever it is."""

    def __init__(self, at: float = float("inf")) -> None:
        self.calls, self.at = 0, at

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt

    def again(self, ignored: Any) -> None:
        """What is raised while Python tidies up a generator is ignored; a call soon after, not in here, raises it."""
        self.at = self.calls + 10
        sys.setprofile(self)  # which Python unsets when it raises

    def __enter__(self) -> Interrupt:
        self.hook, sys.unraisablehook = sys.unraisablehook, self.again
        sys.setprofile(self)
        return self

    def __exit__(self, *error: Any) -> None:
        sys.setprofile(None)
        sys.unraisablehook = self.hook


def test_interrupts_at_twenty_moments(block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    whole(block, data)
    expected, interrupted = build(block, data), 0
    with Interrupt() as counted:
        expected.fit(UPDATES)
    for moment in range(20):
        trainer = build(block, data)
        try:
            with Interrupt(at=int(counted.calls * (moment + 0.5) / 20)):
                trainer.fit(UPDATES)
        except KeyboardInterrupt:
            interrupted += 1
        trainer.fit(UPDATES)
        assert_same(trainer, expected)
    assert interrupted == 20


@pytest.mark.parametrize("number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signals_wait_for_the_end_of_the_update(
    number: int, error: type, block: ph.PhysicsBlock, data: ph.Trajectories, tmp_path: Path
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    expected = whole(block, data)
    for moment in range(20):
        path = tmp_path / f"{moment}.pt"
        trainer = build(block, data, checkpoint=path, objective=Watched(moment, lambda: os.kill(os.getpid(), number)))
        with pytest.raises(error):
            trainer.fit(UPDATES)
        assert trainer.update == moment + 1
        resumed = build(block, data, seed=3).resume(path)
        for run in (trainer, resumed):
            run.fit(UPDATES)
            assert_same(run, expected)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{m}.pt" for m in range(20))


def test_a_second_signal_does_not_wait(block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    expected, trainer = whole(block, data), build(block, data, objective=Watched(7, twice))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(UPDATES)
    assert trainer.update == 7
    trainer.fit(UPDATES)
    assert_same(trainer, expected)


def test_handlers_of_the_program_stay(block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    try:
        build(block, data, objective=Watched(2, lambda: os.kill(os.getpid(), signal.SIGTERM))).fit(4)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert calls == [1]


@pytest.mark.parametrize("moment", range(5))
def test_full_disks_at_five_moments(
    moment: int, block: ph.PhysicsBlock, data: ph.Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of update 5, 10, 15, 20 or 24 meets a full disk; later there is room again."""
    saved, path = 0, tmp_path / "a.pt"

    def opened(name: str, mode: str) -> Any:
        nonlocal saved
        saved += mode == "wb"
        full = mode == "wb" and saved > moment
        return FullDisk(open(name, mode), room=3000 + 2000 * moment) if full else open(name, mode)

    trainer = build(block, data, checkpoint=path, checkpoint_every=5)
    with monkeypatch.context() as patch:
        patch.setattr("phi_hybrid.data.files.open", opened, raising=False)
        with pytest.warns(RuntimeWarning, match="No space left") if moment < 4 else contextlib.nullcontext():
            with pytest.raises(ph.DataError, match="No space left"):
                trainer.fit(UPDATES)
    last = (0, 5, 10, 15, 20)[moment]
    assert path.exists() == (moment > 0) and trainer.update == min(last + 5, UPDATES)
    resumed = build(block, data, seed=3 if moment else 0, checkpoint=path, checkpoint_every=5)
    if moment:
        assert resumed.resume(path).update == last
    for run in (trainer, resumed):
        run.fit(UPDATES)
        assert_same(run, whole(block, data))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_any_error_leaves_the_last_update(block: ph.PhysicsBlock, data: ph.Trajectories, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("the network drive is gone")

    expected = whole(block, data)
    trainer = build(block, data, objective=Watched(9, fail), checkpoint=tmp_path / "a.pt")
    with pytest.raises(OSError, match="network drive"):
        trainer.fit(UPDATES)
    assert trainer.update == 9 == build(block, data).resume(tmp_path / "a.pt").update
    trainer.fit(UPDATES)
    assert_same(trainer, expected)


def test_a_validation_that_fails_leaves_the_mode(
    block: ph.PhysicsBlock, data: ph.Trajectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while some modules are in evaluation mode, even before the validation could put them back."""

    def interrupted(solver: torch.nn.Module, *args: Any) -> None:
        for module in list(solver.modules())[::2]:
            module.training = False
        raise KeyboardInterrupt

    expected, trainer = whole(block, data), build(block, data)
    with monkeypatch.context() as patch:
        patch.setattr("phi_hybrid.training.validation.trajectory_errors", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(UPDATES)
    assert trainer.update == 4
    trainer.fit(UPDATES)
    assert_same(trainer, expected)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from pathlib import Path
from cases.small import forced_data, forced_step
from training import test_interruption as t
import phi_hybrid as ph
data = forced_data()
trainer = t.build(ph.capture(forced_step), data, checkpoint={path!r}, checkpoint_every=1)
if Path({path!r}).exists():
    trainer.resume({path!r})
print("ready", flush=True)
trainer.fit({updates})
"""


@pytest.mark.parametrize("moments", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_processes_are_resumed(
    moments: int, block: ph.PhysicsBlock, data: ph.Trajectories, tmp_path: Path
) -> None:
    path, tests = tmp_path / "a.pt", str(Path(__file__).parent.parent)
    script = SCRIPT.format(tests=tests, path=str(path), updates=UPDATES)
    for moment in range(moments):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.03 * (moment + 1))
        process.kill()
        process.wait()
    trainer = build(block, data, seed=5 if path.exists() else 0, checkpoint=path)
    if path.exists():
        trainer.resume(path)
    trainer.fit(UPDATES)
    assert_same(trainer, whole(block, data))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


# --- NaN ---


def test_non_finite_weights_of_the_last_update_are_not_saved(
    block: ph.PhysicsBlock, data: ph.Trajectories, tmp_path: Path
) -> None:
    solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
    torch._foreach_mul_([p.data for p in solver.parameters()], 1e3)
    optimizer = torch.optim.SGD(solver.parameters(), 3e38)
    trainer = ph.Trainer(
        solver, data, ph.Unrolled(1), optimizer=optimizer, checkpoint=tmp_path / "a.pt", progress=False
    )
    before = [t.clone() for t in tensors(trainer)]
    with pytest.raises(ph.NonFiniteError, match="largest weight after the update is (inf|nan) at update 0"):
        trainer.fit(1)
    assert equal(tensors(trainer), before)
    saved = torch.load(tmp_path / "a.pt")["solver"]
    assert all(t.isfinite().all() for t in saved.values() if isinstance(t, torch.Tensor))


def broken_physics(u: Field, f: Field) -> Field:
    return math.sqrt(step(u) - 100.0)


class BrokenNetwork(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] * self.weight / 0


@pytest.mark.parametrize("culprit", ["physics", "network"])
def test_messages_name_who_made_it(culprit: str, block: ph.PhysicsBlock, data: ph.Trajectories, tmp_path: Path) -> None:
    physics = ph.capture(broken_physics, check=False) if culprit == "physics" else block
    solver = ph.HybridSolver(physics, BrokenNetwork() if culprit == "network" else SmallNet(2, 1, 1))
    solver.set_scales(torch.ones(2), torch.ones(1))
    optimizer = torch.optim.Adam(solver.parameters())
    trainer = ph.Trainer(
        solver, data, ph.Unrolled(3), optimizer=optimizer, checkpoint=tmp_path / "a.pt", progress=False
    )
    with pytest.raises(
        ph.NonFiniteError, match=f"unrolled step 1 of 3, window 0, tensor 0 .*the {culprit} made it"
    ) as e:
        trainer.fit(1)
    assert e.value.step == 0
    saved = torch.load(tmp_path / "a.pt.nonfinite", weights_only=True)
    assert saved["states"][0].shape[1] == 4 and set(saved["solver"]) == set(solver.state_dict())


def test_a_full_disk_does_not_hide_what_went_wrong(
    block: ph.PhysicsBlock, data: ph.Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = ph.HybridSolver(block, BrokenNetwork())
    optimizer = torch.optim.Adam(solver.parameters())
    trainer = ph.Trainer(solver, data, ph.Unrolled(2), optimizer=optimizer, batch_size=2, accumulate=2, progress=False)
    trainer.checkpoint = tmp_path / "missing" / "a.pt"
    monkeypatch.setattr(
        "phi_hybrid.data.files.open",
        lambda name, mode: FullDisk(open(name, mode), room=10) if mode == "wb" else open(name, mode),
        raising=False,
    )
    with pytest.warns(RuntimeWarning, match="could not be saved.*No space left"):
        with pytest.raises(ph.NonFiniteError, match="the network made it.*could not be kept.*No space left"):
            trainer.fit(1)


def test_windows_are_counted_over_the_parts_of_an_update(block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
    batch = data.windows(2).shuffled(0, 4, 0)
    batch.states[0][3, 0, 2] = 3e38  # grows beyond all bounds in the first step
    assert "window 3, tensor 0" in first_non_finite(solver, batch, parts=2)
    assert first_non_finite(solver, batch, parts=2) == first_non_finite(solver, batch)


# --- resume ---


def test_resume_is_all_or_nothing(block: ph.PhysicsBlock, data: ph.Trajectories, tmp_path: Path) -> None:
    build(block, data, checkpoint=tmp_path / "a.pt").fit(3)
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    state["optimizer"]["param_groups"] = []
    torch.save(state, tmp_path / "b.pt")
    trainer = build(block, data, seed=4)
    before = [t.clone() for t in tensors(trainer)]
    with pytest.raises(ph.StateError, match="another solver or optimizer"):
        trainer.resume(tmp_path / "b.pt")
    assert equal(tensors(trainer), before) and trainer.update == 0


@pytest.mark.parametrize(
    "what",
    [
        "data",
        "physics",
        "coupling",
        "what functions of the coupling do",
        "features",
        "projection",
        "layers",
        "layer 0.first",
        "what functions of the objective do",
    ],
)
def test_checkpoints_of_other_data_solvers_and_functions_are_refused(
    what: str, block: ph.PhysicsBlock, data: ph.Trajectories, tmp_path: Path
) -> None:
    def make(other: bool) -> ph.Trainer:
        changed = what if other else None
        physics = ph.capture(lambda u, f: forced_step(u, 1.02 * f)) if changed == "physics" else block
        factor = 2.0 if changed == "what functions of the coupling do" else 1.0
        own = ph.coupling.After(lambda u, p, c: tuple(a + factor * b for a, b in zip(p, c)))
        coupling = ph.coupling.Multiplicative() if changed == "coupling" else own
        activation = torch.nn.ReLU() if changed == "layers" else torch.nn.Tanh()
        network = torch.nn.Sequential(SmallNet(3, 1, 1), activation)
        if changed == "layer 0.first":
            network[0].first.padding_mode = "circular"
        seen = line(2).values if changed == "features" else line(1).values
        project = (lambda u: 0.5 * u) if changed == "projection" else (lambda u: u)
        solver = ph.HybridSolver(physics, network, coupling, features=(seen,), project=project)
        used = data[[1, 0, 2, 3]] if changed == "data" else data
        optimizer = torch.optim.Adam(solver.parameters())
        weight = 2.0 if changed == "what functions of the objective do" else 1.0
        objective = ph.Unrolled(2, ph.losses.Losses({"size": lambda states, batch: weight * states[0].square().mean()}))
        return ph.Trainer(solver, used, objective, optimizer=optimizer, progress=False)

    make(False).save(tmp_path / "a.pt")
    make(False).resume(tmp_path / "a.pt")
    with pytest.raises(ph.StateError, match=f"another training; now and then: .*'{what}'"):
        make(True).resume(tmp_path / "a.pt")


def test_older_checkpoints_name_neither_data_nor_physics(
    block: ph.PhysicsBlock, data: ph.Trajectories, tmp_path: Path
) -> None:
    build(block, data, checkpoint=tmp_path / "a.pt").fit(2)
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    for name in ("data", "physics", "coupling"):
        del state["settings"][name]
    torch.save(state, tmp_path / "b.pt")
    assert build(block, data).resume(tmp_path / "b.pt").update == 2
