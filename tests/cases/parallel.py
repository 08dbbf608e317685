"""One process of `tests/optim/test_jacobian.py`: trains with the samples of its rank, `python parallel.py rank world folder`."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import torch
from torch import nn

import phi_hybrid as ph
from phi_hybrid.optim import (
    HIG,
    Closure,
    Dense,
    GolubKahan,
    Gram,
    LevenbergMarquardt,
    ParameterGram,
    Smooth,
    Structured,
)
from phi_hybrid.pde import poisson

ENGINES = {
    "dense": Dense(),
    "gram": Gram(chunk=7),
    "parameters": ParameterGram(chunk=7),
    "structured": Structured(chunk=5),
    "golub_kahan": GolubKahan(1e-9, memory=0),
}
SAMPLES = 6


@functools.cache
def physics() -> ph.PhysicsBlock:
    """Poisson's equation on 4×4 cells."""
    block = ph.capture(poisson.solve)
    with ph.linear_solve.linear_solves():
        block.flatten(poisson.noise(poisson.square(4), 1, 0))
    return block


def trained(engine: str, module_of: type | None, chosen: slice, updates: int = 2) -> torch.Tensor:
    """Weights after updates on some of the samples, half-inverse ones and as many of Levenberg and Marquardt."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(32, 16), nn.LayerNorm(16)
    ).double()
    with torch.random.fork_rng():
        x = torch.randn(SAMPLES, 1, 4, 4, dtype=torch.float64)[chosen]
    model = net if module_of is None else module_of(net)
    closure = Closure(
        lambda: physics().native(model(x).view(-1, 4, 4))[0], lambda y: ((y - x[:, 0]) ** 2).sum((1, 2)).mean()
    )
    half_inverse = HIG(model, 0.5, 0.5, Smooth(1e-2), engine=ENGINES[engine], progress=False)
    damped = LevenbergMarquardt(model, engine=Gram(), progress=False)
    for _ in range(updates):
        half_inverse.step(closure)
        damped.step(closure)
    return torch.cat([p.detach().flatten() for p in net.parameters()])


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    size = SAMPLES // world
    own = slice(rank * size, (rank + 1) * size)
    weights = {name: trained(name, nn.parallel.DistributedDataParallel, own) for name in ENGINES}
    torch.save(weights, folder / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads outlive DistributedDataParallel and its group, and sometimes abort an ordinary exit
