"""Hybrid steps as one program; a backend that counts stands for the compiler, which is tested in slow tests."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases.small import SmallNet
from phi.torch.flow import PERIODIC, Box, CenteredGrid, Field, Noise, advect, batch, diffuse, math

import phi_hybrid as ph
from phi_hybrid.pde.navier_stokes import Wake

LARGEST_NETWORK = 5
"""Operations of a network alone."""


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each run of a program whether the network is part of it."""
    runs: list[bool] = []

    def backend(module: torch.fx.GraphModule, example: list, **options: Any) -> Callable:
        calls = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
        whole = any("conv" in name for name in calls) and len(calls) > LARGEST_NETWORK
        return lambda *args: runs.append(whole) or module(*args)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return runs


def transport(u: Field) -> Field:
    return diffuse.explicit(advect.semi_lagrangian(u, u, 0.1), 0.01, 0.1)


def start(rows: int = 2) -> Field:
    math.seed(0)
    return CenteredGrid(Noise(batch(b=rows), vector="x,y"), PERIODIC, Box(x=6, y=6), x=6, y=6)


def pair(coupling: ph.coupling.Coupling | None = None) -> tuple[ph.HybridSolver, ph.HybridSolver]:
    """The same solver as it is, and with physics and network compiled."""
    coupling = coupling or ph.coupling.After()
    return ph.HybridSolver(ph.capture(transport), SmallNet(2, 2, 2), coupling), compiled_solver(coupling)


def compiled_solver(coupling: ph.coupling.Coupling) -> ph.HybridSolver:
    return ph.HybridSolver(ph.capture(transport, compile=True), torch.compile(SmallNet(2, 2, 2)), coupling)


def gradients(solver: ph.HybridSolver, steps: int = 3) -> list[torch.Tensor]:
    """Last state, and gradients of its squares."""
    bound = solver.bind(start())
    state = bound.flatten(start())
    for _ in range(steps):
        state = bound.native(*state)
    loss = sum((t**2).sum() for t in state)
    return [*state, *torch.autograd.grad(loss, list(solver.parameters()))]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.norm(a - b) <= 1e-5 * torch.norm(b)


@pytest.mark.parametrize("coupling", [ph.coupling.After(), ph.coupling.Parallel(), ph.coupling.Before()], ids=repr)
def test_step_is_one_program(programs: list[bool], coupling: ph.coupling.Coupling) -> None:
    plain, compiled = pair(coupling)
    assert_close(gradients(compiled), gradients(plain))
    assert programs == [True] * 3


@pytest.mark.parametrize("which", ["physics", "network"])
def test_not_where_one_of_both_is_not_compiled(programs: list[bool], which: str) -> None:
    net = SmallNet(2, 2, 2)
    physics = ph.capture(transport, compile=which == "physics")
    solver = ph.HybridSolver(physics, torch.compile(net) if which == "network" else net)
    gradients(solver)
    assert programs == [False] * 3


def test_every_solver_has_its_own_program(programs: list[bool]) -> None:
    """Torch gives up on code that was compiled eight times."""
    for n in range(9):
        gradients(compiled_solver(ph.coupling.After()), 1)
        assert programs == [True] * (n + 1)


def test_scales_set_later_count(programs: list[bool]) -> None:
    plain, compiled = pair()
    gradients(compiled)
    for solver in (plain, compiled):
        solver.set_scales(torch.tensor([2.0, 3.0]), torch.tensor([0.5, 0.1]))
    assert_close(gradients(compiled), gradients(plain))


def test_network_compiled_in_place(programs: list[bool]) -> None:
    net = SmallNet(2, 2, 2)
    net.compile()
    gradients(ph.HybridSolver(ph.capture(transport, compile=True), net))
    assert programs == [True] * 3


def test_transformations_take_the_step_as_it_is(programs: list[bool]) -> None:
    plain, compiled = pair()
    results = []
    for solver in (plain, compiled):
        bound = solver.bind(start())
        (u,) = bound.flatten(start())
        results.append(torch.func.jvp(bound.native, (u,), (torch.ones_like(u),))[1][0])
    assert_close(results[1:], results[:1])
    assert not any(programs)


def test_projection_and_losses_before_the_correction(programs: list[bool]) -> None:
    plain, compiled = pair()
    data = ph.Trajectories.generate(
        ph.capture(transport), math.rename_dims(start(), "b", batch("trajectory")), 2, progress=False
    )
    term = ph.losses.BeforeCorrection(ph.losses.L2())
    objective = ph.Unrolled(2, ph.losses.Losses({"state": ph.losses.L2(), "before": term}))
    losses = [objective.loss(objective.outputs(s, data.whole()), data.whole()).detach() for s in (plain, compiled)]
    assert_close(losses[1:], losses[:1])


def test_network_that_does_not_fit_is_explained(programs: list[bool]) -> None:
    solver = ph.HybridSolver(ph.capture(transport, compile=True), torch.compile(SmallNet(3, 2, 2)))
    with pytest.raises(ph.errors.StateError, match="2 input channels"):
        gradients(solver)


@pytest.mark.slow
def test_wake_by_inductor() -> None:
    """The obstacle's solve in the program: values and gradients against the step that is not compiled."""
    flow, results = Wake(), []
    state, reynolds = flow.disturbed(32, 2), math.wrap([100.0, 400.0], batch("trajectory"))
    for compiled in (False, True):
        net = SmallNet(3, 2, 2)
        physics = ph.capture(flow.step(1.0), compile=compiled)
        solver = ph.HybridSolver(physics, torch.compile(net) if compiled else net)
        bound = solver.bind(state, reynolds)
        u, v, number = bound.flatten(state, reynolds)
        for _ in range(3):
            u, v = bound.native(u, v, number)
        loss = (u**2).sum() + (v**2).sum()
        results.append([u, v, *torch.autograd.grad(loss, list(net.parameters()))])
    for a, b in zip(results[1], results[0]):
        assert torch.norm(a - b) <= 1e-4 * torch.norm(b)
