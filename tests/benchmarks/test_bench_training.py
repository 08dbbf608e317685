"""One training iteration of a hybrid solver against the same network called and differentiated as often.

    pytest tests/benchmarks/test_bench_training.py

2D Burgers, 64², batch 1, 8 unrolled steps, Adam, network of 5×5 convolutions with 32 channels and 5 residual blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases.timed import device, there
from phi.torch.flow import PERIODIC, Noise, StaggeredGrid, batch

import phi_hybrid as ph
from phi_hybrid.data import Batch
from phi_hybrid.pde.burgers import burgers_step

STEPS = 8


class Residual(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (torch.nn.Conv2d(channels, channels, 5, padding=2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    blocks = [Residual(32) for _ in range(5)]
    last = torch.nn.Conv2d(32, 2, 5, padding=2)
    torch.nn.init.normal_(last.weight, std=1e-3)
    return torch.nn.Sequential(torch.nn.Conv2d(4, 32, 5, padding=2), *blocks, last)


def windows() -> tuple[ph.Trajectories, Batch]:
    torch.manual_seed(0)
    state, force = (there(StaggeredGrid(Noise(batch(trajectory=1)), PERIODIC, x=64, y=64) * 0.1) for _ in range(2))
    data = ph.Trajectories.generate(ph.capture(burgers_step(0.1, 0.1)), state, STEPS, (force,), progress=False)
    return data, data.whole().to(device())


@pytest.mark.parametrize("compiled", [False, True], ids=["uncompiled", "compiled"])
@pytest.mark.parametrize("way", ["network alone", "hybrid solver"])
def test_iteration(measure: Callable, compiled: bool, way: str) -> None:
    net = torch.compile(there(network())) if compiled else there(network())
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    _, window = windows()
    if way == "network alone":
        state, force = torch.cat([t.unsqueeze(1) for t in window.initial], 1), torch.rand(1, 2, 64, 64, device=device())

        def loss() -> torch.Tensor:
            y, total = state, 0.0
            for _ in range(STEPS):
                y = y + net(torch.cat([y, force], 1))
                total = total + (y**2).mean()
            return total
    else:
        solver = there(ph.HybridSolver(ph.capture(burgers_step(0.1, 0.1), compile=compiled), net))
        objective = ph.Unrolled(STEPS)

        def loss() -> torch.Tensor:
            return objective.loss(objective.outputs(solver, window), window)

    def iteration() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    measure(f"training iteration, {'both compiled' if compiled else 'not compiled'}", way, iteration)
