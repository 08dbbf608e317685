"""Other devices than the CPU: nothing is left behind by a move, nothing is copied or waited for in a step, and on a real
device results are those of the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases.devices import DEVICE, Transfers, devices_in, pretended
from cases.equations import EQUATIONS, PARTS, captured
from cases.small import SmallNet, forced_data, forced_step, line

import phi_hybrid as ph

META = torch.device("meta")

COUPLINGS = {
    "additive": ph.Additive(),
    "parallel": ph.coupling.Parallel(ph.coupling.Multiplicative()),
    "before": ph.coupling.Before(),
    "forcing": ph.coupling.Forcing(),
    "parameter and state": ph.coupling.Parameter(0, torch.add, ph.Additive()),
    "replacement": ph.coupling.Replacement(),
}


@pytest.mark.parametrize("name", [*EQUATIONS, *PARTS])
def test_steps_leave_nothing_behind(name: str) -> None:
    block, _ = captured(name, check=False)
    assert set(devices_in(block)) <= {torch.device("cpu")}
    block.to(META)
    assert set(devices_in(block)) <= {META}


def hybrid(coupling: object) -> ph.HybridSolver:
    outputs = 2 if getattr(coupling, "combine", None) and isinstance(coupling, ph.coupling.Parameter) else 1
    return ph.HybridSolver(ph.capture(forced_step), SmallNet(2, outputs, 1), coupling)


@pytest.mark.parametrize("name", COUPLINGS)
def test_hybrid_solvers_leave_nothing_behind(name: str) -> None:
    solver = hybrid(COUPLINGS[name])
    solver(line(0, b=2), line(1, b=2))
    solver.network.seen = None  # which the network of these tests keeps
    solver.to(META)
    assert set(devices_in(solver)) == {META}


def test_what_is_copied_or_waited_for_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended(monkeypatch):
        x = torch.ones(3).to(DEVICE)
        for transfer in (lambda: x.cpu(), lambda: torch.ones(3).to(DEVICE), lambda: torch.tensor([1.0], device=DEVICE)):
            with Transfers() as transfers:
                transfer()
            assert transfers.found
        for read in (
            lambda: x[0].item(),
            lambda: bool(x.any()),
            lambda: x.nonzero(),
            lambda: x[x > 0],
            lambda: x.tolist(),
        ):
            with pytest.raises(Exception, match="aten|data-dependent|fake"):
                read()
        with pytest.raises(Exception, match="device"):
            x + torch.ones(3)


WAITING = {"obstacle", "matrix that varies"}
"""Conjugate gradients look at the residual every few iterations, and values of a matrix go to the host."""


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", [n for n in [*EQUATIONS, *PARTS] if n not in WAITING])
def test_steps_and_gradients_copy_nothing_and_wait_for_nothing(
    name: str, gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, arguments = captured(name, check=False)
    tensors = block.flatten(*arguments)
    with pretended(monkeypatch):
        graph = block.to(DEVICE).known[0]
        tensors = [t.to(DEVICE) for t in tensors]
        differentiable = [t.requires_grad_(gradient) for t in tensors if t.is_floating_point() or t.is_complex()]
        graph(*tensors)  # makes the solvers
        with Transfers() as transfers:
            results = [r for r in graph(*tensors) if r.requires_grad]
            if gradient:
                torch.autograd.grad(results, differentiable, [torch.ones_like(r) for r in results], allow_unused=True)
        assert not transfers.found


@pytest.mark.parametrize("name", COUPLINGS)
def test_unrolled_training_copies_nothing_and_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, solver = forced_data(2), hybrid(COUPLINGS[name])
    batch = data.windows(3).shuffled(0, 2, 0)
    losses = ph.losses.Losses({"early": ph.losses.L2(at=ph.losses.Geometric(0.9))})
    objective = ph.Unrolled(3, losses, noise=ph.Noise(0.01, where="every_step"))
    objective.outputs(solver, batch)
    with pretended(monkeypatch):
        solver.to(DEVICE)
        batch = batch.to(DEVICE)
        objective.outputs(solver, batch)
        with Transfers() as transfers:
            sum(objective.contributions(objective.outputs(solver, batch), batch).values()).backward()
        assert transfers.found == []
        assert all(p.grad is not None for p in solver.parameters())


def test_ensembles_at_once_copy_nothing_and_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    physics = ph.capture(forced_step)
    members = [ph.HybridSolver(physics, SmallNet(2, 1, 1, seed=n)) for n in range(3)]
    for member in members:
        member.network.seen = None
    ensemble, u, f = ph.Ensemble(members), line(0, b=2), line(1, b=2)
    bound = ensemble.bind(u, f)
    tensors = bound.flatten(ensemble.repeat(u), f)
    with pretended(monkeypatch):
        ensemble.to(DEVICE)
        tensors = [t.to(DEVICE) for t in tensors]
        bound.native(*tensors)
        step = ensemble.known[0]
        assert step._stacked is not None
        with Transfers() as transfers, torch.no_grad():
            step(*tensors)
        assert not transfers.found and step._stacked is not None


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["wake", "smoke"])
def test_sampling_has_a_deterministic_gradient(name: str, deterministic: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of torch has none on GPUs; values without a gradient stay those of torch."""
    block, arguments = captured(name, check=False)
    tensors = block.flatten(*arguments)
    with pretended(monkeypatch):
        graph = block.to(DEVICE).known[0]
        tensors = [t.to(DEVICE).requires_grad_() for t in tensors]
        graph(*tensors)  # makes the solvers
        with Transfers() as transfers:
            sum(r.sum() for r in graph(*tensors)).backward()
        assert not transfers.found and not any("grid_sampler" in n for n in transfers.operations)
        with Transfers() as transfers, torch.no_grad():
            graph(*tensors)
        assert any("grid_sampler" in n for n in transfers.operations)
