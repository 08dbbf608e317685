"""One training iteration of decaying turbulence with a plain convolutional network, against the network alone.

    pytest tests/benchmarks/test_bench_turbulence_training.py

Periodic box, 64², batch 4, semi-Lagrangian advection, diffusion, projection, 4 unrolled steps, Adam; six layers of 5×5
convolutions with 32 channels and periodic padding, 105,762 parameters, in size between the networks of Kochkov et al. 2021
(arXiv 2102.01010) and List et al. 2022 (arXiv 2202.06988).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases.timed import device, there, training_iteration
from phi import math
from phi.math import batch, wrap

import phi_hybrid as ph
from phi_hybrid.data import Batch
from phi_hybrid.pde.navier_stokes import divergence_free_noise, navier_stokes_step, periodic_square

CELLS, STEPS, ROWS, DT, WIDTH, HIDDEN = 64, 4, 4, 0.05, 32, 4
CASES = {False: "turbulence training iteration, not compiled", True: "turbulence training iteration, both compiled"}
WAYS = ["network alone", "hybrid solver"]


def network() -> torch.nn.Module:
    torch.manual_seed(0)

    def layer(inputs: int, outputs: int) -> torch.nn.Module:
        return torch.nn.Conv2d(inputs, outputs, 5, padding=2, padding_mode="circular")

    hidden = [part for _ in range(HIDDEN) for part in (layer(WIDTH, WIDTH), torch.nn.ReLU())]
    net = torch.nn.Sequential(layer(2, WIDTH), torch.nn.ReLU(), *hidden, layer(WIDTH, 2))
    torch.nn.init.normal_(net[-1].weight, std=1e-3)
    assert sum(p.numel() for p in net.parameters()) == 105762
    return net


def window() -> Batch:
    start = there(divergence_free_noise(periodic_square(CELLS), ROWS, 4, 1.0, seed=0))
    viscosity = there(math.expand(wrap(1e-3), batch(trajectory=ROWS)))
    physics = ph.capture(navier_stokes_step(DT))
    return ph.Trajectories.generate(physics, start, STEPS, (viscosity,), progress=False).whole().to(device())


def loss_of(way: str, compiled: bool, net: torch.nn.Module, window: Batch) -> Callable[[], torch.Tensor]:
    if way == "hybrid solver":
        solver = there(ph.HybridSolver(ph.capture(navier_stokes_step(DT), compile=compiled), net, sees=()))
        objective = ph.Unrolled(STEPS)
        return lambda: objective.loss(objective.outputs(solver, window), window)

    def alone() -> torch.Tensor:
        state, total = torch.stack(window.initial, 1), 0.0
        for _ in range(STEPS):
            state = state + net(state)
            total = total + (state**2).mean()
        return total

    return alone


@pytest.mark.parametrize("compiled", CASES, ids=["uncompiled", "compiled"])
@pytest.mark.parametrize("way", WAYS)
def test_iteration(measure: Callable, compiled: bool, way: str) -> None:
    net = torch.compile(there(network())) if compiled else there(network())
    measure(CASES[compiled], way, training_iteration(net, loss_of(way, compiled, net, window())))


@pytest.mark.parametrize("case", CASES.values())
def test_required_ratio(ratio: Callable, case: str) -> None:
    assert ratio(case, "hybrid solver", "network alone") >= 1 / 1.1
