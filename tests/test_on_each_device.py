"""What must hold on every device, on the CPU and on a GPU where there is one: numbers are those of plain PhiFlow, NumPy and
torch on the CPU, and nothing in a step or its gradient waits for the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.devices import devices_in
from cases.equations import EQUATIONS, PARTS
from cases.hig import Task, relative, update_by_hand
from cases.small import SmallNet, equal, forced_data, forced_step, line, noise, relative_difference
from cases.solve_steps import smoothed
from cases.solves import METHODS, axis_matrix, box_matrix, relative_error, sum_over_axes, system, with_obstacle

import phi_hybrid as ph
from phi_hybrid.bridge import flatten, unflatten
from phi_hybrid.linear_solve import LinearSolve, check_solves, linear_solves
from phi_hybrid.optim import HIG
from phi_hybrid.steps import PlainStep, Step

STEPS = {**EQUATIONS, **PARTS}
del STEPS["custom gradient, random numbers"]  # which each device draws for itself
SHAPE = (4, 3)
BOX = box_matrix(("outlet", "walls"), SHAPE)
MATRICES = {
    "fast": sum_over_axes([axis_matrix("outlet", 4), axis_matrix("walls", 3)]),
    "factored": np.diag(np.linspace(1.0, 2.0, 12)) @ with_obstacle(BOX, [7]),
    "iterative": with_obstacle(BOX, [7], cuts=False),
    "capacitance": with_obstacle(BOX, [7]),
}


def on(device: torch.device, state: Any) -> Any:
    tensors, layout = flatten(state)
    return unflatten(layout, [t.to(device) for t in tensors])


def to_cpu(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [t.detach().cpu() for t in tensors]


@contextlib.contextmanager
def without_waiting(device: torch.device) -> Iterator[None]:
    """Context in which it is an error to wait for the device."""
    if device.type == "cpu":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def require_close(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], digits: float = 1.0) -> None:
    for a, b in zip(to_cpu(found), to_cpu(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        tolerance = digits * (1e-10 if b.dtype in (torch.float64, torch.complex128) else 1e-5)
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1.0)


# --- steps ---


@pytest.mark.parametrize("name", STEPS)
def test_captured_steps_are_plain_phiflow(name: str, device: torch.device) -> None:
    """Captured there, and captured on the CPU and moved."""
    step, arguments = STEPS[name]()
    with linear_solves():
        expected = flatten(step(*arguments))[0]
    there = [on(device, a) if flatten(a)[0] else a for a in arguments]
    blocks = [ph.capture(step, *there, check=device.type != "cpu")]
    if device.type != "cpu":
        blocks.append(ph.capture(step, *arguments, check=False).to(device))
    for block in blocks:
        found = flatten(block(*there))[0]
        assert {t.device.type for t in found} == {device.type} and len(block.known) == 1
        assert {d.type for d in devices_in(block)} <= {device.type}  # nothing is copied in a step
        require_close(found, expected)


@pytest.mark.parametrize("name", EQUATIONS)
def test_gradients_are_those_of_plain_phiflow_and_wait_for_nothing(name: str, device: torch.device) -> None:
    step, arguments = STEPS[name]()

    def gradients(kind: Step, on: torch.device) -> list[torch.Tensor]:
        bound = kind.to(on).bind(*arguments)
        inputs = [t.to(on).requires_grad_() for t in bound.flatten(*arguments)]
        if kind is block:
            bound.native(*inputs)  # makes the solvers
        with without_waiting(on) if kind is block else contextlib.nullcontext():
            results = [torch.view_as_real(r) if r.is_complex() else r for r in bound.native(*inputs)]
            loss = sum((r * torch.linspace(-1, 1, r.numel(), device=on).view(r.shape)).sum() for r in results)
            found = torch.autograd.grad(loss, inputs)
        check_solves()
        return list(found)

    block = ph.capture(step, *arguments, check=False)
    require_close(gradients(block, device), gradients(PlainStep(step), torch.device("cpu")), digits=10)


@pytest.mark.parametrize("name", ["burgers", "wake", "obstacle", "smoke"])
def test_rollouts(name: str, device: torch.device) -> None:
    step, (state, *inputs) = STEPS[name]()
    expected = state
    with linear_solves():
        for _ in range(4):
            expected = step(expected, *inputs)
    there = [on(device, a) for a in inputs]
    found = ph.repeat(ph.capture(step, check=False), on(device, state), 4, *there)
    require_close(flatten(found)[0], flatten(expected)[0], digits=10)


def test_failures_of_solves_are_told(device: torch.device) -> None:
    u = on(device, line(0, b=2))
    bad = u * float("nan")
    block = ph.capture(smoothed, u)
    with pytest.raises(ph.SolveError, match="NaN or infinite"):
        block(bad)
    with pytest.raises(ph.SolveError, match="NaN or infinite"):
        block.bind(u).native(*flatten(bad)[0])
        check_solves()
    check_solves()


# --- solves ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_solves(name: str, dtype: torch.dtype, device: torch.device) -> None:
    solve = LinearSolve(system(MATRICES[name], SHAPE), METHODS[name], 1e-5, 0.0)
    inverse = torch.as_tensor(np.linalg.inv(MATRICES[name]))
    rhs = noise(3, 12, dtype=dtype).to(device).requires_grad_()
    x = solve(rhs)
    (gradient,) = torch.autograd.grad(x, rhs, x.detach())
    check_solves()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-10
    expected = rhs.detach().cpu().double() @ inverse.T
    assert x.device.type == device.type and relative_error(x.detach().cpu(), expected) < tolerance
    assert relative_error(gradient.cpu(), expected @ inverse) < 10 * tolerance


# --- solvers ---


def trainer_on(device: torch.device, **settings: Any) -> ph.Trainer:
    solver = ph.HybridSolver(ph.capture(forced_step, check=False), SmallNet(2, 1, 1, **settings)).to(device)
    optimizer = torch.optim.Adam(solver.parameters(), 1e-2)
    return ph.Trainer(solver, forced_data(), ph.Unrolled(3), optimizer=optimizer, batch_size=3, progress=False)


def test_training_is_that_of_the_cpu(device: torch.device) -> None:
    found, expected = (trainer_on(d) for d in (device, torch.device("cpu")))
    assert found.fit(4)["loss"] == pytest.approx(expected.fit(4)["loss"], rel=1e-4)
    weights = [to_cpu(t.solver.parameters()) for t in (found, expected)]
    assert relative_difference(*weights) < 1e-3


def test_training_is_resumed_exactly(device: torch.device, tmp_path: Path) -> None:
    """Random numbers included, as in dropout."""
    whole = trainer_on(device, dropout=0.5)
    whole.fit(4)
    part = trainer_on(device, dropout=0.5)
    part.fit(2)
    part.save(tmp_path / "part.pt")
    torch.rand(3, device=device)
    again = trainer_on(device, dropout=0.5).resume(tmp_path / "part.pt")
    again.fit(4)
    assert equal(to_cpu(whole.solver.parameters()), to_cpu(again.solver.parameters()))
    assert len(set(whole.history["loss"])) == 4


def test_an_unrolled_gradient_waits_for_nothing(device: torch.device) -> None:
    trainer = trainer_on(device)
    trainer.fit(1)
    batch = trainer.windows.shuffled(1, 3, 0).to(device)
    objective = ph.Unrolled(3, noise=ph.Noise(0.01))
    with without_waiting(device):
        outputs = objective.outputs(trainer.solver, batch)
        sum(objective.contributions(outputs, batch).values()).backward()


def test_half_inverse_gradients_are_those_of_numpy(device: torch.device) -> None:
    expected, task = update_by_hand(Task(4), 0.5, 0.0, damping=0.3), Task(4)
    task.net.to(device)
    task.x, task.target, task.matrix = (t.to(device) for t in (task.x, task.target, task.matrix))
    before = [p.detach().clone() for p in task.net.parameters()]
    HIG(task.net, 1.0, 0.5, ph.optim.Cutoff(0.0, 0.3), per_sample=False).step(task.closure)
    moved = torch.cat([(p.detach() - b).reshape(-1).cpu() for p, b in zip(task.net.parameters(), before)])
    assert relative(moved.numpy(), expected) < 1e-6


def test_ensembles_are_their_members(device: torch.device) -> None:
    physics = ph.capture(forced_step)
    members = [ph.HybridSolver(physics, SmallNet(2, 1, 1, seed=n)).to(device) for n in range(3)]
    u, f = (on(device, line(n, b=2)) for n in range(2))
    found = ph.Ensemble(members).rollout(u, 3, f)
    for number, member in enumerate(members):
        require_close(flatten(found.member[number])[0], flatten(ph.rollout(member, u, 3, f))[0], digits=10)


def test_saved_and_exported_solvers(device: torch.device, tmp_path: Path) -> None:
    solver = ph.HybridSolver(ph.capture(forced_step, check=False), SmallNet(2, 1, 1)).to(device)
    u, f = (on(device, line(n, b=2)) for n in range(2))
    expected = flatten(solver(u, f))[0]
    solver.save(tmp_path / "solver.ph", u, f)
    require_close(flatten(ph.load(tmp_path / "solver.ph")(u, f))[0], expected)
    on_cpu = [on(torch.device("cpu"), s) for s in (u, f)]
    require_close(flatten(ph.load(tmp_path / "solver.ph")(*on_cpu))[0], expected, digits=10)
    ph.export(solver, u, f, path=tmp_path / "step.pt2")
    program = torch.export.load(tmp_path / "step.pt2").module()
    require_close(program(*flatten((u, f))[0]), expected)


def test_deterministic_gradients_are_equal_to_the_last_bit(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    step, arguments = STEPS["smoke"]()
    bound = ph.capture(step).bind(*(there := [on(device, a) for a in arguments]))
    inputs = [t.requires_grad_() for t in bound.flatten(*there)]
    torch.use_deterministic_algorithms(True)
    try:
        found = [torch.autograd.grad(sum(r.square().sum() for r in bound.native(*inputs)), inputs) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(equal(f, found[0]) for f in found) and any(bool(g.any()) for g in found[0])
