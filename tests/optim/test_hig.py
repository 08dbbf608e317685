"""Half-inverse gradients against a dense singular value decomposition in NumPy, and the identities of the method."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from cases.hig import Task, network, relative, update_by_hand
from cases.small import SmallNet, forced_step, line
from phi import math

import phi_hybrid as ph
from phi_hybrid.optim import (
    HIG,
    Automatic,
    Closure,
    Cutoff,
    Dense,
    Gram,
    LevenbergMarquardt,
    ParameterGram,
    Smooth,
    Structured,
)
from phi_hybrid.pde.oscillators import Oscillators

torch.set_num_threads(1)
ENGINES = {
    "dense": Dense(chunk=7),
    "gram": Gram(chunk=7, columns=20),
    "parameters": ParameterGram(chunk=7),
    "automatic": Automatic(),
    "structured": Structured(chunk=3),
}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize(("samples", "kappa"), [(2, 0.5), (20, 0.5), (6, -1.0), (6, 1.0)])
def test_update_by_hand(engine: Any, samples: int, kappa: float) -> None:
    """More and fewer outputs than parameters (44); the cutoff lies in a gap of the spectrum."""
    task = Task(samples)
    sigma = np.linalg.svd(task.jacobian(), compute_uv=False)
    gaps = sigma[:-1] / sigma[1:]
    gaps[sigma[1:] < 1e-4 * sigma[0]] = 0
    place = int(gaps.argmax())
    rcond = float(np.sqrt(sigma[place] * sigma[place + 1]) / sigma[0])
    expected = update_by_hand(task, kappa, rcond)
    optimizer = HIG(task.net, 1.0, kappa, Cutoff(rcond), per_sample=False, engine=engine)
    assert relative(task.moved(optimizer), expected) < 1e-8
    assert optimizer.last.kept == place + 1
    found = optimizer.last.singular_values.numpy()
    np.testing.assert_allclose(found[: place + 1], sigma[: place + 1], rtol=1e-7)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_damping_and_smooth_filter(engine: Any) -> None:
    def moved(filter: Any) -> np.ndarray:
        task = Task(4)
        return task.moved(HIG(task.net, 1.0, 0.5, filter, per_sample=False, engine=engine))

    largest = np.linalg.svd(Task(4).jacobian(), compute_uv=False)[0]
    assert relative(moved(Cutoff(1e-4, 0.3)), update_by_hand(Task(4), 0.5, 1e-4, damping=0.3)) < 1e-6
    smooth = update_by_hand(Task(4), 0.5, 0.0, damping=float(np.hypot(0.2 * largest, 0.3)))
    assert relative(moved(Smooth(0.2, 0.3)), smooth) < 1e-7


@pytest.mark.parametrize("kappa", [-1.0, 0.5, 1.0])
def test_replication(kappa: float) -> None:
    """Each sample four times: the same update; with the paper's scaling 4^(−(1+κ)/2) of it."""
    once, again = (Task(3, repeat=r) for r in (1, 4))
    assert relative(again.moved(HIG(again.net, 1.0, kappa)), once.moved(HIG(once.net, 1.0, kappa))) < 1e-6
    once, again = (Task(3, repeat=r) for r in (1, 4))
    moved = [t.moved(HIG(t.net, 1.0, kappa, per_sample=False)) for t in (once, again)]
    assert relative(moved[1] * 4 ** ((1 + kappa) / 2), moved[0]) < 1e-6


def test_complex_outputs() -> None:
    """Real and imaginary parts are outputs of their own."""
    net, x = network(3, 2), Task().x
    matrix = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.complex128)

    def outputs() -> torch.Tensor:
        return torch.exp(1j * (net(x) + 0j) @ matrix)

    def apart() -> torch.Tensor:
        return torch.view_as_real(outputs()).reshape(len(x), -1)

    def loss(y: torch.Tensor) -> torch.Tensor:
        overlap = (y.conj() * (0.3 + 0.4j)).sum(1)  # its gradient is a lazily conjugated tensor
        return (1 - overlap.real**2 - overlap.imag).mean()

    def loss_apart(y: torch.Tensor) -> torch.Tensor:
        return loss(torch.view_as_complex(y.view(len(x), -1, 2)))

    start, moved = copy.deepcopy(net.state_dict()), []
    for closure in (Closure(outputs, loss), Closure(apart, loss_apart)):
        net.load_state_dict(start)
        HIG(net, 1.0, 0.5).step(closure)
        moved.append(torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy())
    assert relative(*moved) < 1e-12


def test_frozen_and_mixed_precision_parameters() -> None:
    task = Task()
    task.net[0].weight.requires_grad_(False)
    task.net[2] = torch.nn.Sequential(Cast(), task.net[2].float(), Cast(torch.float64))
    frozen = task.net[0].weight.clone()
    losses = [float(HIG(task.net, 0.3, rcond=Cutoff(1e-2)).step(task.closure)) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0] and torch.equal(task.net[0].weight, frozen)
    assert task.net[2][1].weight.dtype == torch.float32


class Cast(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.dtype)


def test_another_optimizer_follows() -> None:
    """Momentum on half-inverse gradients; schedulers act on its learning rate; saved and continued."""
    task, by_hand = Task(), Task()
    sgd = torch.optim.SGD(task.net.parameters(), 0.5, momentum=0.9)
    optimizer, velocity = HIG(task.net, then=sgd), 0.0
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for n in range(4):
        velocity = 0.9 * velocity + half_inverse(by_hand)
        add(by_hand, -0.5 * 0.5 ** (n // 2) * velocity)
        optimizer.step(task.closure)
        schedule.step()
        if n == 1:
            saved = copy.deepcopy(optimizer.state_dict())
            sgd = torch.optim.SGD(task.net.parameters(), 0.5, momentum=0.9)
            optimizer = HIG(task.net, then=sgd)
            optimizer.load_state_dict(saved)
            state = schedule.state_dict()
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
            schedule.load_state_dict(state)
    assert relative(task.weights(), by_hand.weights()) < 1e-9


def half_inverse(task: Task) -> np.ndarray:
    return -update_by_hand(task, 0.5, 1e-6, scale=len(task.x) ** -0.5)


def add(task: Task, change: np.ndarray) -> None:
    start = 0
    with torch.no_grad():
        for p in task.net.parameters():
            p += torch.as_tensor(change[start : start + p.numel()]).view_as(p)
            start += p.numel()


def test_trained_through_the_physics() -> None:
    """Under the Trainer, with an unrolled objective of a hybrid solver: one update is the one by hand."""
    physics = ph.capture(forced_step)
    data = ph.Trajectories.generate(
        lambda u, f: 0.9 * forced_step(u, f), line(0, b=3), 4, (line(1, b=3),), progress=False
    )
    solver = ph.HybridSolver(physics, SmallNet(2, 1, 1, width=2))
    trainer = ph.Trainer(solver, data, ph.Unrolled(3), optimizer=HIG(solver, 0.5), batch_size=2, progress=False)
    batch = data.windows(3).shuffled(0, 2, seed=0)
    outputs = trainer.objective.outputs(solver, batch)
    rows = [torch.autograd.grad(y, list(solver.parameters()), retain_graph=True) for y in outputs[0].reshape(-1)]
    jacobian = np.stack([torch.cat([g.reshape(-1) for g in row]).double().numpy() for row in rows])
    sigma = batch.scale[0]
    g = (2 * (outputs[0] - batch.targets[0]) / sigma**2 / outputs[0].numel()).detach().double().numpy().reshape(-1)
    u, s, vt = np.linalg.svd(jacobian / 2**0.5, full_matrices=False)
    kept = s > 1e-3 * s[0]
    expected = -0.5 * vt[kept].T @ (s[kept] ** -0.5 * (u[:, kept].T @ (g * 2**0.5)))
    before = torch.nn.utils.parameters_to_vector(solver.parameters()).detach().clone()
    trainer.optimizer.filter = Cutoff(1e-3)
    history = trainer.fit(1)
    moved = (torch.nn.utils.parameters_to_vector(solver.parameters()).detach() - before).numpy()
    assert relative(moved, expected) < 1e-3
    assert history["gradient_norm"][0] == pytest.approx(np.linalg.norm(expected) / 0.5, rel=1e-3)
    losses = trainer.fit(20)["loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Dropout(0.1),
        torch.nn.BatchNorm1d(3),
        torch.nn.RReLU(),
        torch.nn.LSTM(2, 2, 2, dropout=0.5),
        torch.nn.LazyBatchNorm1d(),
    ],
)
def test_modules_without_a_jacobian_sample_by_sample(layer: torch.nn.Module) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), layer)
    with pytest.raises(ph.StateError, match=type(layer).__name__):
        HIG(module)
    optimizer = HIG(module.eval(), progress=False)
    module.train()
    with pytest.raises(ph.StateError, match=type(layer).__name__):
        optimizer.step(Closure(lambda: module(torch.rand(4, 3)), lambda y: y.square().mean()))


@pytest.mark.parametrize("setting", ["clip", "skip"])
def test_what_the_trainer_cannot_do_with_outputs(setting: str) -> None:
    data = ph.Trajectories.generate(forced_step, line(0, b=2), 2, (line(1, b=2),), progress=False)
    solver = ph.HybridSolver(ph.capture(forced_step), SmallNet(2, 1, 1, width=2))
    with pytest.raises(ph.StateError, match=f"{setting} = 10.*HIG"):
        ph.Trainer(solver, data, ph.Unrolled(1), optimizer=HIG(solver), **{setting: 10})


def test_wrong_settings() -> None:
    net, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    for module, settings, message in (
        (torch.nn.Linear(3, 2, dtype=torch.complex64), {}, "weight is complex"),
        (torch.nn.Tanh(), {}, "no parameters to train"),
        (net, {"then": torch.optim.SGD(other.parameters())}, "other parameters than the module"),
        (net, {"then": torch.optim.LBFGS(net.parameters())}, "LBFGS"),
        (net, {"rcond": "small"}, "rcond = 'small'"),
        (net, {"engine": "dense"}, "engine = 'dense'"),
        (net, {"engine": Gram}, "engine = .*Gram"),
        (net, {"then": LevenbergMarquardt(net)}, "LevenbergMarquardt"),
        (net, {"kappa": 1.5}, "kappa = 1.5"),
        (net, {"lr": -1.0}, "lr = -1.0"),
        (net, {"rcond": -1}, "rcond = -1"),
    ):
        with pytest.raises(ph.StateError, match=message):
            HIG(module, **settings)
    optimizer = HIG(net, progress=False)
    with pytest.raises(ph.StateError, match="do not depend on the trained parameters"):
        optimizer.step(Closure(lambda: net(torch.rand(4, 3)).detach(), lambda y: y.square().mean()))
    saved = HIG(net, then=torch.optim.SGD(net.parameters())).state_dict()
    with pytest.raises(ph.StateError, match="then"):
        optimizer.load_state_dict(saved)
    task = Task()
    with pytest.raises(ph.StateError, match="outputs"):
        HIG(task.net).step(lambda: task.loss(task.outputs()))
    with pytest.raises(ph.StateError, match=r"24 outputs and 44 parameters .*Gram 0\.0 GiB"):
        HIG(task.net, engine=Automatic(budget=100)).step(task.closure)


def test_frozen_later_on() -> None:
    """Before the next update, with an optimizer that follows."""
    net, x = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)), torch.rand(4, 3)
    optimizer = HIG(net, then=torch.optim.SGD(net.parameters(), 0.1), progress=False)
    optimizer.step(Closure(lambda: net(x), lambda y: y.square().mean()))
    net[0].requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    optimizer.zero_grad()
    optimizer.step(Closure(lambda: net(x), lambda y: y.square().mean()))
    assert torch.equal(before["0.weight"], net[0].weight) and not torch.equal(before["1.weight"], net[1].weight)


@pytest.mark.parametrize("engine", [Gram(), ParameterGram(), Structured()])
def test_rcond_that_an_engine_does_not_resolve_is_refused(engine: Any) -> None:
    """Squares of singular values are lost in rounding below about 1e-7 of the largest; before, so was their update."""
    task = Task()
    with pytest.raises(
        ph.StateError, match=rf"{type(engine).__name__} cannot be used: rcond = 1e-08 is less than .*Dense"
    ):
        HIG(task.net, rcond=1e-8, engine=engine).step(task.closure)


@pytest.mark.parametrize("rcond", [1e-6, 1e-8, 1e-10, Smooth(1e-9)])
@pytest.mark.parametrize("samples", [5, 60])
def test_small_cutoffs_are_honoured(rcond: Any, samples: int) -> None:
    """Singular values over fifteen orders of magnitude; by default, against NumPy's decomposition."""
    task = Task(samples)
    task.matrix *= torch.logspace(0, -9, 4)[:, None]
    scale = torch.logspace(0, -6, 4, dtype=torch.float64)
    task.outputs = lambda: torch.sin(task.net(task.x) @ task.matrix) * scale
    jacobian, g = task.jacobian() * samples**-0.5, task.cotangent() * samples**0.5
    u, sigma, vt = np.linalg.svd(jacobian, full_matrices=False)
    if isinstance(rcond, Smooth):
        weights = sigma * (sigma**2 + (rcond.rcond * sigma[0]) ** 2) ** -0.75
    else:
        weights = np.where(sigma > rcond * sigma[0], np.maximum(sigma, 1e-300) ** -0.5, 0)
    optimizer = HIG(task.net, 1.0, 0.5, rcond, progress=False)
    assert relative(task.moved(optimizer), -vt.T @ (weights * (u.T @ g))) < 1e-4


def test_largest_stable_rate() -> None:
    """Of gradient descent to Gauss–Newton on ½·c·|y − y*|²: η·c·σ_max^(1−κ) < 2, from the singular values of an update."""
    x, curvature = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 3.0
    for kappa in (-1.0, 0.0, 0.5, 1.0):
        for share, stable in ((0.97, True), (1.03, False)):
            torch.manual_seed(0)
            net = torch.nn.Linear(3, 2, bias=False).double()
            closure = Closure(lambda net=net: net(x), lambda y: curvature / 2 * y.square().sum(1).mean())
            optimizer = HIG(net, 0.0, kappa, progress=False)
            before = optimizer.step(closure)
            rate = 2 / (curvature * float(optimizer.last.singular_values[0]) ** (1 - kappa))
            optimizer.param_groups[0]["lr"] = share * rate
            for _ in range(200):
                after = optimizer.step(closure)
            assert (after < before) == stable


def test_training_is_saved_and_continued(tmp_path: Any) -> None:
    """By the Trainer's checkpoint: the weights that an uninterrupted training has, to the last bit."""
    data = ph.Trajectories.generate(
        lambda u, f: 0.9 * forced_step(u, f), line(0, b=3), 4, (line(1, b=3),), progress=False
    )
    torch.manual_seed(0)
    start = ph.HybridSolver(ph.capture(forced_step), SmallNet(2, 1, 1, width=2))

    def trainer(solver: ph.HybridSolver, lr: float = 0.5) -> ph.Trainer:
        optimizer = HIG(solver, lr, 0.5, Smooth(1e-2), progress=False)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        settings = dict(scheduler=schedule, batch_size=2, checkpoint=tmp_path / "c.pt", progress=False)
        return ph.Trainer(solver, data, ph.Unrolled(2), optimizer=optimizer, **settings)

    whole, first, second = (copy.deepcopy(start) for _ in range(3))
    trainer(whole).fit(6)
    trainer(first).fit(3)
    trainer(second).resume(tmp_path / "c.pt").fit(6)
    for a, b in zip(whole.parameters(), second.parameters()):
        assert torch.equal(a, b)
    with pytest.raises(ph.StateError, match="optimizer lr': \\(123.0, 0.5\\)"):
        trainer(copy.deepcopy(start), lr=123.0).resume(tmp_path / "c.pt")


def test_a_loss_that_is_not_finite() -> None:
    """Says so before anything is decomposed, and leaves the weights."""
    task = Task()
    before = task.weights().copy()
    for engine in (Gram(), Dense()):
        with pytest.raises(ph.NonFiniteError, match="loss is nan"):
            HIG(task.net, engine=engine).step(Closure(lambda: task.outputs() * float("nan"), task.loss))
    assert np.array_equal(before, task.weights())


def test_engines_agree_without_a_gap_at_the_cutoff() -> None:
    """Singular values on both sides of the cutoff; controlled oscillators in double precision."""
    chain = Oscillators()
    block = ph.capture(chain.controlled)
    with math.precision(64):
        states = chain.random_states(24, 0)
        block.flatten(states, math.zeros(math.batch(time=24, trajectory=24)))
        start = ph.bridge.flatten(states)[0][0]
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(4, 9), torch.nn.Tanh(), torch.nn.Linear(9, 24)
    ).double()
    closure = Closure(
        lambda: block.native(start, net(start).T)[0], lambda y: ((y - start) ** 2).flatten(1).sum(1).mean()
    )
    directions = {}
    for engine in (Dense(), Gram(), ParameterGram(), Structured()):
        optimizer = HIG(net, 0.0, engine=engine, progress=False)
        optimizer.step(closure)
        directions[type(engine)] = torch.cat([d.flatten() for d in optimizer.last.direction])
    assert optimizer.last.singular_values[-1] < 1e-6 * optimizer.last.singular_values[0]
    for found in directions.values():
        assert (found - directions[Dense]).norm() < 1e-5 * directions[Dense].norm()
