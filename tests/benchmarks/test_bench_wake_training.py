"""One training iteration of the wake demo against its network alone, and against PhiFlow code written by hand.

    pytest tests/benchmarks/test_bench_wake_training.py

Flow past a cylinder, 64×32, batch 3 at Re 100, 400 and 1600, 4 unrolled steps, Adam, the demo's residual network of
47330 parameters with Re as an input. By hand: the same iteration with PhiFlow's step, eager or `jit_compile`d, its
pressure solved by CG to 1e-5, and the same network without compilation.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases.timed import device, there, training_iteration
from phi import math
from phi.field import Field
from phi.math import batch, dual, spatial, wrap
from phi.torch.flow import Solve, advect, diffuse, fluid
from phiml.nn import res_net

import phi_hybrid as ph
from phi_hybrid.data import Batch
from phi_hybrid.pde.navier_stokes import Wake

pytestmark = pytest.mark.usefixtures("mended_phiml")

FLOW, DT, CELLS, STEPS, RE = Wake(), 1.0, 64, 4, (100.0, 400.0, 1600.0)
SUBSTEPS = FLOW.substeps(DT, CELLS, min(RE))
UNCOMPILED, COMPILED = "wake training iteration, not compiled", "wake training iteration, both compiled"
WAYS = {
    UNCOMPILED: ["network alone", "hybrid solver", "jit_compile", "eager"],
    COMPILED: ["network alone", "hybrid solver"],
}
REQUIRED = [
    (UNCOMPILED, "network alone", 1 / 1.5),
    (COMPILED, "network alone", 1 / 1.25),
    (UNCOMPILED, "jit_compile", 7),
]
"""Case, other way, times that the hybrid solver must be faster."""


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    net = res_net(3, 2, [32, 32, 32])
    assert sum(p.numel() for p in net.parameters()) == 47330
    return net


def window() -> Batch:
    """Four reference steps of each Reynolds number, 20 steps after the gust."""
    physics, reynolds = ph.capture(FLOW.step(DT, SUBSTEPS)), there(wrap(torch.tensor(RE), batch("trajectory")))
    start = ph.rollout(physics, there(FLOW.disturbed(CELLS, len(RE))), 20, reynolds).time[-1]
    return ph.Trajectories.generate(physics, start, STEPS, (reynolds,), progress=False).whole().to(device())


def phiflow_step(velocity: Field, reynolds: math.Tensor) -> Field:
    velocity = advect.semi_lagrangian(velocity, velocity, DT)
    velocity = diffuse.explicit(velocity, FLOW.viscosity(reynolds), DT, substeps=SUBSTEPS)
    return fluid.make_incompressible(velocity, [FLOW.obstacle], Solve("CG", 1e-5))[0]


def network_alone(net: torch.nn.Module, window: Batch) -> torch.Tensor:
    reynolds = torch.tensor(RE, device=device()).view(-1, 1, 1, 1).expand(-1, 1, CELLS // 2, CELLS)
    state, total = torch.stack([window.initial[0][:, :-1], window.initial[1]], 1), 0.0
    for _ in range(STEPS):
        state = state + net(torch.cat([state, reynolds], 1))
        total = total + (state**2).mean()
    return total


def by_hand(net: torch.nn.Module, window: Batch, physics: Callable) -> torch.Tensor:
    """The loss of the hybrid solver; `u` `(b, x, y)` has 33×64 faces, `v` 32×64."""
    grid, reynolds = FLOW.grid(CELLS), torch.tensor(RE, device=device())
    (u, v), total = window.initial, 0.0
    for n in range(STEPS):
        components = {d: wrap(t, batch("b"), spatial("x,y")) for d, t in (("x", u), ("y", v))}
        velocity = grid.with_values(math.stack(components, dual("vector")))
        values = physics(velocity, wrap(reynolds, batch("b"))).values
        u, v = (values[{"~vector": d}].native("b,x,y") for d in "xy")
        shown = torch.nn.functional.pad(v[:, :, :-1], (1, 0), value=FLOW.speed)  # cells own their lower faces
        change = net(torch.stack([u[:, :-1], shown, reynolds.view(-1, 1, 1).expand_as(v)], 1))
        u = u + torch.nn.functional.pad(change[:, 0], (0, 0, 0, 1), "replicate")
        v = v + torch.nn.functional.pad(change[:, 1, :, 1:], (0, 1), "replicate")
        for t, target, scale in zip((u, v), window.targets, window.scale):
            total = total + (((t - target[:, n]) / scale) ** 2).sum()
    return total / (STEPS * (u.numel() + v.numel()))


def loss_of(way: str, compiled: bool, net: torch.nn.Module, window: Batch) -> Callable[[], torch.Tensor]:
    if way == "network alone":
        return lambda: network_alone(net, window)
    if way == "hybrid solver":
        solver = there(ph.HybridSolver(ph.capture(FLOW.step(DT, SUBSTEPS), compile=compiled), net))
        objective = ph.Unrolled(STEPS)
        return lambda: objective.loss(objective.outputs(solver, window), window)
    physics = math.jit_compile(phiflow_step) if way == "jit_compile" else phiflow_step
    return lambda: by_hand(net, window, physics)


@pytest.mark.parametrize("case, way", [(case, way) for case, ways in WAYS.items() for way in ways])
def test_iteration(measure: Callable, case: str, way: str) -> None:
    compiled = case == COMPILED
    net = torch.compile(there(network())) if compiled else there(network())
    measure(case, way, training_iteration(net, loss_of(way, compiled, net, window())))


def test_sides_agree() -> None:
    data, results = window(), []
    for way in WAYS[UNCOMPILED][1:]:
        net = there(network())
        loss = loss_of(way, False, net, data)()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in net.parameters())])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.norm(a - b) <= 1e-2 * torch.norm(a) + 1e-6


@pytest.mark.parametrize("case, other, factor", REQUIRED)
def test_required_ratio(ratio: Callable, case: str, other: str, factor: float) -> None:
    assert ratio(case, "hybrid solver", other) >= factor
