"""Train a network to control coupled oscillators, with half-inverse gradients and with other optimizers.

The network sees a state and returns the forces on the last oscillator that are to bring the chain back to that state after
all steps (Schnell et al. 2022; Thuerey et al., Physics-based Deep Learning). The linear chain has 24 steps of 0.5, the
nonlinear one 96 of 0.125. Every optimizer gets the same time. Loss: Σ|y − y*|², mean over the samples.

    python demos/hig_oscillators.py [--nonlinear] [--quick | --full] [--seeds N] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from common import arguments, require_device
from contest import Entrant, Task, run
from phi.math import batch, zeros

import phi_hybrid as ph
from phi_hybrid.optim import HIG
from phi_hybrid.pde.oscillators import Oscillators, nonlinear_oscillators

SAMPLES, HELD_OUT = 4096, 1024


@dataclass(frozen=True)
class Case:
    """One chain, its network and its budget."""

    chain: Oscillators
    activation: type[torch.nn.Module]
    seconds: float
    entrants: dict[str, Entrant]


def adam(rate: float) -> Callable[[torch.nn.Module], torch.optim.Optimizer]:
    return lambda net: torch.optim.Adam(net.parameters(), rate)


def half_inverse(rate: float, kappa: float, rcond: float) -> Callable[[torch.nn.Module], torch.optim.Optimizer]:
    return lambda net: HIG(net, rate, kappa, rcond, per_sample=False, progress=False)


LINEAR = Case(
    Oscillators(),
    torch.nn.Tanh,
    20,
    {
        "adam": Entrant(adam(3e-3), 1024),
        "gauss_newton": Entrant(half_inverse(1.0, 1.0, 1e-6), 32),
        "hig": Entrant(half_inverse(1.0, 0.5, 1e-6), 32),
    },
)

# a rate of 1, as in the paper, takes four times as long; Gauss–Newton needs the larger cutoff
NONLINEAR = Case(
    nonlinear_oscillators(),
    torch.nn.ReLU,
    60,
    {
        "adam": Entrant(adam(3e-3), 128),
        "gauss_newton": Entrant(half_inverse(4.0, 1.0, 1e-3), 128),
        "hig": Entrant(half_inverse(4.0, 0.5, 1e-6), 128),
    },
)


def make_task(case: Case, seed: int) -> Task:
    chain = case.chain
    states = chain.random_states(SAMPLES + HELD_OUT, seed)
    block = ph.capture(chain.controlled)
    block.flatten(states, zeros(batch(time=chain.steps, trajectory=SAMPLES + HELD_OUT)))
    (whole,) = ph.bridge.flatten(states)[0]
    torch.manual_seed(seed)
    layers, width = [torch.nn.Flatten()], 2 * chain.count
    for _ in range(3):
        layers += [torch.nn.Linear(width, 20), case.activation()]
        width = 20
    return Task(
        torch.nn.Sequential(*layers, torch.nn.Linear(width, chain.steps)),
        lambda controls, start: block.native(start, controls.T)[0],
        lambda y, start: ((y - start) ** 2).flatten(1).sum(1).mean(),
        *whole.float().split([SAMPLES, HELD_OUT]),
    )


def main() -> None:
    parser = arguments(__doc__, "hig_oscillators")
    parser.add_argument("--nonlinear", action="store_true", help="cubic springs, 96 steps")
    options = parser.parse_args()
    require_device(options.device)
    torch.set_num_threads(1)  # the networks are too small to share
    case = NONLINEAR if options.nonlinear else LINEAR
    seconds = case.seconds * (0.25 if options.quick else 3 if options.full else 1)
    run(partial(make_task, case), case.entrants, seconds, options)


if __name__ == "__main__":
    main()
