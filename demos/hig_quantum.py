"""Train a network to steer a quantum particle, with half-inverse gradients and with other optimizers.

The network sees a superposition of the second and the third eigenstate and returns the field over 384 Crank–Nicolson
steps that is to bring the particle there from the first (quantum dipole of Schnell et al. 2022, arXiv 2203.10131). Every
optimizer gets the same time. Loss: 1 − |⟨ψ, ψ*⟩|², mean over the samples.

    python demos/hig_quantum.py [--quick | --full] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import torch
from common import arguments, require_device
from contest import Entrant, Task, run
from phi.math import batch, expand, zeros

import phi_hybrid as ph
from phi_hybrid.optim import HIG
from phi_hybrid.pde.quantum import Well

SAMPLES, HELD_OUT, SECONDS = 4096, 128, 100

# the paper's rate of 0.5 and cutoff of 1e-5 take longer than Adam at its best rate
ENTRANTS = {
    "adam": Entrant(lambda net: torch.optim.Adam(net.parameters(), 1e-2), 32),
    "gauss_newton": Entrant(lambda net: HIG(net, 4.0, 1.0, 1e-3, per_sample=False, progress=False), 16),
    "hig": Entrant(lambda net: HIG(net, 4.0, 0.5, 1e-3, per_sample=False, progress=False), 16),
}


def infidelity(psi: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Of wave functions and of targets `(sample, 28)`, real parts before imaginary ones."""
    overlap = (torch.complex(*target.chunk(2, 1)).conj() * psi).sum(1)
    return 1 - (overlap.real**2 + overlap.imag**2).mean()


def make_task(seed: int) -> Task:
    well = Well()
    targets = well.superpositions(SAMPLES + HELD_OUT, seed)
    block = ph.capture(well.controlled)
    ground, _ = block.flatten(
        expand(well.eigenstate(1), targets.shape.batch), zeros(targets.shape.batch, batch(time=well.steps))
    )
    (whole,) = ph.bridge.flatten(targets)[0]
    torch.manual_seed(seed)
    layers, width = [], 2 * whole.shape[1]
    for _ in range(3):
        layers += [torch.nn.Linear(width, 20), torch.nn.Tanh()]
        width = 20
    return Task(
        torch.nn.Sequential(*layers, torch.nn.Linear(width, well.steps)),
        lambda field, target: block.native(ground[: len(target)].to(target.device), field.T)[0],
        infidelity,
        *torch.cat([whole.real, whole.imag], 1).split([SAMPLES, HELD_OUT]),
    )


def main() -> None:
    options = arguments(__doc__, "hig_quantum").parse_args()
    require_device(options.device)
    torch.set_num_threads(1)  # the networks are too small to share
    run(make_task, ENTRANTS, SECONDS * (0.05 if options.quick else 3 if options.full else 1), options)


if __name__ == "__main__":
    main()
