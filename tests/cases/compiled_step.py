"""Run in processes of its own: captures a step, compiles it, and prints what torch's caches on disk had of it.

Arguments: cells along x, and along y of other flows that are captured before.
"""

from __future__ import annotations

import sys

import torch
from phi.torch.flow import PERIODIC, Field, Noise, StaggeredGrid, advect, diffuse, fluid, math

import phi_hybrid as ph


def step(v: Field) -> Field:
    return fluid.make_incompressible(diffuse.explicit(advect.semi_lagrangian(v, v, 0.1), 0.01, 0.1))[0]


def main() -> None:
    torch.set_num_threads(1)
    math.seed(0)
    for cells in map(int, sys.argv[2:]):
        ph.capture(step, StaggeredGrid(Noise(), PERIODIC, x=8, y=cells))
    v = StaggeredGrid(Noise(), PERIODIC, x=int(sys.argv[1]), y=8)
    block = ph.capture(step, v, compile=True)
    tensors = [t.requires_grad_() for t in block.flatten(v)]
    torch.autograd.grad(sum((t**2).sum() for t in block.native(*tensors)), tensors)
    counts = torch._dynamo.utils.counters
    for group, name in (("inductor", "fxgraph_cache"), ("aot_autograd", "autograd_cache")):
        for outcome in ("hit", "miss", "bypass"):
            print(name, outcome, counts[group][f"{name}_{outcome}"])


if __name__ == "__main__":
    main()
