"""Find where heat came from: a network inverts diffusion, trained by physical gradients and by plain ones.

On 64² periodic cells, heat has diffused for νt = 8 cells², which takes out fine structures almost entirely. Physical
gradients (Holl et al. 2022, arXiv 2109.15048) sharpen the error of y as far as noise allows and make that the update of x.
Physics in double, network in single precision. All see the same samples for the same time.

    python demos/pg_heat.py [--quick | --full] [--seeds N] [--out DIR]
"""

from __future__ import annotations

import numpy as np
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
from phi.math import batch, spatial
from phiml.nn import u_net

from phi_hybrid.pde import heat

CELLS, VISCOSITY, TIME = 64, 1.0, 8.0
SAMPLES, HELD_OUT, SECONDS = 2048, 128, 100
NOISE = 1e-12
"""Of y, per cell: that of rounding in double precision; what has not drowned in it is sharpened."""

ENTRANTS = {
    "adam": Entrant(throughout(plain_gradient), cosine(3e-3), 16),
    "pg": Entrant(throughout(physical_gradient), cosine(1e-2), 16),
    "pg_then_adam": Entrant(((physical_gradient, 0.85), (plain_gradient, 1.0)), cosine(1e-2), 16),
    "lbfgs": lbfgs(128),
    "supervised": Entrant(throughout(supervised), cosine(1e-2), 16),
}


def sources(count: int, seed: int) -> np.ndarray:
    """Rectangles of heat at random places, of random sizes and strengths, less their mean."""
    rng = np.random.default_rng(seed)
    cells = np.arange(CELLS)
    images = np.zeros((count, CELLS, CELLS))
    for image in images:
        for _ in range(rng.integers(2, 7)):
            width, centre = rng.uniform(3, 16, 2), rng.uniform(0, CELLS, 2)
            along = [np.abs((cells - c + CELLS / 2) % CELLS - CELLS / 2) < w / 2 for c, w in zip(centre, width)]
            image += rng.uniform(-1, 1) * np.outer(*along)
    return images - images.mean((1, 2), keepdims=True)


def make_task(seed: int) -> Inversion:
    values = sources(SAMPLES + HELD_OUT, seed)
    values /= values.std()
    with math.precision(64):
        field = heat.square(CELLS).with_values(math.wrap(values, batch("sample"), spatial("x,y")))
        physics = native(heat.heat_step(TIME, VISCOSITY), field)
        inverse = native(heat.Sharpening(VISCOSITY, TIME, NOISE), field)
    truth = torch.from_numpy(values)
    torch.manual_seed(seed)
    unet = u_net(1, 1, levels=4, filters=8, batch_norm=False, periodic=True, use_res_blocks=True)
    network = torch.nn.Sequential(Scaled(unet, float(physics(truth).std()), 1.0), ZeroMean())
    return Inversion(network, physics, inverse, truth, HELD_OUT)


class ZeroMean(torch.nn.Module):
    """Less the mean over the grid, since diffusion keeps it and that of y* is 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean((1, 2), keepdim=True)


def main() -> None:
    run(__doc__, "pg_heat", make_task, ENTRANTS, SECONDS)


if __name__ == "__main__":
    main()
