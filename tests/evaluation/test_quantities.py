"""Diagnostics of flows against signals whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from phi.torch.flow import PERIODIC, Box, Sphere, StaggeredGrid, dual, math, spatial, wrap

import phi_hybrid as ph
from phi_hybrid.evaluation import quantities as diagnostics
from phi_hybrid.pde import navier_stokes as ns

torch.set_num_threads(1)


@pytest.mark.parametrize("frequency", [0.011, 0.0137, 0.02])
def test_strouhal_number_of_a_drifting_noisy_sine(frequency: float) -> None:
    t = np.arange(300)
    noise = 0.05 * np.random.default_rng(0).standard_normal((2, 300))
    signal = 0.7 * np.sin(2 * np.pi * frequency * t + np.array([[0.3], [2.0]])) + 0.2 + noise
    found = diagnostics.strouhal_number(signal, dt=1.0, length=20.0, speed=1.0)
    assert found == pytest.approx([20 * frequency] * 2, rel=0.02)


def test_strouhal_number_has_the_units_of_dt_length_and_speed() -> None:
    signal = np.sin(2 * np.pi * 0.05 * np.arange(200))
    assert diagnostics.strouhal_number(signal, 0.5, 3.0, 2.0) == pytest.approx(0.05 / 0.5 * 3 / 2, rel=0.01)


def test_correlation() -> None:
    a = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(diagnostics.correlation(a, 2 * a), torch.ones(3, 4))
    assert torch.allclose(diagnostics.correlation(a, -a), -torch.ones(3, 4))
    b = torch.roll(a, 1, 0)
    expected = np.vdot(a[1, 2], b[1, 2]) / np.linalg.norm(a[1, 2]) / np.linalg.norm(b[1, 2])
    assert diagnostics.correlation(a, b)[1, 2] == pytest.approx(expected, rel=1e-5)


def test_time_of_decorrelation() -> None:
    curves = np.array([[0.99, 0.9, 0.7, 0.9], [1.0, 1.0, 1.0, 1.0], [0.5, 0.9, 0.9, 0.9], [0.9, np.nan, 0.9, 0.9]])
    assert diagnostics.time_of_decorrelation(curves, 0.8, dt=0.5).tolist() == [1.0, 2.0, 0.0, 0.5]


def test_vorticity_of_taylor_green() -> None:
    grid = ns.periodic_square(64)
    velocity = math.expand(ns.taylor_green(grid, 0.0, 0.0).values, math.batch(trajectory=1, time=1))
    omega = diagnostics.vorticity(grid.with_values(velocity))[0, 0]
    corner = np.arange(64) * 2 * np.pi / 64
    expected = -2 * np.cos(corner)[:, None] * np.cos(corner)[None, :]
    assert np.abs(omega.numpy() - expected).max() < 2 * 2e-3


def test_largest_divergence() -> None:
    grid = StaggeredGrid(0, PERIODIC, x=8, y=8, bounds=Box(x=2, y=2))
    ramp = np.zeros((8, 8), dtype=np.float32)
    ramp[3, 4] = 2.0
    faces = {"x": wrap(torch.tensor(ramp), spatial("x,y")), "y": wrap(torch.ones(8, 8), spatial("x,y"))}
    velocity = grid.with_values(math.stack(faces, dual("vector")))
    assert diagnostics.largest_divergence(velocity) == pytest.approx(1.0)
    assert diagnostics.largest_divergence(velocity, Sphere(x=0.75, y=1.1, radius=0.3)) == pytest.approx(0.0, abs=1e-6)
    noise = ns.divergence_free_noise(ns.periodic_square(32), 2, 4, 1.0, seed=0)
    assert diagnostics.largest_divergence(noise) < 1e-5
    with ph.linear_solve.linear_solves():
        pass
