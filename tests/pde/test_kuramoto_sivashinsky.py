"""Kuramoto–Sivashinsky equation against convolutions, an ODE solver, exact growth rates and another integrator."""

from __future__ import annotations

import decimal
import math as pymath
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases.derivatives import check_derivatives, check_vmap
from cases.small import component_values, noise, same
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Field,
    StaggeredGrid,
    Tensor,
    batch,
    channel,
    math,
    spatial,
    vec,
    wrap,
)
from scipy.integrate import solve_ivp

import phi_hybrid as ph
from phi_hybrid.pde import kuramoto_sivashinsky as ks

torch.set_num_threads(1)

DTYPES = {32: torch.float32, 64: torch.float64}


def on_line(values: np.ndarray | torch.Tensor, length: float) -> Field:
    """Field `(trajectory, x, vector)` from an array `(trajectory, x)`."""
    values = torch.as_tensor(values)[..., None]
    with math.precision(64 if values.dtype == torch.float64 else 32):
        tensor = wrap(values, batch("trajectory"), spatial("x"), channel(vector="x"))
        return CenteredGrid(tensor, PERIODIC, bounds=Box(x=length))


def per_trajectory(*values: float, precision: int = 64) -> Tensor:
    return wrap(torch.tensor(values, dtype=DTYPES[precision]), batch("trajectory"))


def double(step: Callable, u: Field, *inputs: Any) -> np.ndarray:
    """Values `(trajectory, x)` after one step of plain PhiFlow in double precision."""
    with math.precision(64):
        return component_values(step(u, *inputs), ("trajectory",))[0][..., 0].numpy()


# --- φ-functions ---

SMALL = [0.0, *(s * x for x in (1e-30, 1e-8, 1e-3, 0.1, 0.3, 0.4999, 0.5, 0.5001) for s in (1, -1))]
POINTS = [*SMALL, 0.8, 2.0, -0.7, -1.0, -1.5, -3.0, -10.0, -80.0, -1e4, -1e8]


def exact_phi(z: float) -> tuple[float, float, float, float]:
    """(e^z − 1)/z, (e^z − 1 − z)/z² and their derivatives with 150 digits."""
    if z == 0:
        return 1.0, 1 / 2, 1 / 2, 1 / 6
    with decimal.localcontext() as context:
        context.prec = 150
        d = decimal.Decimal(z)
        phi_1, phi_2 = (d.exp() - 1) / d, (d.exp() - 1 - d) / d**2
        return tuple(float(v) for v in (phi_1, phi_2, phi_1 - phi_2, (phi_1 - 2 * phi_2) / d))


@pytest.mark.parametrize("precision", [32, 64])
def test_phi_functions_and_their_gradients_to_rounding(precision: int) -> None:
    """Also at 0, where the plain quotients give 0/0, and next to it, where they lose all digits."""
    z = torch.tensor(POINTS, dtype=DTYPES[precision], requires_grad=True)
    with math.precision(precision):
        phi = [p.native("x") for p in ks.phi_functions(wrap(z, spatial("x")))]
    gradients = [torch.autograd.grad(p.sum(), z, retain_graph=True)[0] for p in phi]
    exact = np.array([exact_phi(float(v)) for v in z.detach()]).T
    assert phi[0].dtype == z.dtype
    for found, expected, tolerance in zip([*phi, *gradients], exact, (4, 4, 30, 30)):
        rounding = tolerance * torch.finfo(z.dtype).eps
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=rounding)


# --- the terms of the equation ---


def nonlinear_alone(rate: Tensor, nonlinear: Callable, dt: float) -> Callable:
    return nonlinear


def modes_of(u: np.ndarray) -> np.ndarray:
    """Coefficients −K … K of Fourier series by summation, `(x) -> (mode)`, all that have a conjugate on the grid."""
    n = len(u)
    m = np.arange(-((n - 1) // 2), (n - 1) // 2 + 1)
    return np.exp(-2j * np.pi * np.outer(m, np.arange(n)) / n) @ u / n


def values_of(modes: np.ndarray, cells: int) -> np.ndarray:
    m = np.arange(len(modes)) - len(modes) // 2
    return (np.exp(2j * np.pi * np.outer(np.arange(cells), m) / cells) @ modes).real


def nonlinear_term(modes: np.ndarray, k: np.ndarray) -> np.ndarray:
    """−½ik Σ_p v_p v_(m−p), the product in Fourier space without any grid."""
    highest = len(modes) // 2
    return -0.5j * k * np.convolve(modes, modes)[highest:-highest]


@pytest.mark.parametrize("cells", [4, 13, 16])
def test_nonlinear_term_is_free_of_aliasing(cells: int) -> None:
    """White noise, so that all modes interact, the shortest wave of even grids included, which takes no part. With
    `dealias=False`, ½∂(u²)/∂x on the points of the grid, by differentiating each mode of u²."""
    length = 7.0
    u = noise(2, cells, dtype=torch.float64).numpy()
    found = double(ks.kuramoto_sivashinsky_step(1.0, scheme=nonlinear_alone), on_line(u, length))
    for trajectory in range(2):
        modes = modes_of(u[trajectory])
        k = 2 * np.pi / length * (np.arange(len(modes)) - len(modes) // 2)
        np.testing.assert_allclose(found[trajectory], values_of(nonlinear_term(modes, k), cells), rtol=0, atol=1e-13)

    u = values_of(modes, cells)
    aliased = ks.kuramoto_sivashinsky_step(1.0, scheme=nonlinear_alone, dealias=False)
    found = double(aliased, on_line(u[None], length))[0]
    np.testing.assert_allclose(found, values_of(-0.5j * k * modes_of(u**2), cells), rtol=0, atol=1e-13)
    assert cells == 4 or np.abs(values_of(nonlinear_term(modes, k), cells) - found).max() > 0.1


# --- in time ---


def solved(u: np.ndarray, length: float, time: float) -> np.ndarray:
    """The spectral equations, products by convolution, integrated by an explicit method of order 8, `(x) -> (x)`."""
    modes = modes_of(u)
    k = 2 * np.pi / length * (np.arange(len(modes)) - len(modes) // 2)
    result = solve_ivp(
        lambda _, v: (k**2 - k**4) * v + nonlinear_term(v, k), (0, time), modes, "DOP853", rtol=1e-11, atol=1e-12
    )
    assert result.success
    return values_of(result.y[:, -1], len(u))


@pytest.mark.parametrize(("scheme", "order"), [(ks.etd1, 1), (ks.etdrk2, 2)])
def test_orders_in_time(scheme: ks.Scheme, order: int) -> None:
    """Measured: ETD1 1.03 1.02 1.01, ETDRK2 1.95 1.97 1.99, in two substeps each."""
    length, stretch, time = 20.0, (0.9, 1.2), 2.0
    with math.precision(64):
        u = ks.initial_states(ks.line(24, length), 2, seed=0, modes=(1, 3), amplitude=1.0)
    start = component_values(u, ("trajectory",))[0][..., 0].numpy()
    expected = np.stack([solved(v, s * length, time) for v, s in zip(start, stretch)])
    assert np.abs(expected - start).max() > 0.5
    errors = []
    for n in (32, 64, 128, 256):
        step = ph.capture(ks.kuramoto_sivashinsky_step(2 * time / n, 2, scheme), check=False)
        after = ph.rollout(step, u, n // 2, per_trajectory(*stretch)).time[-1]
        errors.append(np.abs(component_values(after, ("trajectory",))[0][..., 0].numpy() - expected).max())
    assert [pymath.log2(a / b) for a, b in zip(errors, errors[1:])] == pytest.approx([order] * 3, abs=0.06)
    assert errors[-1] < (1e-2 if order == 1 else 1e-4)


@pytest.mark.parametrize("scheme", [ks.etd1, ks.etdrk2])
def test_small_waves_grow_at_the_exact_rate(scheme: ks.Scheme) -> None:
    """e^((k² − k⁴)t), whatever the time step, for waves that grow, decay or do neither, on lines of two lengths."""
    cells, length, stretch, time = 64, 16 * np.pi, (1.0, 1.3), 0.25
    for mode in (1, 5, 7, 8, 13, 21):
        wave = 1e-13 * np.sin(2 * np.pi * mode * np.arange(cells) / cells)
        u = on_line(np.stack([wave, wave]), length)
        after = double(ks.kuramoto_sivashinsky_step(time, 2, scheme), u, per_trajectory(*stretch))
        k = 2 * np.pi * mode / (np.array(stretch) * length)
        grown = (after @ wave) / (wave @ wave)
        np.testing.assert_allclose(np.log(grown) / time, k**2 - k**4, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(after, grown[:, None] * wave, rtol=0, atol=1e-13 * 1e-10)


def test_mean_is_conserved() -> None:
    u = on_line(0.3 + noise(3, 32, dtype=torch.float64), 30.0)
    step = ph.capture(ks.kuramoto_sivashinsky_step(0.1, 2))
    trajectory = component_values(ph.rollout(step, u, 50), ("time", "trajectory"))[0]
    mean = trajectory.mean((2, 3))
    torch.testing.assert_close(mean, mean[:1].expand_as(mean), rtol=0, atol=1e-13)
    assert ((trajectory[-1] - trajectory[0]).abs().amax((1, 2)) > 1).all()


def kassam_trefethen(u: np.ndarray, length: float, dt: float, steps: int) -> np.ndarray:
    """ETDRK4 with coefficients from contour integrals (Kassam & Trefethen 2005), `(trajectory, x) -> (time, …)`."""
    n = u.shape[1]
    k = 2 * np.pi / length * np.arange(n // 2 + 1)
    z = dt * (k**2 - k**4)
    w = z[:, None] + np.exp(1j * np.pi * (np.arange(32) + 0.5) / 32)
    half, q = np.exp(z / 2), dt * ((np.exp(w / 2) - 1) / w).real.mean(1)
    f1 = dt * ((-4 - w + np.exp(w) * (4 - 3 * w + w**2)) / w**3).real.mean(1)
    f2 = dt * ((2 + w + np.exp(w) * (w - 2)) / w**3).real.mean(1)
    f3 = dt * ((-4 - 3 * w - w**2 + np.exp(w) * (4 - w)) / w**3).real.mean(1)

    def nonlinear(v: np.ndarray) -> np.ndarray:
        return -0.5j * k * np.fft.rfft(np.fft.irfft(v, n) ** 2)

    v, frames = np.fft.rfft(u), []
    for _ in range(steps):
        nv = nonlinear(v)
        a = half * v + q * nv
        na = nonlinear(a)
        nb = nonlinear(half * v + q * na)
        nc = nonlinear(half * a + q * (2 * nb - nv))
        v = half**2 * v + f1 * nv + 2 * f2 * (na + nb) + f3 * nc
        frames.append(np.fft.irfft(v, n))
    return np.stack(frames)


def test_attractor() -> None:
    """In single precision long trajectories have the statistics of another integrator, on a finer grid and from other
    states: r.m.s. of u 1.32 and of ∂u/∂x 1.06, ± .015 for 64 trajectories of 100 time units. Nearby states part."""
    length, dt, steps, trajectories = 16 * np.pi, 0.25, 600, 64
    start = 0.1 * noise(trajectories, 64, seed=1, dtype=torch.float64).numpy()
    reference = kassam_trefethen(start - start.mean(1, keepdims=True), length, dt, steps)
    u = ks.initial_states(ks.line(48), trajectories, seed=0)
    step = ph.capture(ks.kuramoto_sivashinsky_step(dt), check=False)
    found, other = (
        component_values(ph.rollout(step, v, steps), ("time", "trajectory"))[0][1:, ..., 0].double().numpy()
        for v in (u, u.with_values(u.values * (1 + 1e-3)))
    )

    def statistics(frames: np.ndarray) -> list[float]:
        modes = np.fft.rfft(frames[200:]) / frames.shape[2]
        k = 2 * np.pi / length * np.arange(modes.shape[2])
        return [pymath.sqrt(2 * np.mean(np.sum(np.abs(m) ** 2, 2))) for m in (modes, k * modes)]

    assert statistics(found) == pytest.approx(statistics(reference), rel=0.05)
    apart = np.sqrt(np.mean((found - other) ** 2, 2))
    assert apart[99].max() < 0.1 and np.median(apart[-1]) > 1


@pytest.mark.parametrize(("scheme", "stable", "unstable"), [(ks.etd1, 0.25, 0.5), (ks.etdrk2, 0.7, 1.5)])
def test_stable_steps(scheme: ks.Scheme, stable: float, unstable: float) -> None:
    """On lengths of 45 … 65 for 200 time units."""
    stretch = per_trajectory(*np.repeat(np.linspace(0.9, 1.3, 5), 6), precision=32)
    u = ks.initial_states(ks.line(48), 30, seed=0)
    bounded = []
    for dt in (stable, unstable):
        bound = ph.capture(ks.kuramoto_sivashinsky_step(dt, scheme=scheme), check=False).bind(u, stretch)
        values, lengths = bound.flatten(u, stretch)
        for _ in range(round(200 / dt)):
            (values,) = bound.native(values, lengths)
        bounded.append(values.abs().amax((1, 2)) < 10)
    assert bounded[0].all()
    assert bounded[1].double().mean() < 0.5


# --- the length of the domain ---


@pytest.mark.parametrize("scheme", [ks.etd1, ks.etdrk2])
def test_stretch_is_a_longer_line(scheme: ks.Scheme) -> None:
    """One value per trajectory, also of a state without trajectories, a tensor without dims, and a number."""
    length, stretch = 30.0, (0.7, 1.0, 1.4)
    u = noise(1, 24, dtype=torch.float64).expand(3, -1)
    step = ks.kuramoto_sivashinsky_step(0.3, 2, scheme)
    together = double(step, on_line(u, length), per_trajectory(*stretch))
    alone = double(ph.capture(step), on_line(u, length).trajectory[0], per_trajectory(*stretch))
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-13)
    for number, s in enumerate(stretch):
        expected = double(step, on_line(u[:1], s * length))
        for given in (s, wrap(torch.tensor(s, dtype=torch.float64))):
            np.testing.assert_allclose(double(step, on_line(u[:1], length), given), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(together[number], expected[0], rtol=0, atol=1e-12)
    assert np.abs(together[1] - together[2]).max() > 0.1


def rate_alone(rate: Tensor, nonlinear: Callable, dt: float) -> Callable:
    return lambda v: rate * v


def test_linear_terms() -> None:
    """−∂²u/∂x² − ∂⁴u/∂x⁴ of sines, the shortest wave of the grid included."""
    cells, length, mode = 16, 9.0, np.arange(9)
    u = np.cos(2 * np.pi * np.outer(mode, np.arange(cells)) / cells)
    k = 2 * np.pi * mode[:, None] / length
    found = double(ks.kuramoto_sivashinsky_step(1.0, scheme=rate_alone), on_line(u, length))
    np.testing.assert_allclose(found, (k**2 - k**4) * u, rtol=0, atol=1e-12 * np.max(k**4))


def test_schemes_of_cox_and_matthews() -> None:
    """Their formulas for dv/dt = λv + v², with φ-functions of many digits."""
    rates, dt = np.array([0.25, 0.0, -0.1, -3.0, -200.0]), 0.5
    v = np.array([0.3 + 0.1j, 1.0, -0.7j, 0.5, 2.0 - 1.0j])
    phi_1, phi_2 = np.array([exact_phi(dt * r)[:2] for r in rates]).T
    first = np.exp(dt * rates) * v + dt * phi_1 * v**2
    second = first + dt * phi_2 * (first**2 - v**2)
    with math.precision(64):
        for scheme, expected in ((ks.etd1, first), (ks.etdrk2, second)):
            advance = scheme(wrap(torch.tensor(rates), spatial("x")), lambda w: w**2, dt)
            np.testing.assert_allclose(
                advance(wrap(torch.tensor(v), spatial("x"))).numpy("x"), expected, rtol=0, atol=1e-15
            )


# --- captured, derivatives ---


def example(precision: int, cells: int = 24, trajectories: int = 3) -> tuple[Field, Tensor]:
    u = on_line(noise(trajectories, cells, dtype=DTYPES[precision]), 22.0)
    return u, per_trajectory(*np.linspace(0.8, 1.3, trajectories), precision=precision)


def test_defaults() -> None:
    """Second order, one substep, dealiased, the line of the grid."""
    u, _ = example(64)
    expected = double(ks.kuramoto_sivashinsky_step(0.4, 1, ks.etdrk2, True), u, 1.0)
    np.testing.assert_array_equal(double(ks.kuramoto_sivashinsky_step(0.4), u), expected)


@pytest.mark.parametrize(("scheme", "dealias", "precision"), [(ks.etd1, False, 64), (ks.etdrk2, True, 32)])
def test_captured_is_eager(scheme: ks.Scheme, dealias: bool, precision: int) -> None:
    """Bit by bit, for other values than those of the capture, with and without stretch, vectors and scalars."""
    u, stretch = example(precision)
    step = ks.kuramoto_sivashinsky_step(0.4, 2, scheme, dealias)
    scalar = CenteredGrid(u.values.vector["x"], PERIODIC, bounds=u.bounds)
    results = []
    for state, *inputs in ((u, stretch), (u,), (scalar, stretch)):
        block = ph.capture(step, state, *inputs)
        with math.precision(precision):
            other = state.with_values(0.3 * state.values + 0.1), *(1.1 * i for i in inputs)
            after = block(*other)
            assert same(after, step(*other))
        assert after.values.dtype.precision == precision
        results.append(component_values(after, ("trajectory",))[0])
    assert torch.equal(results[0][..., 0], results[2])


@pytest.mark.parametrize(("scheme", "dealias"), [(ks.etd1, True), (ks.etdrk2, True), (ks.etdrk2, False)])
def test_derivatives(scheme: ks.Scheme, dealias: bool) -> None:
    """By state and stretch."""
    u, stretch = example(64, cells=6, trajectories=2)
    bound = ph.capture(ks.kuramoto_sivashinsky_step(0.3, 1, scheme, dealias)).bind(u, stretch)
    tensors = bound.flatten(u, stretch)
    check_derivatives(bound.native, tensors)
    check_vmap(bound.native, tensors)


# --- initial states ---


def test_initial_states_are_sums_of_sines_on_any_grid() -> None:
    length = 5.0
    coarse, fine = (ks.initial_states(ks.line(n, length), 2, 3, (2, 4), waves=3, amplitude=0.7) for n in (16, 48))
    values = component_values(coarse, ("trajectory",))[0][..., 0].numpy()
    x = coarse.points.numpy("x,vector")[:, 0]
    modes = np.arange(2, 5)[:, None]
    basis = np.concatenate([np.sin(2 * np.pi * modes * x / length), np.cos(2 * np.pi * modes * x / length)])
    coefficients = np.linalg.lstsq(basis.T, values.T, rcond=None)[0]
    np.testing.assert_allclose(coefficients.T @ basis, values, atol=1e-6)
    assert np.abs(coefficients).max() <= 3 * 0.7 and np.abs(values).max() > 0.1
    finer = component_values(fine, ("trajectory",))[0][..., 0].numpy()
    np.testing.assert_allclose(finer[:, 1::3], values, atol=1e-5)  # every third cell centre coincides


# --- wrong arguments ---


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (1.0, "state is a float"),
        (CenteredGrid(0.0, ZERO_GRADIENT, x=8), "boundary zero-gradient.*expected a centred grid on a periodic line"),
        (CenteredGrid(0.0, PERIODIC, x=8, y=8), "state is a 2D field"),
        (StaggeredGrid(0.0, PERIODIC, x=8), "staggered: expected a centred grid"),
        (CenteredGrid(vec(x=0.0, y=0.0), PERIODIC, x=8), r"channels .*x,y.*: expected one component"),
    ],
)
def test_wrong_states(state: Any, message: str) -> None:
    for use in (ks.kuramoto_sivashinsky_step(0.1), lambda u: ks.initial_states(u, 1, 0)):
        with pytest.raises(ph.StateError, match=message):
            use(state)


def test_modes_that_a_grid_does_not_resolve() -> None:
    for modes in ((0, 3), (4, 3), (1, 8), (-2, 2)):
        with pytest.raises(ph.StateError, match=r"modes = \(.*expected 1 ≤ smallest ≤ largest < cells/2 = 8; use"):
            ks.initial_states(ks.line(16), 1, seed=0, modes=modes)


@pytest.mark.parametrize(
    ("stretch", "message"),
    [
        (0.0, "stretch = 0.0: expected 0 < L/L₀ < ∞"),
        (pymath.nan, "stretch = nan: expected"),
        (per_trajectory(1.0, -1.0, 1.0, precision=32), "stretch = .*-1.000.*: expected"),
        (wrap([1.0, 1.0], spatial("x")), "stretch has shape .*x.*one value per batch entry"),
        ([1.0, 2.0, 3.0], r"stretch is a list: .*wrap\(\[0.9, 1.1\], batch\('trajectory'\)\)"),
    ],
)
def test_wrong_stretches(stretch: Any, message: str) -> None:
    """In plain PhiFlow and when a step is captured with them."""
    u, _ = example(32)
    step = ks.kuramoto_sivashinsky_step(0.1)
    for use in (step, ph.capture(step)) if isinstance(stretch, (float, Tensor)) else (step,):
        with pytest.raises(ph.StateError, match=message):
            use(u, stretch)


def test_wrong_stretches_of_captured_steps_give_nan() -> None:
    """Never the solution of another equation: values are not looked at once a step is captured. The other trajectories
    stay as they are, to the last bit."""
    u, stretch = example(32)
    block = ph.capture(ks.kuramoto_sivashinsky_step(0.1), u, stretch)
    expected = component_values(block(u, stretch), ("trajectory",))[0]
    for wrong in (0.0, -1.0, pymath.inf, pymath.nan):
        lengths = per_trajectory(0.8, wrong, 1.3, precision=32)
        found = component_values(block(u, lengths), ("trajectory",))[0]
        assert found[1].isnan().all()
        assert torch.equal(found[[0, 2]], expected[[0, 2]])
    with pytest.raises(ph.NonFiniteError):
        ph.rollout(block, u, 2, lengths)
