"""Random states and forces, term by term; grids and the stable number of substeps."""

from __future__ import annotations

import math as pymath

import numpy as np
import pytest
import torch
from cases.small import component_values, equal
from phi.math.extrapolation import PERIODIC, ZERO
from phi.torch.flow import Field, channel, diffuse, math, spatial, wrap

import phi_hybrid as ph
from phi_hybrid.pde import burgers, grids, heat, navier_stokes, poisson

torch.set_num_threads(1)


def test_waves_1d_are_sums_of_sines() -> None:
    """The sum of sines with the same random numbers, term by term."""
    times, length, cells = np.array([0.0, 0.3, 2.0]), 3.0, 16
    f = grids.waves_1d(grids.line(cells, length), 2, times, modes=(3, 6), waves=5, amplitude=0.5, seed=4)
    found = f.values.numpy("trajectory,time,x,vector")
    assert found.shape == (2, 3, cells, 1) and found.dtype == np.float32
    rng = np.random.default_rng(4)
    a, omega = rng.uniform(-0.5, 0.5, (2, 5)), rng.uniform(-0.4, 0.4, (2, 5))
    number, phase = rng.integers(3, 7, (2, 5)), rng.uniform(0, 2 * np.pi, (2, 5))
    for b, t, i in ((0, 0, 0), (1, 2, 15), (0, 1, 7), (1, 0, 9)):
        x = (i + 0.5) * length / cells
        terms = a[b] * np.sin(2 * np.pi * number[b] * x / length + omega[b] * times[t] + phase[b])
        assert found[b, t, i, 0] == pytest.approx(terms.sum(), abs=1e-6)


def test_waves_1d_hold_the_modes_asked_for() -> None:
    """Spectra of single waves: one mode within the range, amplitude within the bound, and both ends occur."""
    f = grids.waves_1d(grids.line(32), 60, None, modes=(2, 4), waves=1, amplitude=0.3, seed=0)
    spectrum = np.abs(np.fft.rfft(f.values.numpy("trajectory,x,vector")[..., 0], axis=1)) / 16
    mode = spectrum.argmax(1)
    assert set(mode) == {2, 3, 4} and 0.25 < spectrum.max() <= 0.3 + 1e-6
    spectrum[np.arange(60), mode] = 0
    assert spectrum.max() < 1e-6


def test_waves_2d_are_sums_of_plane_waves_on_faces() -> None:
    """The sum of sines at positions of faces, with the same random numbers."""
    times, length, cells = np.array([0.0, 1.5]), 32.0, 16
    f = grids.waves_2d(burgers.square(cells, length), 2, times, waves=4, seed=5)
    rng = np.random.default_rng(5)
    angle, size = rng.uniform(0, 2 * np.pi, (2, 4)), rng.uniform(0.8, 1.6, (2, 4))
    unit = 2 * np.pi / length
    kx, ky = np.rint(size * np.cos(angle) / unit) * unit, np.rint(size * np.sin(angle) / unit) * unit
    omega, phase = rng.uniform(-0.4, 0.4, (2, 4)), rng.uniform(0, 2 * np.pi, (2, 4))
    for component in "xy":
        a = rng.uniform(-0.15, 0.15, (2, 4))
        face = f.vector[component]
        found = face.values.numpy("trajectory,time,x,y")
        position = face.points.numpy("x,y,vector")  # PhiFlow knows where faces are
        for b, t, i, j in ((0, 0, 0, 0), (1, 1, 3, 11), (0, 1, 15, 2)):
            x, y = position[i, j]
            terms = a[b] * np.sin(kx[b] * x + ky[b] * y + omega[b] * times[t] + phase[b])
            assert found[b, t, i, j] == pytest.approx(terms.sum(), abs=1e-5)


def test_random_states_belong_to_their_seed_and_grid() -> None:
    line, square = grids.line(16), burgers.square(16)

    def states(seed: int) -> list[tuple[Field, Field]]:
        return [
            (line, grids.waves_1d(line, 2, None, (1, 4), 5, 0.5, seed)),
            (square, grids.waves_2d(square, 2, np.arange(3.0), seed=seed)),
            (square, grids.divergence_free_noise(square, 2, 3, 1.0, seed)),
        ]

    for (grid, a), (_, b), (_, other) in zip(states(1), states(1), states(2)):
        values, again, different = (component_values(f, a.shape.batch.names) for f in (a, b, other))
        assert equal(values, again) and not equal(values, different)
        assert equal(component_values(grid + a, a.shape.batch.names), values)
        assert a.boundary == grid.boundary and a.bounds == grid.bounds and a.is_staggered == grid.is_staggered


def test_noise_is_free_of_divergence_and_the_same_on_finer_grids() -> None:
    """Faces of coarse cells carry the mean of the fine ones, since both come from one stream function at the corners."""
    coarse, fine = (grids.divergence_free_noise(grids.staggered_square(n, 3.0), 2, 3, 1.5, seed=4) for n in (16, 64))
    u, v = component_values(fine, ("trajectory",))
    divergence = (u.roll(-1, 1) - u + v.roll(-1, 2) - v) / (3.0 / 64)
    assert divergence.abs().max() < 1e-5 * u.abs().max() / (3.0 / 64)
    torch.testing.assert_close((u**2 + v**2).mean((1, 2)) / 2, torch.full((2,), 1.5**2), rtol=1e-4, atol=0)
    means = u[:, ::4].unfold(2, 4, 4).mean(-1), v[:, :, ::4].unfold(1, 4, 4).mean(-1)
    for a, b in zip(component_values(coarse, ("trajectory",)), means):
        ratio = (a * b).sum((1, 2), keepdim=True) / (b * b).sum((1, 2), keepdim=True)  # each is normalised on its grid
        assert (ratio - 1).abs().max() < 0.1 and (a - ratio * b).abs().max() < 1e-5 * a.abs().max()
    with pytest.raises(ph.StateError, match="wavenumber = 8: .*at most 4"):
        grids.divergence_free_noise(grids.staggered_square(16, 1.0), 1, 8, 1.0, seed=0)


@pytest.mark.parametrize("viscosity", [1e-6, 0.01, 0.37, 8.0])
def test_substeps_are_the_fewest_stable_ones(viscosity: float) -> None:
    dt, dx = 0.1, 0.25
    for dims in (1, 2, 3):
        n = grids.diffusion_substeps(viscosity, dt, dx, dims)
        assert isinstance(n, int) and n >= 1
        assert viscosity * (dt / n) / dx**2 <= 1 / (2 * dims) * (1 + 1e-12)
        assert n == 1 or viscosity * (dt / (n - 1)) / dx**2 > 1 / (2 * dims)


def test_explicit_diffusion_is_stable_with_so_many() -> None:
    """White noise stays bounded at the limit, and grows without bounds one substep below."""
    noise = torch.randn(32, 1, generator=torch.Generator().manual_seed(0))
    u = grids.line(32, 1.0).with_values(wrap(noise, spatial("x"), channel(vector="x")))
    dt = 3.999 / (2 * 32**2)  # ν = 1: just below four times the limit
    assert grids.diffusion_substeps(1.0, dt, 1 / 32, 1) == 4
    for substeps, bounded in ((4, True), (3, False)):
        after = ph.rollout(ph.capture(lambda v, s=substeps: diffuse.explicit(v, 1.0, dt, substeps=s)), u, 40)
        assert (float(math.max(abs(after.time[-1].values))) < float(math.max(abs(u.values)))) == bounded


def test_grids_of_the_equations() -> None:
    for grid, cells, dx, boundary, staggered in (
        (burgers.line(8), 8, 2 * pymath.pi / 8, PERIODIC, False),
        (burgers.square(8), 8, 4.0, PERIODIC, True),
        (navier_stokes.periodic_square(8), 8, 2 * pymath.pi / 8, PERIODIC, True),
        (heat.square(), 64, 1.0, PERIODIC, False),
        (heat.square(32, 2.0), 32, 2 / 32, PERIODIC, False),
        (poisson.square(), 8, 1.0, ZERO, False),
        (poisson.square(64, 2.0), 64, 2 / 64, ZERO, False),
    ):
        assert set(grid.resolution.sizes) == {cells} and grid.boundary == boundary and grid.is_staggered == staggered
        assert float(grid.dx.min) == float(grid.dx.max) == pytest.approx(dx)


def test_tensors_have_the_current_precision() -> None:
    for bits in (32, 64):
        with math.precision(bits):
            for values in (np.ones(3), np.ones(3, np.float32), 1j * np.ones(3), [1, 2, 3]):
                assert grids.as_tensor(values, spatial("x")).dtype.precision == bits


def test_noise_at_the_largest_wavenumber_that_is_allowed() -> None:
    grid = grids.staggered_square(16, 1.0)
    noise = grids.divergence_free_noise(grid, 2, 4, 1.0, 0)
    assert ph.quantities.largest_divergence(noise) < 1e-5
    with pytest.raises(ph.StateError, match="resolves at most 4"):
        grids.divergence_free_noise(grid, 2, 4.1, 1.0, 0)
