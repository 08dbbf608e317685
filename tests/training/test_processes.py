"""Training in two processes under torchrun: the training of one process, and files that both can go on from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.small import SmallNet, equal, forced_data, forced_step

import phi_hybrid as ph
from phi_hybrid.optim import PCGrad
from phi_hybrid.training import Callback
from phi_hybrid.training.closure import Closure
from phi_hybrid.training.processes import Processes

SCRIPT = """
import sys, os, signal, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from training import test_processes as t
torch.manual_seed(int(os.environ["RANK"]))
getattr(t, {name!r})({folder!r})
"""
"""Says nothing of processes."""


def build(precision: int = 64, seed: int | None = 0, **settings: Any) -> ph.Trainer:
    data = forced_data(4)
    if precision == 64:
        states, inputs = (tuple(t.double() for t in part) for part in (data.states, data.inputs))
        data = replace(data, states=states, inputs=inputs)
    torch.manual_seed(torch.initial_seed() if seed is None else seed)
    network = torch.nn.Sequential(SmallNet(2, 1, 1, seed=torch.initial_seed() % 1000), torch.nn.BatchNorm1d(1))
    network.eval()  # normalises by what it has seen, as nothing else is the same for a batch and its parts
    solver = ph.HybridSolver(ph.capture(forced_step), network.double() if precision == 64 else network)
    optimizer = torch.optim.Adam(solver.parameters(), 1e-2)
    settings = {"batch_size": 4, "clip": 0.5, "validation": data[:1], "validate_every": 4, **settings}
    two = ph.losses.Losses({"state": ph.losses.L2(), "size": lambda states, batch: (states[0] ** 2).mean()})
    objective = ph.Unrolled(2, losses=two) if settings.get("combine") else ph.Unrolled(2)
    return ph.Trainer(solver, data, objective, optimizer=optimizer, progress=False, **settings)


def launch(name: str, folder: Path) -> str:
    """Output of two processes that call a function of this module."""
    file, tests = folder / "script.py", str(Path(__file__).parent.parent)
    file.write_text(SCRIPT.format(tests=tests, name=name, folder=str(folder)))
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    here = os.pathsep.join([tests, str(Path(tests).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    run = subprocess.run([*command, str(file)], env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def trained(trainer: ph.Trainer) -> dict[str, Any]:
    return {"weights": trainer.solver.state_dict(), "history": trainer.history}


class FirstGradient(Callback):
    def after_update(self, trainer: ph.Trainer, loss: float) -> None:
        if trainer.update == 1:
            self.gradient = [p.grad.clone() for p in trainer.solver.parameters()]


def member(seed: int) -> ph.HybridSolver:
    """Trained alone."""
    trainer = build(32, seed, batch_size=3)  # which two processes could not share
    trainer.fit(2)
    return trainer.solver


def half_failing(item: int) -> Any:
    if item == 1:
        raise ValueError("bad luck")
    return (lambda: None) if item == 2 else ph.training.parallel_map(abs, [-item, item])


def map_in_both(folder: str) -> None:
    rank = os.environ["RANK"]
    solvers = ph.training.parallel_map(member, range(3))
    torch.save([s.state_dict() for s in solvers], f"{folder}/members_{rank}.pt")
    together = build(32)
    try:
        ph.training.parallel_map(half_failing, range(4))
    except ph.training.TaskError as error:
        torch.save((error.results, error.failed, str(error)), f"{folder}/failed_{rank}.pt")
    try:
        ph.training.parallel_map(lambda _: together.fit(2), range(2))
    except ph.training.TaskError as error:
        assert "make solver and trainer in the function" in str(error)


def train_in_both(folder: str) -> None:
    rank = os.environ["RANK"]
    for precision in (64, 32):
        first, seed = FirstGradient(), None if precision == 64 else 0
        trainer = build(precision, seed, checkpoint=f"{folder}/{precision}.pt", callbacks=[first], clip=None)
        torch.save(trainer.solver.state_dict(), f"{folder}/first{precision}_{rank}.pt")
        trainer.fit(8)
        torch.save(trained(trainer) | {"gradient": first.gradient}, f"{folder}/{precision}_{rank}.pt")
    combined = build(64, combine=PCGrad())
    combined.fit(3)
    torch.save(trained(combined), f"{folder}/combined_{rank}.pt")
    map_in_both(folder)
    one = build(32, checkpoint=f"{folder}/one.pt").resume(f"{folder}/one.pt")
    one.fit(8)
    torch.save(trained(one), f"{folder}/resumed_{rank}.pt")


def test_two_processes_are_one(tmp_path: Path) -> None:
    alone = build(32, checkpoint=tmp_path / "one.pt")
    alone.fit(5)
    launch("train_in_both", tmp_path)
    assert not [p for p in tmp_path.iterdir() if "nonfinite" in p.name or ".part" in p.name]

    def load(name: str) -> Any:
        return torch.load(tmp_path / name, weights_only=False)

    for precision, tolerance in ((64, 1e-12), (32, 1e-5)):
        first = FirstGradient()
        single = build(precision, callbacks=[first], clip=None)
        single.solver.load_state_dict(load(f"first{precision}_0.pt"))
        single.fit(8)
        for rank in (0, 1):
            found = load(f"{precision}_{rank}.pt")
            for own, expected in zip(found["gradient"], first.gradient, strict=True):
                assert (own - expected).abs().max() <= tolerance * expected.abs().max()
            for name in ("loss", "gradient_norm"):
                assert found["history"][name] == pytest.approx(single.history[name], rel=10 * tolerance)
            for key, value in single.solver.state_dict().items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    largest = value.abs().max().clamp_min(1e-3)
                    assert (found["weights"][key] - value).abs().max() <= 100 * tolerance * largest, key
    alone.fit(8)
    for rank in (0, 1):  # one, then two processes
        assert load(f"resumed_{rank}.pt")["history"]["loss"] == pytest.approx(alone.history["loss"], rel=1e-4)
    back = build(32, seed=5, callbacks=[FirstGradient()], clip=None).resume(tmp_path / "32.pt")  # two, then one
    back.fit(10)
    single = build(32, clip=None)
    assert back.history["loss"] == pytest.approx(single.fit(10)["loss"], rel=1e-3)

    combined = build(64, combine=PCGrad())
    combined.fit(3)
    for rank in (0, 1):
        assert load(f"combined_{rank}.pt")["history"]["loss"] == pytest.approx(combined.history["loss"], rel=1e-11)
    assert_mapped(tmp_path)


def assert_mapped(folder: Path) -> None:
    expected = [member(seed).state_dict() for seed in range(3)]
    for rank in (0, 1):
        found = torch.load(folder / f"members_{rank}.pt", weights_only=False)
        assert all(equal(tensors(a), tensors(b)) for a, b in zip(found, expected, strict=True))
        results, failed, message = torch.load(folder / f"failed_{rank}.pt", weights_only=False)
        assert results == [[0, 0], None, None, [3, 3]] and set(failed) == {1, 2}
        assert "items[1] = 1: ValueError: bad luck" in message and "solver.state_dict()" in failed[2]


def tensors(state: dict[str, Any]) -> list[torch.Tensor]:
    return [value for value in state.values() if isinstance(value, torch.Tensor)]


def test_one_process_maps_all_items() -> None:
    assert ph.training.parallel_map(abs, [-1, 2]) == [1, 2]
    assert ph.training.parallel_map(abs, []) == []
    with pytest.raises(
        ph.training.TaskError, match=r"1 of 3 calls failed, the first with items\[1\] = 0: ZeroDiv"
    ) as e:
        ph.training.parallel_map(lambda x: 1 / x, [1, 0, 2])
    assert e.value.results == [1.0, None, 0.5] and list(e.value.failed) == [1]
    with pytest.raises(KeyboardInterrupt):
        ph.training.parallel_map(interrupt, [1])
    with pytest.raises(ph.StateError, match="function = 3"):
        ph.training.parallel_map(3, [1])
    with pytest.raises(ph.StateError, match="items = 8"):
        ph.training.parallel_map(abs, 8)


def interrupt(item: int) -> None:
    raise KeyboardInterrupt


class StopInOne(Callback):
    def after_update(self, trainer: ph.Trainer, loss: float) -> None:
        if trainer.update == 3 and trainer.processes.rank == 1:
            trainer.stop("enough")


class Bad(Callback):
    """Makes the windows of one process bad."""

    def before_update(self, trainer: ph.Trainer) -> None:
        if trainer.update == 2 and trainer.processes.rank == 1:
            trainer.processes.share = lambda batch: _damaged(Processes.share(trainer.processes, batch))


def _damaged(batch: Any) -> Any:
    batch.states[0].fill_(float("nan"))
    return batch


def stop_in_one(folder: str) -> None:
    import signal

    rank = int(os.environ["RANK"])
    trainer = build(callbacks=[StopInOne()])
    trainer.fit(8)
    assert trainer.update == 3 and trainer.stopped
    trainer = build(callbacks=[Bad()])
    try:
        trainer.fit(8)
    except ph.NonFiniteError as error:
        assert ("another process" in str(error)) == (rank == 0), error
        assert trainer.update == 2
        print(f"stopped {rank}", flush=True)

    class Kill(Callback):
        def before_update(self, trainer: ph.Trainer) -> None:
            if trainer.update == 4 and rank == 1:
                os.kill(os.getpid(), signal.SIGINT)

    trainer = build(callbacks=[Kill()])
    try:
        trainer.fit(8)
    except KeyboardInterrupt:
        assert trainer.update == 5
        print(f"interrupted {rank}", flush=True)
    try:
        build(batch_size=3)
    except ph.StateError as error:
        assert "multiple of 2, e.g. 4" in str(error)
        print(f"refused {rank}", flush=True)


@pytest.mark.slow
def test_all_processes_end_together(tmp_path: Path) -> None:
    output = launch("stop_in_one", tmp_path)
    for rank in (0, 1):
        assert all(f"{word} {rank}" in output for word in ("stopped", "interrupted", "refused")), output


def test_one_process_is_alone() -> None:
    alone = Processes(torch.device("cpu"))
    assert (alone.rank, alone.count, alone.seed_for(3, 4)) == (0, 1, None)
    assert alone.any(True, False) == [True, False]


class Beside(Processes):
    """Another process trains along, in which all gradients are one."""

    def __init__(self) -> None:
        self.rank, self.count = 0, 2

    def any(self, *flags: bool) -> list[bool]:
        return list(flags) if len(flags) == 1 else [True for _ in flags]

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            tensor.add_(1).div_(2)


@pytest.mark.parametrize("terms", [1, 2])
def test_gradients_that_one_process_alone_has_are_averaged(terms: int) -> None:
    trainer = build(32, clip=None, combine=(lambda gradients, generator: gradients.sum(0)) if terms == 2 else None)
    spare = torch.nn.Parameter(torch.zeros(3))
    trainer._parameters.append(spare)  # as a layer that the windows of this process do not reach
    closure = Closure(trainer, trainer.objective, trainer.windows.shuffled(0, 4, 0))
    closure()
    assert spare.grad is None
    alone = [p.grad.clone() for p in trainer.solver.parameters()]
    trainer.processes, trainer._contributions = Beside(), {}
    closure()
    assert torch.equal(spare.grad, torch.full((3,), terms / 2))
    for own, before in zip(trainer.solver.parameters(), alone):
        torch.testing.assert_close(own.grad, (before + terms) / 2)
