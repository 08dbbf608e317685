"""An ensemble's members at once, vmapped over their weights, against one after the other: the same work, one thread.

    pytest tests/benchmarks/test_bench_ensemble.py

8 members, 1D Burgers on 64 cells, the network of demos/burgers_correction.py (three blocks of 32 filters): rollouts of 20
steps of one trajectory and of 16.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases.timed import there
from phi.torch.flow import advect
from phiml.nn import res_net

import phi_hybrid as ph
from phi_hybrid.hybrid.ensemble import alike
from phi_hybrid.pde import burgers

MEMBERS, STEPS = 8, 20
FASTER = {1: 1.4, 16: 0.9}
"""How many times faster it is to be at least, by the number of trajectories: with 16, the arithmetic of the network rules."""


def ensemble(at_once: bool) -> ph.Ensemble:
    physics = ph.capture(burgers.burgers_step(0.025, 0.01, 1, advect.mac_cormack))
    members = []
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        network = res_net(2, 1, [32, 32, 32], in_spatial=1, periodic=True)
        if not at_once:
            network.number = seed  # whose meaning nobody knows: the members are unlike
        members.append(ph.HybridSolver(physics, network))
        members[-1].set_scales(torch.ones(2), torch.full((1,), 0.01))
        there(members[-1])
    result = ph.Ensemble(members)
    assert alike(result.members) == at_once
    return result


@pytest.mark.parametrize("trajectories", FASTER)
@pytest.mark.parametrize("way", ["one by one", "at once"])
def test_rollout(way: str, trajectories: int, measure: Callable[..., None]) -> None:
    torch.set_num_threads(1)
    solver, line = ensemble(way == "at once"), burgers.line(64)
    u = there(burgers.waves_1d(line, trajectories, None, (1, 4), 5, 0.5, seed=0))
    f = there(burgers.waves_1d(line, trajectories, None, (3, 6), 5, 0.5, seed=1))
    measure(f"{trajectories} trajectories", way, lambda: solver.rollout(u, STEPS, f), rounds=9)


@pytest.mark.parametrize("trajectories", FASTER)
def test_at_once_is_faster(trajectories: int, ratio: Callable[[str, str, str], float]) -> None:
    assert ratio(f"{trajectories} trajectories", "at once", "one by one") >= FASTER[trajectories]
