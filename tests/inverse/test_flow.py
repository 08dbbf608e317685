"""Flows run backwards, against the states they came from, exact solutions and dense linear algebra."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from cases.analytic import cole_hopf, taylor_green
from cases.derivatives import check_derivatives, check_vmap
from cases.small import component_values, faces, line, noise, same
from phi.torch.flow import (
    PERIODIC,
    Box,
    CenteredGrid,
    Field,
    StaggeredGrid,
    advect,
    batch,
    channel,
    math,
    spatial,
    wrap,
)

import phi_hybrid as ph
from phi_hybrid.inverse.flow import (
    State,
    advect_back,
    burgers_back,
    carried,
    carried_back,
    local_inverse,
    navier_stokes_back,
)
from phi_hybrid.pde import burgers, heat
from phi_hybrid.pde import navier_stokes as ns

SCHEMES = {"semi-Lagrangian": advect.semi_lagrangian, "MacCormack": advect.mac_cormack}


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with math.precision(64):
        yield


def times(step: Callable[..., State], number: int) -> Callable[..., State]:
    """The step, captured, so many times."""
    block = ph.capture(step, check=False)

    def steps(x: State, *arguments: Any) -> State:
        for _ in range(number):
            x = block(x, *arguments)
        return x

    return steps


def distance(a: Field, b: Field) -> float:
    """Root mean square of the difference relative to that of `b`, one trajectory or none."""
    pairs = list(zip(component_values(a, a.shape.batch.names), component_values(b, b.shape.batch.names)))
    return float((sum(((x - y) ** 2).sum() for x, y in pairs) / sum((y**2).sum() for _, y in pairs)) ** 0.5)


def smooth_marker(cells: int) -> Field:
    x = (np.arange(cells) + 0.5) * 2 * np.pi / cells
    values = np.exp(np.cos(x - 2))[:, None] * np.exp(np.sin(x))
    return heat.square(cells, 2 * np.pi).with_values(wrap(torch.as_tensor(values), spatial("x,y")))


# --- advection ---


@pytest.mark.parametrize("scheme", SCHEMES)
def test_uniform_flow_by_whole_cells_comes_back_exactly(scheme: str) -> None:
    u = CenteredGrid(wrap(noise(8, 6, dtype=torch.float64), spatial("x,y")), PERIODIC, x=8, y=6)
    wind = StaggeredGrid(math.vec(x=2.0, y=-3.0), PERIODIC, x=8, y=6)
    there = SCHEMES[scheme](u, wind, 1.0)
    assert distance(there, u) > 1
    assert distance(advect_back(1.0, SCHEMES[scheme])(there, wind), u) < 1e-14


@pytest.mark.parametrize("scheme", SCHEMES)
def test_interpolation_there_and_back(scheme: str) -> None:
    """By f = 1/3 of a cell in uniform flow, where trajectories have no error: a wave of phase θ per cell loses 2f(1 − f)c,
    c = 1 − cos θ, by semi-Lagrangian advection, and f²(1 − f²)c² by MacCormack's, off the limiter."""
    f = 1 / 3
    for cells in (16, 64):
        x, c = (np.arange(cells) + 0.5) * 2 * np.pi / cells, 1 - np.cos(2 * np.pi / cells)
        u = CenteredGrid(wrap(torch.as_tensor(np.sin(x))[:, None], spatial("x,y")), PERIODIC)
        wind = StaggeredGrid(math.vec(x=1.0, y=0.0), PERIODIC, x=cells, y=1)
        found = advect_back(f, SCHEMES[scheme])(SCHEMES[scheme](u, wind, f), wind).values.numpy("x,y")[:, 0]
        loss = 2 * f * (1 - f) * c if scheme == "semi-Lagrangian" else f**2 * (1 - f**2) * c**2
        away = abs(np.cos(x)) > (0 if scheme == "semi-Lagrangian" else 0.6)  # from maxima and minima
        np.testing.assert_allclose(found[away], (1 - loss) * np.sin(x[away]), rtol=0, atol=1e-13)


def test_better_trajectories() -> None:
    """One large step there and back in steady flow: Euler's trajectories miss by dt²·u·∇u, those of fourth order do not."""
    u, wind, dt, errors = smooth_marker(64), taylor_green(ns.periodic_square(64), 0.0, 0.0), 0.5, {}
    for name, options in (("euler", {}), ("rk4", {"integrator": advect.rk4})):
        there = advect.semi_lagrangian(u, wind, dt, **options)
        errors[name] = distance(advect_back(dt, advect.semi_lagrangian, **options)(there, wind), u)
    assert errors["rk4"] < 0.05 * errors["euler"], errors


# --- Navier–Stokes ---


def start(cells: int) -> dict[str, Field]:
    velocity = ns.divergence_free_noise(ns.periodic_square(cells), 1, 2, 0.5, seed=0).trajectory[0]
    return {"velocity": velocity, "marker": smooth_marker(cells)}


@cache
def forward(steps: int, advection: Callable = advect.mac_cormack, viscosity: float = 0.0) -> Callable[[State], State]:
    """Over one time unit, in which velocity and marker change by a third of themselves."""
    dt = 1 / steps
    step = ns.navier_stokes_step(dt, 1, advection)
    return times(carried(dt, lambda v: step(v, viscosity), advection), steps)


@cache
def backward(steps: int, advection: Callable = advect.mac_cormack) -> Callable[[State], State]:
    return times(carried_back(1 / steps, navier_stokes_back(1 / steps, advection), advection), steps)


@pytest.mark.slow
def test_navier_stokes_comes_back_with_first_order() -> None:
    """Velocity and marker, without viscosity. Measured: .110 .061 .033 and .030 .016 .0081."""
    x, errors = start(64), []
    for steps in (8, 16, 32):
        y = forward(steps)(x)
        assert all(distance(y[name], x[name]) > 0.25 for name in x)
        found = backward(steps)(y)
        errors.append([distance(found[name], x[name]) for name in ("velocity", "marker")])
    assert (np.log2(np.divide(errors[:-1], errors[1:])) > 0.8).all(), errors
    assert errors[-1][0] < 0.034 and errors[-1][1] < 0.0085, errors
    assert ph.quantities.largest_divergence(found["velocity"]) < 1e-12


def test_sharpening_takes_the_viscosity_back() -> None:
    """As far as without viscosity, .061; without sharpening .141 remain."""
    x, sharpening = start(64), heat.Sharpening(0.02, 1.0, noise=1e-4)
    y = forward(16, viscosity=0.02)(x)
    plain = backward(16)(y)["velocity"]
    sharp = times(navier_stokes_back(1 / 16, advect.mac_cormack, sharpening=sharpening), 16)(y["velocity"])
    errors = [distance(found, x["velocity"]) for found in (plain, sharp)]
    assert errors[1] < 0.55 * errors[0] and errors[1] < 0.075, errors


def test_local_inverse_of_navier_stokes() -> None:
    """Error of the velocity and residual fall at every iteration, of the viscosity too, which the way back leaves out.
    Measured: .178 .064 .030 .016 .0095 and .149 .045 .018 .009 .0049. Solutions stay as they are."""
    x, there, back = start(64), forward(8, viscosity=0.02), backward(8)
    y, inverse = there(x), local_inverse(there, back)
    found, errors, residuals = back(y), [], []
    for _ in range(5):
        errors.append(distance(found["velocity"], x["velocity"]))
        residuals.append(max(distance(there(found)[name], y[name]) for name in y))
        found = inverse(y, found)
    assert (np.diff(errors) < 0).all() and errors[-1] < 0.01, errors
    assert (np.diff(residuals) < 0).all() and residuals[-1] < 0.005, residuals
    five = local_inverse(there, back, iterations=5)(y, back(y))
    assert distance(five["velocity"], found["velocity"]) < 1e-14
    assert same(local_inverse(there, back, 1)(y, x), x)


@pytest.mark.smoke
def test_force_and_drag_are_taken_off() -> None:
    """Uniform flow, which nothing else changes, and laminar Kolmogorov flow in its balance."""
    grid = ns.periodic_square(16)
    force, dt, drag = ns.kolmogorov_force(grid, 2), 0.05, 0.3
    start = grid.with_values(force.values * 1.7)
    step, back = ns.navier_stokes_step(dt, 1, force=force, drag=drag), navier_stokes_back(dt, force=force, drag=drag)
    with ph.linear_solve.linear_solves():
        there = step(step(start, 0.0), 0.0)
        found = back(back(there))
    assert distance(there, start) > 0.01
    assert distance(found, start) < 1e-13


def test_local_inverse_is_exact_for_linear_steps_that_can_be_inverted() -> None:
    """x − x* = (1 − BP)ᵐ(x₀ − x*) against dense matrices: uniform wind by a third of a cell."""
    cells, dt = 9, 1 / 3
    u = CenteredGrid(0.0, PERIODIC, x=cells, y=1)
    wind = CenteredGrid(math.vec(x=1.0, y=0.0), PERIODIC, x=cells, y=1)
    step, back = (lambda m: advect.semi_lagrangian(m, wind, dt)), partial(advect_back(dt), velocity=wind)
    true, start = noise(2, cells, dtype=torch.float64).numpy()

    def of(values: np.ndarray) -> Field:
        return u.with_values(wrap(torch.as_tensor(values)[:, None], spatial("x,y")))

    shift = np.roll(np.eye(cells), 1, 0)
    p, b = (1 - dt) * np.eye(cells) + dt * shift, (1 - dt) * np.eye(cells) + dt * shift.T
    for m in (1, 2, 7):
        found = local_inverse(step, back, m)(step(of(true)), of(start))
        expected = true + np.linalg.matrix_power(np.eye(cells) - b @ p, m) @ (start - true)
        np.testing.assert_allclose(found.values.numpy("x,y")[:, 0], expected, rtol=0, atol=1e-13)
    assert abs(np.linalg.eigvals(np.eye(cells) - b @ p)).max() < 1


def test_few_iterations_are_the_damping() -> None:
    """With nothing on the way back diffusion is sharpened by (1 − (1 − K)ᵐ)/K ≤ m (van Cittert), waves being modes."""
    grid, step = heat.square(16), heat.heat_step(1.0, 0.5)
    n = grid.with_values(wrap(noise(16, 16, dtype=torch.float64), spatial("x,y")))
    found = local_inverse(step, lambda y: y, 6)(n, 0 * n).values.numpy("x,y")
    k = 2 * np.pi * np.fft.fftfreq(16)
    decay = np.exp(-0.5 * (k[:, None] ** 2 + k**2))
    gain = np.fft.fft2(found) / np.fft.fft2(n.values.numpy("x,y"))
    np.testing.assert_allclose(gain, (1 - (1 - decay) ** 6) / decay, rtol=1e-10)
    assert abs(gain).max() < 6


# --- Burgers ---


def sine_back(cells: int, steps: int, advection: Callable, time: float, nu: float, noise: float | None) -> np.ndarray:
    """−sin x after some time by Cole and Hopf, run back to the start, `(x)`."""
    x, dt = (np.arange(cells) + 0.5) * 2 * np.pi / cells, time / steps
    values = wrap(torch.as_tensor(cole_hopf(x, time, nu))[:, None], spatial("x"), channel(vector="x"))
    u = burgers.line(cells).with_values(values)
    sharpening = None if noise is None else heat.Sharpening(nu, time, noise)
    back = burgers_back(dt, advection, sharpening)
    return component_values(times(lambda v: back(v, 0 * v), steps)(u))[0][:, 0].numpy()


def error(cells: int, found: np.ndarray) -> float:
    return float(np.abs(found + np.sin((np.arange(cells) + 0.5) * 2 * np.pi / cells)).mean())


@pytest.mark.parametrize(("advection", "accuracy"), [(advect.mac_cormack, 1e-3), (burgers.upwind, 5e-3)])
def test_burgers_comes_back_before_the_shock(advection: Callable, accuracy: float) -> None:
    """At 0.6 of the time of the shock of the inviscid equation, u has changed by 0.175: the start is found with first order
    in dt, and by a fifth at best without sharpening."""
    sizes = ((64, 16), (256, 64))
    errors = [error(n, sine_back(n, s, advection, 0.6, 0.05, 1e-2)) for n, s in sizes]
    assert np.log2(errors[0] / errors[1]) / 2 > 0.9 and errors[-1] < accuracy, errors
    assert error(256, sine_back(256, 64, advection, 0.6, 0.05, None)) > 5 * errors[-1]


@pytest.mark.parametrize(
    ("advection", "noise_level"),
    [(advect.semi_lagrangian, 1e-2), (advect.mac_cormack, 1e-2), (advect.mac_cormack, 1e-5)],
)
def test_burgers_stays_bounded_behind_the_shock(advection: Callable, noise_level: float) -> None:
    """At three times that, with νk²T up to 983: the largest velocity was 1, and nothing grows beyond twice of it."""
    found = sine_back(256, 128, advection, 3.0, 0.02, noise_level)
    assert np.isfinite(found).all() and np.abs(found).max() < 2
    if noise_level == 1e-2:  # no less than the errors of the scheme
        assert error(256, found) < error(256, cole_hopf((np.arange(256) + 0.5) * np.pi / 128, 3.0, 0.02))


def test_burgers_on_faces_with_a_force() -> None:
    grid, dt, nu, steps = burgers.square(64), 1 / 6, 0.05, 3
    x, f = (burgers.waves_2d(grid, 1, np.zeros(1), seed=s).time[0].trajectory[0] for s in (0, 1))
    y, step, errors = x, burgers.burgers_step(dt, nu, 1, advect.mac_cormack), []
    for _ in range(steps):
        y = step(y, f)
    for sharpening in (None, heat.Sharpening(nu, steps * dt, 1e-3)):
        found, back = y, burgers_back(dt, advect.mac_cormack, sharpening)
        for _ in range(steps):
            found = back(found, f)
        errors.append(distance(found, x))
    assert distance(y, x) > 0.4 and errors[1] < 0.4 * errors[0] < 0.025, errors


def test_captured_equals_eager() -> None:
    u, f = line(0, dtype=torch.float64, b=2), line(1, dtype=torch.float64, b=2)
    back = burgers_back(0.1, sharpening=heat.Sharpening(0.05, 0.1, 0.05))
    assert same(ph.capture(back)(u, f), back(u, f))
    state = {"velocity": faces("periodic", dtype=torch.float64, b=2)}
    bounds, resolution = state["velocity"].bounds, state["velocity"].resolution
    values = wrap(noise(2, *resolution.sizes, dtype=torch.float64), batch("b"), resolution)
    state["marker"] = CenteredGrid(values, PERIODIC, bounds=Box(bounds.lower, bounds.upper))
    back = carried_back(0.1, navier_stokes_back(0.1))
    block = ph.capture(back, check=False)
    with ph.linear_solve.linear_solves():
        expected = back(state)
    for name, found in block(state).items():
        assert distance(found, expected[name]) < 1e-13 and found.shape == state[name].shape


def test_derivatives() -> None:
    u, f = line(0, 4, torch.float64, b=1), line(1, 4, torch.float64, b=1)
    block = ph.capture(burgers_back(0.1, sharpening=heat.Sharpening(0.05, 0.1, 0.05)))
    check_derivatives(block.native, block.flatten(u, f))
    check_vmap(block.native, block.flatten(u, f))


@pytest.mark.parametrize(("scheme", "order"), [("semi-Lagrangian", 1), ("MacCormack", 2)])
def test_advection_comes_back_with_the_order_of_the_scheme(scheme: str, order: int) -> None:
    """A marker in steady Taylor–Green vortices, at fixed CFL number. Measured: 0.8 and 2.3."""
    errors = []
    for cells, steps in ((32, 8), (64, 16)):
        u, wind, dt = smooth_marker(cells), taylor_green(ns.periodic_square(cells), 0.0, 0.0), 1 / steps
        there = times(lambda m, d=dt, w=wind: SCHEMES[scheme](m, w, d), steps)
        back = times(partial(advect_back(dt, SCHEMES[scheme]), velocity=wind), steps)
        errors.append(distance(back(there(u)), u))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35), errors
    assert errors[-1] < {"semi-Lagrangian": 0.06, "MacCormack": 0.02}[scheme]


def test_navier_stokes_comes_back_by_semi_lagrangian_advection() -> None:
    """It smooths more with more steps, unless the cells are refined with them. Measured: .27 .16 .09 on 32², 64², 128²
    in 8, 16, 32 steps."""
    x = start(64)
    found = backward(16, advect.semi_lagrangian)(forward(16, advect.semi_lagrangian)(x))
    assert distance(found["velocity"], x["velocity"]) < 0.165 and distance(found["marker"], x["marker"]) < 0.06
