"""Train a network to solve Poisson's equation, with half-inverse gradients and with other optimizers.

The network sees a right-hand side f on 8×8 cells with zero boundary and returns a solution u, which is judged by ∇²u
(Schnell et al. 2022, arXiv 2203.10131). Every optimizer gets the same time. Loss: Σ|∇²u − f|², mean over the samples.

    python demos/hig_poisson.py [--quick | --full] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import torch
from common import arguments, require_device
from contest import Entrant, Task, run

import phi_hybrid as ph
from phi_hybrid.optim import HIG, GolubKahan, Smooth
from phi_hybrid.pde import poisson

SAMPLES, HELD_OUT = 8192, 1024
SECONDS = 150


def hig(kappa: float, lr: float, rcond: float) -> Entrant:
    """Matrix-free, since J·Jᵀ of so large a batch has 16384² entries; exact engines do worse with smaller ones."""
    return Entrant(lambda net: HIG(net, lr, kappa, Smooth(rcond), engine=GolubKahan(0.1), progress=False), 256)


ENTRANTS = {
    "adam": Entrant(lambda net: torch.optim.Adam(net.parameters(), 5e-4), 256),
    "gauss_newton": hig(1.0, 0.5, 0.003),
    "hig": hig(0.5, 0.1, 0.01),
}


def make_task(seed: int) -> Task:
    right_hand_sides = poisson.noise(poisson.square(8), SAMPLES + HELD_OUT, seed)
    block = ph.capture(poisson.laplace)
    block.flatten(right_hand_sides)
    (whole,) = ph.bridge.flatten(right_hand_sides)[0]
    torch.manual_seed(seed)
    layers, widths = [torch.nn.Flatten()], (64, 64, 128, 64)
    for before, width in zip(widths, widths[1:]):
        layers += [torch.nn.Linear(before, width), torch.nn.Tanh()]
    return Task(
        torch.nn.Sequential(*layers, torch.nn.Linear(64, 64), torch.nn.Unflatten(1, (8, 8))),
        lambda u, f: block.native(u)[0],
        lambda y, f: ((y - f) ** 2).flatten(1).sum(1).mean(),
        *whole.float().split([SAMPLES, HELD_OUT]),
    )


def main() -> None:
    options = arguments(__doc__, "hig_poisson").parse_args()
    require_device(options.device)
    torch.set_num_threads(1)  # the network is too small to share
    run(make_task, ENTRANTS, SECONDS * (0.08 if options.quick else 3 if options.full else 1), options)


if __name__ == "__main__":
    main()
