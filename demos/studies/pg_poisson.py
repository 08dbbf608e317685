"""Find the sources of a potential: a network inverts Poisson's equation, trained by physical gradients and by plain ones.

The network sees y* = ∇⁻²x* on 64² cells with zero boundary and returns x. ∇⁻² takes out fine structures, so that plain
gradients hardly see them; physical gradients (Holl et al. 2022, arXiv 2109.15048) correct x by ∇²(y* − y). Physics in
double, network in single precision. All see the same samples for the same time.

    python demos/pg_poisson.py [--quick | --full] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import torch
from inversion import (
    Entrant,
    Inversion,
    Scaled,
    cosine,
    lbfgs,
    native,
    physical_gradient,
    plain_gradient,
    run,
    supervised,
    throughout,
)
from phi import math
from phiml.nn import u_net

import phi_hybrid as ph
from phi_hybrid.pde import poisson

CELLS, SAMPLES, HELD_OUT, SECONDS = 64, 2048, 128, 60

ENTRANTS = {
    "adam": Entrant(throughout(plain_gradient), cosine(3e-3), 16),
    "pg": Entrant(throughout(physical_gradient), cosine(1e-2), 16),
    "lbfgs": lbfgs(128),
    "supervised": Entrant(throughout(supervised), cosine(1e-2), 16),
}


def make_task(seed: int) -> Inversion:
    with math.precision(64):
        sources = poisson.noise(poisson.square(CELLS), SAMPLES + HELD_OUT, seed)
        physics, inverse = native(poisson.solve, sources), native(poisson.laplace, sources)
        (truth,) = ph.bridge.flatten(sources)[0]
    torch.manual_seed(seed)
    network = u_net(1, 1, levels=4, filters=8, batch_norm=False, use_res_blocks=True)
    return Inversion(Scaled(network, float(physics(truth).std()), 1.0), physics, inverse, truth, HELD_OUT)


def main() -> None:
    run(__doc__, "pg_poisson", make_task, ENTRANTS, SECONDS)


if __name__ == "__main__":
    main()
