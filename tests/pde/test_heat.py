"""The heat equation and its inverse against exact waves, the formula of Wiener and plain PhiFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases.derivatives import check_derivatives, check_vmap
from cases.small import component_values, faces, line, noise, same
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Field,
    PointCloud,
    batch,
    diffuse,
    math,
    spatial,
    vec,
    wrap,
)

import phi_hybrid as ph
from phi_hybrid.pde import heat
from phi_hybrid.pde.heat import Sharpening, heat_step

torch.set_num_threads(1)

SETUP = Sharpening(viscosity=8.0, time=1.0, noise=1e-15)
"""The inverse diffusion of Holl et al. 2022 on 64² cells of size 1, where the fastest mode decays by exp(−158)."""


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with math.precision(64):
        yield


def box() -> Field:
    """Cells of different lengths along each axis."""
    return CenteredGrid(0.0, PERIODIC, x=7, y=10, bounds=Box(x=2.0, y=1.5))


def white(grid: Field, trajectories: int = 3, seed: int = 0, level: float = 1.0) -> Field:
    shape = grid.resolution
    values = level * noise(trajectories, *shape.sizes, seed=seed, dtype=torch.float64)
    return grid.with_values(wrap(values, batch("trajectory"), shape))


def inverse_step(sharpening: Sharpening) -> Callable[[Field, Field], Field]:
    """x̃ = x + G·(y − P x), the inverse of `heat_step` near a state."""
    step = heat_step(sharpening.time, sharpening.viscosity)

    def inverse(y: Field, x: Field) -> Field:
        with math.precision(x.values.dtype.precision):
            return x + sharpening(y - step(x))

    return inverse


def values(u: Field) -> np.ndarray:
    return u.values.numpy([*u.shape.batch.names, *u.resolution.names])


def modes(u: Field) -> np.ndarray:
    return np.fft.fftn(values(u), axes=(-2, -1))


def k_squared(grid: Field) -> np.ndarray:
    k = [2 * np.pi * np.fft.fftfreq(grid.resolution.get_size(d), float(grid.dx.vector[d])) for d in "xy"]
    return k[0][:, None] ** 2 + k[1] ** 2


# --- diffusion ---


def test_heat_kernel() -> None:
    """A Gaussian of variance a becomes one of variance a + 2νt, lower in proportion to √(a/(a + 2νt)) per axis."""
    grid = heat.square(64, 16.0)
    x = (np.arange(64) + 0.5) / 4 - 8

    def gaussian(variance: float) -> np.ndarray:
        profile = np.exp(-(x**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        return np.outer(profile, profile)

    start = grid.with_values(wrap(torch.as_tensor(gaussian(0.5)), spatial("x,y")))
    np.testing.assert_allclose(values(heat_step(0.5, 0.3)(start)), gaussian(0.8), rtol=0, atol=1e-12)


def test_unit_cells_are_plain_phiflow() -> None:
    u = white(heat.square(12))
    np.testing.assert_allclose(values(heat_step(0.5, 0.8)(u)), values(diffuse.fourier(u, 0.8, 0.5)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("u", [line(dtype=torch.float64, b=2), faces("periodic", dtype=torch.float64, b=2)])
def test_components_of_vectors_diffuse_alone(u: Field) -> None:
    """On lines and staggered grids: each component as the NumPy transform has it."""
    found, after = component_values(heat_step(0.1, 0.3)(u), ("b",)), []
    for c in component_values(u, ("b",)):
        axes = range(1, 1 + len(u.resolution.names))
        k2 = np.zeros([1] * c.ndim)
        for axis, name in zip(axes, u.resolution.names):
            k = 2 * np.pi * np.fft.fftfreq(c.shape[axis], float(u.dx.vector[name]))
            k2 = k2 + k.reshape([-1 if a == axis else 1 for a in range(c.ndim)]) ** 2
        after.append(np.fft.ifftn(np.exp(-0.03 * k2) * np.fft.fftn(c.numpy(), axes=axes), axes=axes).real)
    for a, b in zip(found, after):
        np.testing.assert_allclose(a.numpy(), b, rtol=0, atol=1e-14)


# --- the gain ---


def test_gain_is_that_of_wiener() -> None:
    u, nu, t = white(box()), 0.01, 1.3
    decay = np.exp(-nu * t * k_squared(u))
    for ratio in (1e-15, 1e-4, 0.3, 5.0):
        gain = decay / (decay**2 + ratio**2)
        gain[0, 0] = 1
        found = modes(Sharpening(nu, t, noise=2 * ratio, signal=2.0)(u))
        np.testing.assert_allclose(found, gain * modes(u), rtol=1e-7, atol=1e-10 * abs(gain).max())


def test_steps_back_amount_to_one() -> None:
    y = white(box())
    whole = Sharpening(0.02, 2.0, 1e-3)
    back = ph.capture(lambda u: whole(u, 0.5))
    after = y
    for _ in range(4):
        after = back(after)
    np.testing.assert_allclose(values(after), values(whole(y)), rtol=0, atol=1e-12 * abs(values(whole(y))).max())


@pytest.mark.parametrize(("bits", "viscosity"), [(32, 8.0), (64, 4.0), (64, 800.0)])
def test_noise_is_amplified_within_bounds(viscosity: float, bits: int) -> None:
    """Up to s/(2σ) in every mode and no further, though the fastest would be by exp(79), exp(158), exp(15791)."""
    rounding = 1e-15 if bits == 64 else 1e-7
    with math.precision(bits):
        n = white(heat.square(64), level=rounding)
        n = n.with_values(math.cast(n.values, math.DType(float, bits)))
        found = Sharpening(viscosity, 1.0, rounding)(n)
        assert found.values.dtype.precision == bits
        before, after = modes(n), modes(found)
    assert np.isfinite(after).all()
    assert (abs(after) <= 0.5001 / rounding * abs(before).max()).all()
    assert abs(values(found)).max() < 1
    drowned = np.exp(-np.minimum(viscosity * k_squared(n), 100)) < 1e-3 * rounding
    assert drowned.any() and abs(after[:, drowned]).max() < 1e-2 * abs(after).max()


# --- the inverse ---


@pytest.mark.parametrize("start", ["zero", "noise"])
def test_modes_above_the_noise_come_back_and_drowned_ones_stay(start: str) -> None:
    """To the rounding of y times the amplification, exp(νk²T) up to 1e6; the others stay of the strength assumed, and those
    of which y tells nothing as they are. So P(P⁻¹(y; x)) = y to rounding, though most of the modes have drowned."""
    grid = heat.square(64)
    true = white(grid) + 0.7
    x = 0 * true if start == "zero" else white(grid, seed=9)
    step, inverse = ph.capture(heat_step(1.0, 8.0)), ph.capture(inverse_step(SETUP))
    found = inverse(step(true), x)
    error, growth = abs(modes(found - true)) / 64, np.exp(8.0 * k_squared(grid))
    strong, drowned = growth < 1e6, growth > 1e20
    assert strong.sum() > 170
    assert (error[:, strong] < 1e-14 * growth[strong]).all()
    assert error[:, ~strong].max() < 6
    np.testing.assert_allclose(modes(found)[:, drowned], modes(x)[:, drowned], rtol=0, atol=1e-3)
    np.testing.assert_allclose(values(found).mean((1, 2)), values(true).mean((1, 2)), rtol=0, atol=1e-15)
    np.testing.assert_allclose(values(step(found)), values(step(true)), rtol=0, atol=1e-14)
    assert same(inverse(step(true), true), true)  # a solution is a fixed point


# --- captured ---


def test_captured_equals_eager_in_any_global_precision() -> None:
    x, y = white(box(), seed=1), white(box(), seed=2)
    for bits in (32, 64):
        with math.precision(bits):
            assert same(ph.capture(heat_step(0.3, 0.1))(x), heat_step(0.3, 0.1)(x))
            inverse = inverse_step(Sharpening(0.1, 0.3, 1e-9))
            assert same(ph.capture(inverse)(y, x), inverse(y, x)) and inverse(y, x).values.dtype.precision == 64


def test_one_viscosity_and_noise_per_trajectory() -> None:
    y, nu, sigma = white(box()), [0.01, 0.05, 0.2], [1e-6, 1e-2, 1.0]
    both = Sharpening(wrap(nu, batch("trajectory")), 1.0, wrap(sigma, batch("trajectory")))
    for n in range(3):
        alone = values(Sharpening(nu[n], 1.0, sigma[n])(y.trajectory[n]))
        np.testing.assert_allclose(values(both(y).trajectory[n]), alone, rtol=1e-12, atol=1e-12 * abs(alone).max())


@pytest.mark.parametrize("operator", [heat_step(0.3, 0.1), inverse_step(Sharpening(0.1, 0.3, 0.05))])
def test_derivatives(operator: Any) -> None:
    small = CenteredGrid(0.0, PERIODIC, x=3, y=2, bounds=Box(x=2.0, y=1.5))
    u = [white(small, 2, seed) for seed in range(operator.__code__.co_argcount)]
    block = ph.capture(operator)
    check_derivatives(block.native, block.flatten(*u), second=False)  # linear
    check_vmap(block.native, block.flatten(*u))


# --- wrong arguments ---


@pytest.mark.parametrize(
    ("u", "message"),
    [
        (1.0, "got a float: expected a periodic grid"),
        (CenteredGrid(0.0, ZERO_GRADIENT, x=4), "got a field with boundary zero-gradient: expected a periodic grid"),
        (PointCloud(vec(x=0.0, y=1.0)), "got a field with boundary .*: expected a periodic grid"),
    ],
)
def test_wrong_fields(u: Any, message: str) -> None:
    for use in (heat_step(1.0, 1.0), SETUP):
        with pytest.raises(ph.StateError, match=message):
            use(u)


def test_gain_is_the_best() -> None:
    """White signals in white noise: the mean square error is Σ SN/(K²S + N), and larger for any other noise level."""
    grid, sigma = heat.square(16), 0.01
    x = white(grid, 400, seed=1)
    y = heat_step(1.0, 0.5)(x) + white(grid, 400, seed=2, level=sigma)
    decay2 = np.exp(-2 * 0.5 * k_squared(grid))
    expected = np.mean(sigma**2 / (decay2 + sigma**2))
    errors = [np.mean(values(Sharpening(0.5, 1.0, f * sigma)(y) - x) ** 2) for f in (1.0, 0.4, 2.5)]
    assert errors[0] == pytest.approx(expected, rel=0.01)
    assert errors[0] < 0.99 * min(errors[1:])


def test_error_of_the_observation_is_half_the_noise_at_most() -> None:
    """Per mode, for states of the assumed strength: |K·x̂ − y| ≤ σ/2 where |x| ≤ s."""
    grid, sigma = heat.square(32), 1e-4
    phases = np.exp(1j * np.angle(modes(white(grid, 1))))  # of a real field: |x| = 1 in every mode
    x = grid.with_values(wrap(torch.as_tensor(np.fft.ifft2(phases).real), batch("trajectory"), grid.resolution))
    step = heat_step(1.0, 1.0)
    residual = abs(modes(step(Sharpening(1.0, 1.0, sigma)(step(x))) - step(x)))
    assert 0.4 * sigma < residual.max() <= 0.5 * sigma
