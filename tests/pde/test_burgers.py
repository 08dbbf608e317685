"""Burgers' equation against exact solutions, sums of sines, and a published reconstruction."""

from __future__ import annotations

import math as pymath
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from cases.small import component_values, equal
from phi.torch.flow import (
    PERIODIC,
    Box,
    CenteredGrid,
    Field,
    advect,
    batch,
    channel,
    diffuse,
    field,
    math,
    spatial,
    wrap,
)

import phi_hybrid as ph
from phi_hybrid.pde import burgers

torch.set_num_threads(1)

# --- exact solution ---


@pytest.mark.parametrize(("viscosity", "amplitude"), [(0.15, 1.0), (0.05, 0.7), (1.0, -2.0), (0.002, 1.0)])
def test_cole_hopf_solves_burgers(viscosity: float, amplitude: float) -> None:
    """∂u/∂t + u ∂u/∂x = ν ∂²u/∂x² by central differences of fourth order, before and after the front has formed."""
    x = np.linspace(0.1, 2 * np.pi, 23)
    thin = viscosity < 0.01
    times = (0.05, 0.4, 0.7) if thin else (0.05, 0.4, 2.0)  # the front of the thin one has a width of 0.004
    h = 2e-3

    def solution(t: float, dx: float = 0.0, dt: float = 0.0) -> np.ndarray:
        return burgers.cole_hopf(x + dx, t + dt, viscosity, amplitude=amplitude)

    for u in (partial(solution, t) for t in times):
        ddt = (8 * (u(dt=h) - u(dt=-h)) - (u(dt=2 * h) - u(dt=-2 * h))) / (12 * h)
        ddx = (8 * (u(h) - u(-h)) - (u(2 * h) - u(-2 * h))) / (12 * h)
        d2dx2 = (16 * (u(h) + u(-h)) - (u(2 * h) + u(-2 * h)) - 30 * u()) / (12 * h**2)
        assert np.abs(ddt).max() > 0.01
        np.testing.assert_allclose(ddt + u() * ddx, viscosity * d2dx2, atol=2e-7)


def test_cole_hopf_starts_with_a_sine() -> None:
    x = np.linspace(0, 2 * np.pi, 17)
    for viscosity in (1e-4, 0.1, 2.0):
        np.testing.assert_allclose(burgers.cole_hopf(x, 0.0, viscosity, amplitude=0.7), -0.7 * np.sin(x), atol=1e-15)
        np.testing.assert_allclose(burgers.cole_hopf(x, 1e-6, viscosity, amplitude=0.7), -0.7 * np.sin(x), atol=1e-5)


@pytest.mark.parametrize("t", [0.05, 0.5, 3.0])
def test_cole_hopf_by_its_fourier_series(t: float) -> None:
    """φ = exp(−A cos x/(2ν)) has the Bessel functions Iₙ as Fourier coefficients, each damped by exp(−ν n² t)."""
    from scipy.special import ive

    viscosity, amplitude, x, n = 0.2, 1.3, np.linspace(0, 2 * np.pi, 31), np.arange(1, 60)[:, None]
    z = amplitude / (2 * viscosity)
    c = 2 * (-1.0) ** n * ive(n, z) * np.exp(-viscosity * n**2 * t)
    phi = ive(0, z) + np.sum(c * np.cos(n * x), 0)
    expected = 2 * viscosity * np.sum(c * n * np.sin(n * x), 0) / phi
    np.testing.assert_allclose(burgers.cole_hopf(x, t, viscosity, amplitude=amplitude), expected, atol=1e-12)


def test_cole_hopf_at_vanishing_viscosity() -> None:
    """Before the front forms, values travel along characteristics: u = −sin(x₀), x = x₀ − t sin(x₀)."""
    start, t = np.linspace(0.2, 2 * np.pi - 0.2, 19), 0.6
    x = start - t * np.sin(start)
    np.testing.assert_allclose(burgers.cole_hopf(x, t, 1e-6), -np.sin(start), atol=2e-5)


# --- convergence ---

VISCOSITY, TIME = 0.15, 0.5


def error_against_cole_hopf(cells: int, steps: int, advection: Callable) -> float:
    """Mean absolute error at t = 0.5 in double precision."""
    dt, dx = TIME / steps, 2 * np.pi / cells
    x = (np.arange(cells) + 0.5) * dx
    substeps = burgers.diffusion_substeps(VISCOSITY, dt, dx, 1)
    with math.precision(64):
        values = wrap(torch.as_tensor(burgers.cole_hopf(x, 0.0, VISCOSITY))[:, None], spatial("x"), channel(vector="x"))
        u = burgers.line(cells).with_values(values)
        step = ph.capture(burgers.burgers_step(dt, VISCOSITY, substeps, advection), check=False)
        after = component_values(ph.rollout(step, u, steps, 0 * u).time[-1])[0][:, 0].numpy()
    return float(np.abs(after - burgers.cole_hopf(x, TIME, VISCOSITY)).mean())


def orders(errors: list[float]) -> list[float]:
    return [pymath.log2(a / b) for a, b in zip(errors, errors[1:])]


def test_first_order_at_fixed_cfl() -> None:
    """Both schemes: the velocity is frozen over a step, and advection and diffusion take turns. Measured: semi-Lagrangian
    .975 .980 .990; MacCormack 1.16 .93 1.02 with a fifth of the error."""
    measured = {}
    for advection in (advect.semi_lagrangian, advect.mac_cormack):
        measured[advection] = [error_against_cole_hopf(n, s, advection) for n, s in ((32, 6), (64, 12), (128, 24))]
    assert orders(measured[advect.semi_lagrangian]) == pytest.approx([1, 1], abs=0.05)
    assert orders(measured[advect.mac_cormack]) == pytest.approx([1, 1], abs=0.2)
    assert measured[advect.mac_cormack][-1] < 0.25 * measured[advect.semi_lagrangian][-1]


def test_order_in_space() -> None:
    """With dt ∝ dx² the error in time falls with dx²: MacCormack is second order (measured 1.95, 2.00), semi-Lagrangian
    first (.97, .98), because its numerical viscosity is dx²·f(1 − f)/(2 dt)."""
    for advection, expected in ((advect.semi_lagrangian, 1.0), (advect.mac_cormack, 2.0)):
        errors = [error_against_cole_hopf(n, s, advection) for n, s in ((32, 6), (64, 24), (128, 96))]
        assert orders(errors) == pytest.approx([expected] * 2, abs=0.06)


# --- the step ---


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("viscosity", [1e-6, 0.01, 0.37, 8.0])
def test_substeps_are_the_fewest_stable_ones(dims: int, viscosity: float) -> None:
    dt, dx = 0.1, 0.25
    n = burgers.diffusion_substeps(viscosity, dt, dx, dims)
    assert isinstance(n, int) and n >= 1
    assert viscosity * (dt / n) / dx**2 <= 1 / (2 * dims) * (1 + 1e-12)
    assert n == 1 or viscosity * (dt / (n - 1)) / dx**2 > 1 / (2 * dims)


def test_explicit_diffusion_is_stable_with_so_many() -> None:
    """White noise stays bounded at the limit, and grows without bounds one substep below."""
    u = burgers.line(32, 1.0)
    u = u.with_values(
        wrap(torch.randn(32, 1, generator=torch.Generator().manual_seed(0)), spatial("x"), channel(vector="x"))
    )
    dt = 3.999 / (2 * 32**2)  # ν = 1: just below four times the limit
    n = burgers.diffusion_substeps(1.0, dt, 1 / 32, 1)
    assert n == 4
    for substeps, bounded in ((n, True), (n - 1, False)):
        after = ph.rollout(ph.capture(lambda v, s=substeps: diffuse.explicit(v, 1.0, dt, substeps=s)), u, 40)
        assert (float(math.max(abs(after.time[-1].values))) < float(math.max(abs(u.values)))) == bounded


def test_energy_decays_without_force() -> None:
    u = burgers.waves_2d(burgers.square(16), 2, np.zeros(1), seed=3).time[0] * 4
    step = ph.capture(burgers.burgers_step(0.1, 0.1, 1))
    trajectory = ph.rollout(step, u, 15, 0 * u)
    energy = sum((c**2).sum((2, 3)) for c in component_values(trajectory, ("time", "trajectory")))
    assert (energy[1:] < energy[:-1]).all() and (energy[-1] < 0.9 * energy[0]).all()


@pytest.mark.parametrize("names", ["x", "xy"])
def test_upwind_by_hand(names: str) -> None:
    """Differences from the side the wind comes from, in NumPy; walls with the value of the boundary."""
    rng = np.random.default_rng(0)
    cells, dt, dx = {"x": 7, "y": 5}, 0.03, {"x": 2 / 7, "y": 3 / 5}
    shape = [cells[n] for n in names]
    u, v = rng.normal(size=(2, *shape, len(names)))
    bounds = Box(**{n: dx[n] * cells[n] for n in names})
    dims = (spatial(",".join(names)), channel(vector=",".join(names)))
    with math.precision(64):
        for boundary, mode in ((PERIODIC, dict(mode="wrap")), (0, dict(mode="constant"))):
            field_u, field_v = (CenteredGrid(wrap(torch.as_tensor(a), *dims), boundary, bounds) for a in (u, v))
            found = component_values(burgers.upwind(field_u, field_v, dt))[0].numpy()
            padded, expected = np.pad(u, [(1, 1)] * len(names) + [(0, 0)], **mode), u.copy()
            for index in np.ndindex(*shape):
                for axis, n in enumerate(names):
                    here = tuple(i + 1 for i in index)
                    back = tuple(h - (a == axis) for a, h in enumerate(here))
                    ahead = tuple(h + (a == axis) for a, h in enumerate(here))
                    wind = v[index][axis]
                    slope = padded[here] - padded[back] if wind > 0 else padded[ahead] - padded[here]
                    expected[index] -= dt * wind * slope / dx[n]
            np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)


def test_diffusion_by_choice() -> None:
    """Implicit Euler of one sine: amplitude 1/(1 + ν·k²·dt) with the wavenumber of the grid."""
    grid, nu, dt = burgers.line(32), 0.3, 0.5
    x = (np.arange(32) + 0.5) * 2 * np.pi / 32
    with math.precision(64):
        u = grid.with_values(wrap(1e-9 * np.sin(3 * x)[:, None], spatial("x"), channel(vector="x")))
        step = ph.capture(burgers.burgers_step(dt, nu, diffusion=diffuse.implicit))
        found = component_values(step(u, 0 * u))[0].numpy()[:, 0]
    k_squared = (2 - 2 * np.cos(3 * 2 * np.pi / 32)) / (2 * np.pi / 32) ** 2
    np.testing.assert_allclose(found, 1e-9 * np.sin(3 * x) / (1 + nu * k_squared * dt), rtol=1e-5, atol=1e-15)


def test_uniform_flow_gains_the_force() -> None:
    u, f = burgers.line(8) + 0.5, burgers.line(8) + 2.0
    after = burgers.burgers_step(0.1, 0.2)(u, f)
    torch.testing.assert_close(component_values(after)[0], torch.full((8, 1), 0.7))


@pytest.mark.parametrize("dims", [1, 2])
def test_step_is_plain_phiflow(dims: int) -> None:
    grid = burgers.line(16) if dims == 1 else burgers.square(8)
    if dims == 1:
        u, f = (burgers.waves_1d(grid, 2, None, (1, 3), 3, 0.5, seed) for seed in (0, 1))
    else:
        u, f = (burgers.waves_2d(grid, 2, np.zeros(1), seed=seed).time[0] for seed in (0, 1))
    expected = diffuse.explicit(advect.mac_cormack(u, u, 0.2), 0.03, 0.2, substeps=2) + 0.2 * f
    found = burgers.burgers_step(0.2, 0.03, 2, advect.mac_cormack)(u, f)
    assert equal(component_values(found, ("trajectory",)), component_values(expected, ("trajectory",)))


# --- random waves ---


def test_waves_1d_are_sums_of_sines() -> None:
    """The sum of sines with the same random numbers, term by term."""
    times, length, cells = np.array([0.0, 0.3, 2.0]), 3.0, 16
    f = burgers.waves_1d(burgers.line(cells, length), 2, times, modes=(3, 6), waves=5, amplitude=0.5, seed=4)
    found = f.values.numpy("trajectory,time,x,vector")
    assert found.shape == (2, 3, cells, 1) and found.dtype == np.float32
    rng = np.random.default_rng(4)
    a, omega = rng.uniform(-0.5, 0.5, (2, 5)), rng.uniform(-0.4, 0.4, (2, 5))
    number, phase = rng.integers(3, 7, (2, 5)), rng.uniform(0, 2 * np.pi, (2, 5))
    for b, t, i in ((0, 0, 0), (1, 2, 15), (0, 1, 7), (1, 0, 9)):
        x = (i + 0.5) * length / cells
        terms = [
            a[b, w] * pymath.sin(2 * pymath.pi * number[b, w] * x / length + omega[b, w] * times[t] + phase[b, w])
            for w in range(5)
        ]
        assert found[b, t, i, 0] == pytest.approx(sum(terms), abs=1e-6)


def test_waves_1d_hold_the_modes_asked_for() -> None:
    """Spectra of single waves: one mode within the range, amplitude within the bound, and both ends occur."""
    f = burgers.waves_1d(burgers.line(32), 60, None, modes=(2, 4), waves=1, amplitude=0.3, seed=0)
    values = f.values.numpy("trajectory,x,vector")[..., 0]
    spectrum = np.abs(np.fft.rfft(values, axis=1)) / 16
    mode = spectrum.argmax(1)
    assert set(mode) == {2, 3, 4}
    assert 0.25 < spectrum.max() <= 0.3 + 1e-6
    spectrum[np.arange(60), mode] = 0
    assert spectrum.max() < 1e-6


def test_waves_2d_are_sums_of_plane_waves_on_faces() -> None:
    """The sum of sines at positions of faces, with the same random numbers."""
    times, length, cells = np.array([0.0, 1.5]), 32.0, 16
    grid = burgers.square(cells, length)
    f = burgers.waves_2d(grid, 2, times, waves=4, seed=5)
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
        assert found.shape == (2, 2, cells, cells)
        for b, t, i, j in ((0, 0, 0, 0), (1, 1, 3, 11), (0, 1, 15, 2)):
            x, y = position[i, j]
            terms = [
                a[b, w] * pymath.sin(kx[b, w] * x + ky[b, w] * y + omega[b, w] * times[t] + phase[b, w])
                for w in range(4)
            ]
            assert found[b, t, i, j] == pytest.approx(sum(terms), abs=1e-5)


def test_waves_are_reproducible() -> None:
    line, square = burgers.line(16), burgers.square(8)

    def waves(seed: int) -> list[Field]:
        return [
            burgers.waves_1d(line, 2, None, (1, 4), 5, 0.5, seed),
            burgers.waves_1d(line, 2, np.arange(3.0), (1, 4), 5, 0.5, seed),
            burgers.waves_2d(square, 2, np.arange(3.0), seed=seed),
        ]

    for a, b, other in zip(waves(1), waves(1), waves(2)):
        dims = tuple(a.shape.batch.names)
        assert equal(component_values(a, dims), component_values(b, dims))
        assert not equal(component_values(a, dims), component_values(other, dims))


def test_waves_are_force_like_the_state() -> None:
    """They can be added to a state of the grid, and have its boundary."""
    for grid, f in (
        (burgers.line(16), burgers.waves_1d(burgers.line(16), 2, None, (1, 4), 5, 0.5, 0)),
        (burgers.square(8), burgers.waves_2d(burgers.square(8), 2, np.zeros(1)).time[0]),
    ):
        assert f.boundary == grid.boundary and f.bounds == grid.bounds and f.is_staggered == grid.is_staggered
        total = component_values(grid + f, ("trajectory",))
        assert equal(total, component_values(f, ("trajectory",)))


# --- reconstruction of an initial state (Thuerey et al., Physics-based Deep Learning) ---

N, BOOK_STEPS = 128, 16


def book_step(u: Field) -> Field:
    """Diffusion, then advection, as in the book's notebook: dt = 1/32, ν = 0.01/(N·π)."""
    u = diffuse.explicit(u, 0.01 / (N * np.pi), 1 / 32)
    return advect.semi_lagrangian(u, u, 1 / 32)


def on_line(values: torch.Tensor) -> Field:
    return CenteredGrid(wrap(values, spatial("x"), channel(vector="x")), PERIODIC, bounds=Box(x=(-1, 1)))


def book_loss(u: Field, target: Field) -> torch.Tensor:
    """Mean square; `l2_loss` is half the sum of squares."""
    return (field.l2_loss(u - target) * 2 / N).native()


@pytest.fixture(scope="module")
def target() -> Field:
    u = on_line(-torch.sin(np.pi * ((torch.arange(N) + 0.5) / N * 2 - 1))[:, None])
    return ph.rollout(ph.capture(book_step), u, BOOK_STEPS).time[BOOK_STEPS]


def descend(
    unroll: Callable[[torch.Tensor], Field], target: Field, updates: int
) -> tuple[list[float], list[torch.Tensor]]:
    """Gradient descent of rate 5 from zero: losses before each update, and gradients."""
    values, losses, gradients = torch.zeros(N, 1), [], []
    for _ in range(updates):
        values.requires_grad_()
        loss = book_loss(unroll(values), target)
        (gradient,) = torch.autograd.grad(loss, values)
        losses.append(loss.item())
        gradients.append(gradient)
        values = (values - 5 * gradient).detach()
    return losses, gradients


def captured_unroll(block: ph.PhysicsBlock) -> Callable[[torch.Tensor], Field]:
    def unroll(values: torch.Tensor) -> Field:
        tensors = block.flatten(on_line(values))
        for _ in range(BOOK_STEPS):
            tensors = block.native(*tensors)
        return block.unflatten(tensors)

    return unroll


def eager_unroll(values: torch.Tensor) -> Field:
    u = on_line(values)
    for _ in range(BOOK_STEPS):
        u = book_step(u)
    return u


def test_reconstruction_is_that_of_eager_phiflow(target: Field) -> None:
    """Loss and gradient of 16 steps, at every one of the 41 iterates, to the last bit."""
    captured = descend(captured_unroll(ph.capture(book_step)), target, 41)
    eager = descend(eager_unroll, target, 41)
    assert captured[0] == eager[0]
    assert equal(captured[1], eager[1])
    assert captured[0][40] < 0.02 * captured[0][0]


def test_reconstruction_falls_as_published(target: Field) -> None:
    """Published: .38, .096, .033, .005 after 0, 10, 20, 40 updates, for a target of slightly lower energy (first loss
    .402 here). Fractions of the first loss are compared; tolerances are what rounding of the published digits leaves."""
    losses, _ = descend(captured_unroll(ph.capture(book_step)), target, 41)
    assert losses[0] == pytest.approx(0.402, abs=0.001)
    for update, published, rounding in ((10, 0.096, 0.0005), (20, 0.033, 0.0005), (40, 0.005, 0.0005)):
        tolerance = rounding / published + 0.005 / 0.38
        assert losses[update] / losses[0] == pytest.approx(published / 0.38, rel=tolerance)
    assert all(a > b for a, b in zip(losses, losses[1:]))


def test_batched_reconstruction_is_many(target: Field) -> None:
    """Gradients of a batch of initial states are those of its entries."""
    block = ph.capture(book_step)
    values = torch.randn(3, N, 1, generator=torch.Generator().manual_seed(0)).mul(0.3).requires_grad_()
    together = CenteredGrid(
        wrap(values, batch("b"), spatial("x"), channel(vector="x")), PERIODIC, bounds=Box(x=(-1, 1))
    )
    tensors = block.flatten(together)
    for _ in range(3):
        tensors = block.native(*tensors)
    goal = component_values(target)[0]
    (batched,) = torch.autograd.grad(((tensors[0] - goal) ** 2).sum(), values)
    for n in range(3):
        single = block.flatten(on_line(values[n]))
        for _ in range(3):
            single = block.native(*single)
        (alone,) = torch.autograd.grad(((single[0] - goal) ** 2).sum(), values)
        torch.testing.assert_close(alone[n], batched[n])
