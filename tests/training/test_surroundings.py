"""Torch modes around a training, networks of unusual precision, lazy ones, several optimizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases.small import SmallNet, equal, line

import phi_hybrid as ph


class Mixed(torch.nn.Module):
    """Computes in bfloat16, whatever is around it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SmallNet(2, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(x).float()


def train(
    block: ph.PhysicsBlock,
    data: ph.Trajectories,
    network: torch.nn.Module,
    optimizer: Callable = lambda p: torch.optim.SGD(p, 0.1),
) -> tuple[list[float], list[torch.Tensor]]:
    solver = ph.HybridSolver(block, network)
    trainer = ph.Trainer(solver, data, ph.Unrolled(2), optimizer=optimizer(solver.parameters()), progress=False)
    return trainer.fit(5)["loss"], [p.detach().clone() for p in solver.parameters()]


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, 0.1), lambda p: torch.optim.LBFGS(p, lr=0.1)])
def test_autocast_around_a_training_sees_new_weights(
    optimizer: Callable, block: ph.PhysicsBlock, data: ph.Trajectories
) -> None:
    """Its cache of rounded weights outlives updates; one that is entered anew for each has none."""

    def make() -> ph.Trainer:
        solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
        return ph.Trainer(solver, data, ph.Unrolled(2), optimizer=optimizer(solver.parameters()), progress=False)

    around, anew = make(), make()
    with torch.autocast("cpu", torch.bfloat16):
        losses = around.fit(5)["loss"]
    for update in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            anew.fit(update + 1)
    assert losses == anew.history["loss"] and len(set(losses)) == 5
    assert equal(list(around.solver.parameters()), list(anew.solver.parameters()))


def test_mixed_precision_of_the_network_alone(block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    mixed, _ = train(block, data, Mixed())
    single, _ = train(block, data, SmallNet(2, 1, 1))
    assert mixed == pytest.approx(single, rel=0.02) and mixed != single


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_without_gradients_do_not_matter(mode: Callable, block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    expected = train(block, data, SmallNet(2, 1, 1))
    solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
    optimizer = torch.optim.SGD(solver.parameters(), 0.1)
    trainer = ph.Trainer(solver, data, ph.Unrolled(2), optimizer=optimizer, progress=False)
    with mode():
        losses = trainer.fit(5)["loss"]
    assert losses == expected[0] and equal([p.detach() for p in solver.parameters()], expected[1])


class Table(torch.nn.Module):
    """An integer parameter comes first, then a complex one, then those that count."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.arange(4), requires_grad=False)
        self.modes = torch.nn.Parameter(torch.ones(1, dtype=torch.complex64), requires_grad=False)
        self.network = SmallNet(2, 1, 1)
        self.seen: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.dtype)
        return self.network(x)


def test_inputs_are_not_rounded_to_the_first_parameter(block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    network = Table()
    losses, _ = train(block, data, network, lambda p: torch.optim.SGD([q for q in p if q.requires_grad], 0.1))
    assert set(network.seen) == {torch.float32} and losses == train(block, data, SmallNet(2, 1, 1))[0]


class Complex(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.complex(x[:, :1], x[:, :1])


def test_complex_corrections_are_refused(block: ph.PhysicsBlock) -> None:
    with pytest.raises(ph.StateError, match="complex64.*real numbers"):
        ph.HybridSolver(block, Complex())(line(0, b=2), line(1, b=2))


def test_lazy_networks_must_have_seen_a_state(block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    solver = ph.HybridSolver(block, torch.nn.LazyConv1d(1, 3, padding=1))
    optimizer = torch.optim.SGD(solver.parameters(), 0.1)
    with pytest.raises(ph.StateError, match="call the solver once before"):
        ph.Trainer(solver, data, ph.Unrolled(1), optimizer=optimizer, progress=False)
    solver(line(0, b=2), line(1, b=2))
    losses = ph.Trainer(solver, data, ph.Unrolled(1), optimizer=optimizer, progress=False).fit(5)["loss"]
    assert len(set(losses)) == 5


def halves(parameters: Callable) -> tuple[list, list]:
    all_of_them = list(parameters)
    return all_of_them[::2], all_of_them[1::2]


def test_two_optimizers_are_two_groups_of_one(block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    def two(parameters: Callable) -> torch.optim.Optimizer:
        first, second = halves(parameters)
        return ph.training.Optimizers(torch.optim.Adam(first, 1e-2), torch.optim.Adam(second, 1e-3))

    def one(parameters: Callable) -> torch.optim.Optimizer:
        first, second = halves(parameters)
        return torch.optim.Adam([{"params": first, "lr": 1e-2}, {"params": second, "lr": 1e-3}])

    found, expected = (train(block, data, SmallNet(2, 1, 1), make) for make in (two, one))
    assert found[0] == expected[0] and equal(found[1], expected[1])


def test_two_optimizers_resume_with_a_schedule(block: ph.PhysicsBlock, data: ph.Trajectories, tmp_path: Path) -> None:
    def make() -> ph.Trainer:
        solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
        first, second = halves(solver.parameters())
        optimizer = ph.training.Optimizers(torch.optim.SGD(first, 0.1, momentum=0.9), torch.optim.Adam(second, 1e-2))
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        return ph.Trainer(
            solver,
            data,
            ph.Unrolled(1),
            optimizer=optimizer,
            scheduler=schedule,
            progress=False,
            checkpoint=tmp_path / "a.pt",
        )

    whole, part = make(), make()
    whole.fit(7)
    part.fit(3)
    resumed = make().resume(tmp_path / "a.pt")
    resumed.fit(7)
    assert resumed.history == whole.history
    assert equal(list(resumed.solver.parameters()), list(whole.solver.parameters()))
    assert [g["lr"] for g in resumed.optimizer.optimizers[1].param_groups] == [1e-2 / 8]


def test_optimizers_that_cannot_be_put_together(block: ph.PhysicsBlock) -> None:
    solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
    adam, lbfgs = torch.optim.Adam(solver.parameters()), torch.optim.LBFGS(solver.parameters())
    with pytest.raises(ph.StateError, match="each parameter to one"):
        ph.training.Optimizers(adam, torch.optim.SGD(solver.parameters(), 0.1))
    for other in (lbfgs, ph.optim.HIG(solver)):
        with pytest.raises(ph.StateError, match="more than one gradient"):
            ph.training.Optimizers(adam, other)
    with pytest.raises(ph.StateError):
        ph.training.Optimizers()
