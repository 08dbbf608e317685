"""Trainings that could not become what is wanted: refused before an update, or taken back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.small import equal, line
from cases.wrong import Case, decaying, each, hybrid, trainer

import phi_hybrid as ph
from phi_hybrid import losses
from phi_hybrid.data import Mixture
from phi_hybrid.optim import HIG, LevenbergMarquardt
from phi_hybrid.training import AveragedWeights, BestWeights, Callback, EarlyStop, Log, Optimizers

State, Data = ph.StateError, ph.DataError
SCHEDULES = torch.optim.lr_scheduler
data, coarse, walls, held = decaying(), decaying(cells=4), decaying(boundary=0), decaying(2)
net = torch.nn.Conv1d(1, 1, 1)


class Misspelt(Callback):
    def after_updates(self, trainer: ph.Trainer, loss: float) -> None: ...


class WithoutLoss(Callback):
    def after_update(self, trainer: ph.Trainer) -> None: ...


class Writer:
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...


class Saying(torch.nn.Module):
    """A network that returns what it is told to."""

    def __init__(self, answer: Callable) -> None:
        super().__init__()
        self.weight, self.answer = torch.nn.Parameter(torch.ones(())), answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.answer(x)


class OfTwo(Saying):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * t


def callbacks(*given: Any, **settings: Any) -> ph.Trainer:
    return trainer(data=data, callbacks=list(given), **settings)


def scheduled(scheduler: Callable, updates: int = 0, **settings: Any) -> Any:
    return trainer(data=data, scheduler=scheduler, **settings).fit(updates)


def with_loss(term: Any) -> Any:
    return trainer(data=data, objective=ph.Unrolled(2, losses.Losses({"own": term}))).fit(1)


def with_network(network: torch.nn.Module) -> Any:
    return trainer(hybrid(network=network), data).fit(1)


def of_other(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(torch.nn.Conv1d(1, 1, 1).parameters())


same = AveragedWeights()
plateau = SCHEDULES.ReduceLROnPlateau

CASES: list[Case] = [
    # --- callbacks ---
    ("a callback alone", lambda: trainer(data=data, callbacks=BestWeights()), State, r"callbacks = .*in a list"),
    ("class of a callback", lambda: callbacks(EarlyStop), State, r"callbacks\[0\] = the class EarlyStop"),
    ("function as callback", lambda: callbacks(AveragedWeights(), print), State, r"callbacks\[1\] = .*print"),
    ("best of no validations", lambda: callbacks(BestWeights()), State, "BestWeights looks at.*validation=held"),
    ("stop without validation", lambda: callbacks(EarlyStop(2)), State, "EarlyStop looks at.*validation=held"),
    ("a callback twice", lambda: callbacks(same, same), State, "callbacks = .*each callback once"),
    ("two averages", lambda: callbacks(same, AveragedWeights(0.9)), State, "'AveragedWeights'.*at most one"),
    ("misspelt method", lambda: callbacks(Misspelt()), State, "after_updates, which would never.*'after_update'"),
    ("method without loss", lambda: callbacks(WithoutLoss()), State, r"after_update is called with \(trainer, loss\)"),
    ("weights before validation", lambda: BestWeights().weights, State, "before a validation.*validate_every"),
    ("patience in parts", lambda: EarlyStop(2.5), State, "patience = 2.5"),
    ("fall by more than all", lambda: EarlyStop(2, by=2), State, "by = 2: .*below 1"),
    ("fall in per cent", lambda: EarlyStop(2, by="1%"), State, "by = '1%'"),
    ("decay of one", lambda: AveragedWeights(1), State, "decay = 1: .*below 1"),
    ("folder as writer", lambda: Log("runs/wake"), State, "writer = 'runs/wake'.*SummaryWriter"),
    ("log of no update", lambda: Log(Writer(), every=0), State, "every = 0"),
    # --- optimizers and schedules ---
    ("no optimizers", lambda: Optimizers(), State, "0 optimizers"),
    ("optimizers in a list", lambda: Optimizers([torch.optim.Adam(net.parameters())]), State, r"optimizer = \[Adam"),
    (
        "optimizers of the same",
        lambda: Optimizers(*[torch.optim.SGD([net.bias])] * 2),
        State,
        "2 parameters, 1 of them",
    ),
    ("search among optimizers", lambda: Optimizers(HIG(net)), State, "HIG asks for more than one gradient"),
    (
        "state of other optimizers",
        lambda: Optimizers(torch.optim.SGD(net.parameters())).load_state_dict({"optimizers": []}),
        State,
        "the saved state is of 0 optimizers, this one has 1",
    ),
    ("optimizer of a copy", lambda: trainer(data=data, optimizer=of_other), State, "2 of .*2 parameters are not.*copy"),
    (
        "ascent",
        lambda: trainer(data=data, optimizer=lambda p: torch.optim.SGD(p, 0.1, maximize=True)),
        State,
        r"SGD\(maximize=True\).*larger.*leave it out",
    ),
    ("parameters for HIG", lambda: HIG(net.parameters()), State, r"module = <generator.*HIG\(network\)"),
    ("class of a network for HIG", lambda: HIG(torch.nn.Conv1d), State, "module = the class Conv1d"),
    ("rate in words", lambda: HIG(net, lr="1"), State, "lr = '1'"),
    ("exponent in words", lambda: HIG(net, kappa="0.5"), State, "kappa = '0.5'.*−1"),
    ("damping in words", lambda: LevenbergMarquardt(net, damping="1"), State, "damping = '1'"),
    (
        "parts of an update of HIG",
        lambda: trainer(data=data, optimizer=lambda p: HIG(net), accumulate=2),
        State,
        "accumu",
    ),
    ("parts in parts", lambda: trainer(data=data, accumulate=2.0), State, "accumulate = 2.0"),
    ("list of schedules", lambda: scheduled(lambda o: [SCHEDULES.StepLR(o, 2)]), State, r"scheduler = \["),
    ("plateau of a maximum", lambda: scheduled(lambda o: plateau(o, mode="max")), State, "mode='max'.*mode='min'"),
    (
        "schedule that ends",
        lambda: scheduled(lambda o: SCHEDULES.OneCycleLR(o, 0.1, total_steps=2), 4),
        State,
        "OneCycleLR fails after update 3: .*for all updates",
    ),
    # --- data ---
    (
        "windows longer than one set",
        lambda: trainer(data=Mixture({"a": data, "b": data.between(0, 1)})),
        Data,
        "'b'|b.*1",
    ),
    ("validation on another grid", lambda: trainer(data=data, validation=coarse), State, "'x', 4"),
    ("validation between walls", lambda: trainer(data=data, validation=walls), State, "boundary periodic and 0"),
    ("updates in parts", lambda: trainer(data=data).fit(10.0), State, "updates = 10.0"),
    # --- losses ---
    (
        "loss of states alone",
        lambda: with_loss(lambda states: 0),
        State,
        r"terms\['own'\] is called with \(states, batch\)",
    ),
    ("loss that returns states", lambda: with_loss(lambda s, b: s), State, r"value of terms\['own'\] = \(tensor"),
    ("loss of every entry", lambda: with_loss(lambda s, b: s[0] ** 2), State, r"value of terms\['own'\].*mean\(\)"),
    ("loss that is a number", lambda: with_loss(lambda s, b: 0.5), State, r"value of terms\['own'\] = 0.5"),
    ("loss without gradient", lambda: with_loss(lambda s, b: s[0].detach().sum()), State, r"weights: .*detach\(\)"),
    ("loss at a step beyond", lambda: with_loss(losses.L2(at=losses.Steps(5))), State, r"Steps\(5\).*1 … 2"),
    ("loss of a missing part", lambda: with_loss(losses.Part("smoke", losses.L2())), State, "no part 'smoke'"),
    ("walk without history", lambda: ph.Noise(0.1, "every_step", random_walk=True), State, "where = 'every_step'"),
    # --- networks ---
    (
        "network on points",
        lambda: with_network(torch.nn.Linear(3, 3)),
        State,
        r"cannot take.*\(batch, channel, x\) = \(8, 1",
    ),
    ("network of two arguments", lambda: hybrid(network=OfTwo(abs)), State, r"network is called with \(channels\)"),
    (
        "network that returns nothing",
        lambda: with_network(Saying(lambda x: None)),
        State,
        "output of the network = None",
    ),
    ("network that returns two", lambda: with_network(Saying(lambda x: (x, x))), State, r"output of the network = \("),
    (
        "network that cuts",
        lambda: with_network(Saying(lambda x: x[..., 1:])),
        State,
        r"\(8, 1, 7\).*needs.*\(8, 1, 8\)",
    ),
    (
        "network of another shape",
        lambda: with_network(Saying(lambda x: x + torch.ones(5))),
        State,
        "cannot take 1 input",
    ),
    # --- couplings ---
    (
        "coupling of one",
        lambda: hybrid(coupling=lambda u: u),
        State,
        r"coupling is called with \(before, after, output\)",
    ),
    ("coupling without result", lambda: hybrid(coupling=lambda u, v, c: None)(line(0)), State, "= None.*tuple of 1"),
    (
        "coupling to a bare tensor",
        lambda: hybrid(coupling=lambda u, v, c: v[0])(line(0)),
        State,
        "= tensor.*tuple of 1",
    ),
]


@each(CASES)
def test_trainings(call: Callable[[], Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        call()


def test_what_a_short_schedule_leaves() -> None:
    """The updates before are kept."""
    run = trainer(data=data, scheduler=lambda o: SCHEDULES.OneCycleLR(o, 0.1, total_steps=3))
    with pytest.raises(State, match="update 4"):
        run.fit(9)
    assert run.update == 3 == len(run.history["loss"])


def test_validation_on_what_is_trained_on_is_said() -> None:
    for own, other in ((data, data), (data, data[1:]), (Mixture({"a": data[:2], "b": data[2:]}), data[3:])):
        with pytest.warns(UserWarning, match=rf"validation = .*{len(other)} of its trajectories.*data.split\(0.8\)"):
            trainer(data=own, validation=other)


@pytest.mark.filterwarnings("error")
def test_held_out_trajectories_are_not() -> None:
    for own, other in ((data[:3], data[3:]), (data[::2], data[1::2]), (data, held)):
        trainer(data=own, validation=other)


# --- files ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", ["folder", "", "text.txt/a.pt", "a\0b"])
def test_paths_are_looked_at_before_the_work(name: str, folder: Path) -> None:
    path = os.path.join(folder, name) if name else name
    with pytest.raises(State, match="checkpoint = "):
        trainer(data=data, checkpoint=path)
    with pytest.raises(State, match="path = "):
        ph.Trajectories.generate(lambda u: pytest.fail("computed"), line(0), 2, path=path, progress=False)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_folders_that_cannot_be_written_to(folder: Path) -> None:
    (folder / "folder").chmod(0o500)
    with pytest.raises(State, match="can be written to"):
        trainer(data=data, checkpoint=folder / "folder" / "new" / "a.pt")


def test_other_files_are_no_checkpoints(folder: Path) -> None:
    data.save(folder / "data.h5")
    torch.save(hybrid().state_dict(), folder / "weights.pt")
    torch.save({"solver": 1, "optimizer": 2}, folder / "some.pt")
    run = trainer(data=data)
    before = [p.detach().clone() for p in run.solver.parameters()]
    for name in ("folder", "text.txt", "data.h5", "weights.pt", "some.pt", "missing.pt"):
        with pytest.raises(Data, match=name):
            run.resume(folder / name)
    assert equal([p.detach() for p in run.solver.parameters()], before)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 3}, "batch_size"),
        ({"seed": 1}, "seed"),
        ({"objective": ph.Unrolled(3)}, "objective"),
        ({"data": decaying(5)}, "data|windows"),
        ({"optimizer": torch.optim.AdamW}, "optimizer"),
        ({"clip": 1.0}, "clip"),
        ({"accumulate": 2}, "accumulate"),
        ({"callbacks": [AveragedWeights()]}, "callbacks"),
        ({"solver": hybrid(lambda u: 0.8 * u)}, "physics"),
        ({"solver": hybrid(network=torch.nn.Conv1d(1, 1, 3, padding=1))}, "another"),
        ({"solver": hybrid(coupling=ph.Additive(2.0))}, "coupling"),
        ({"scheduler": lambda o: SCHEDULES.StepLR(o, 2)}, "scheduler"),
    ],
)
def test_checkpoints_of_other_trainings(change: dict, named: str, folder: Path) -> None:
    trainer(data=data).save(folder / "a.pt")
    with pytest.raises(State, match=named):
        trainer(**{"data": data, **change}).resume(folder / "a.pt")
