"""Poisson's operators as inverse simulators of each other, on a sizeable grid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from phi.torch.flow import Field, math

import phi_hybrid as ph
from phi_hybrid.pde import poisson

torch.set_num_threads(1)


def largest(u: Field) -> float:
    return float(np.abs(u.values.numpy(["trajectory", "x", "y"])).max())


@pytest.mark.parametrize(
    ("operator", "inverse"),
    [(poisson.solve, poisson.laplace), (poisson.laplace, poisson.solve)],
    ids=["solve", "laplace"],
)
def test_one_correction_reaches_the_observation(operator: Callable, inverse: Callable) -> None:
    """x̃ = x − P⁻¹(y − y*), the update of Holl et al. 2022: P x̃ = y* and x̃ = x* to rounding, from afar as from nearby."""
    with math.precision(64):
        grid = poisson.square(64)
        p, p_inverse = ph.capture(operator), ph.capture(inverse)
        true, far = poisson.noise(grid, 3, seed=0), poisson.noise(grid, 3, seed=1)
        for x in (far, true + 1e-3 * far):
            found = x - p_inverse(p(x) - p(true))
            assert largest(found - true) < 1e-12 * largest(true)
            assert largest(p(found) - p(true)) < 1e-12 * largest(p(true))
