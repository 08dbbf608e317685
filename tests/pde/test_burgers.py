"""Burgers' equation against exact solutions, hand-written differences, and a published reconstruction."""

from __future__ import annotations

import math as pymath
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from cases.analytic import cole_hopf
from cases.small import component_values, equal
from phi.torch.flow import PERIODIC, Box, CenteredGrid, Field, advect, channel, diffuse, field, math, spatial, wrap

import phi_hybrid as ph
from phi_hybrid.pde import burgers

torch.set_num_threads(1)

# --- exact solution ---


@pytest.mark.parametrize(("viscosity", "amplitude"), [(0.15, 1.0), (0.05, 0.7), (1.0, -2.0), (0.002, 1.0)])
def test_cole_hopf_solves_burgers(viscosity: float, amplitude: float) -> None:
    """∂u/∂t + u ∂u/∂x = ν ∂²u/∂x² by central differences of fourth order, before and after the front has formed, from a
    sine on."""
    x = np.linspace(0.1, 2 * np.pi, 23)
    times = (0.05, 0.4, 0.7) if viscosity < 0.01 else (0.05, 0.4, 2.0)  # the front of the thin one is 0.004 wide
    h = 2e-3

    def solution(t: float, dx: float = 0.0, dt: float = 0.0) -> np.ndarray:
        return cole_hopf(x + dx, t + dt, viscosity, amplitude=amplitude)

    for u in (partial(solution, t) for t in times):
        ddt = (8 * (u(dt=h) - u(dt=-h)) - (u(dt=2 * h) - u(dt=-2 * h))) / (12 * h)
        ddx = (8 * (u(h) - u(-h)) - (u(2 * h) - u(-2 * h))) / (12 * h)
        d2dx2 = (16 * (u(h) + u(-h)) - (u(2 * h) + u(-2 * h)) - 30 * u()) / (12 * h**2)
        assert np.abs(ddt).max() > 0.01
        np.testing.assert_allclose(ddt + u() * ddx, viscosity * d2dx2, atol=2e-7)
    for t in (0.0, 1e-6):
        np.testing.assert_allclose(solution(t), -amplitude * np.sin(x), atol=1e-5)


# --- convergence ---

VISCOSITY, TIME = 0.15, 0.5


def error_against_cole_hopf(cells: int, steps: int, advection: Callable) -> float:
    """Mean absolute error at t = 0.5 in double precision."""
    dt, dx = TIME / steps, 2 * np.pi / cells
    x = (np.arange(cells) + 0.5) * dx
    substeps = burgers.diffusion_substeps(VISCOSITY, dt, dx, 1)
    with math.precision(64):
        values = wrap(torch.as_tensor(-np.sin(x))[:, None], spatial("x"), channel(vector="x"))
        u = burgers.line(cells).with_values(values)
        step = ph.capture(burgers.burgers_step(dt, VISCOSITY, substeps, advection), check=False)
        after = component_values(ph.rollout(step, u, steps, 0 * u).time[-1])[0][:, 0].numpy()
    return float(np.abs(after - cole_hopf(x, TIME, VISCOSITY)).mean())


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


def test_energy_decays_without_force() -> None:
    u = burgers.waves_2d(burgers.square(16), 2, np.zeros(1), seed=3).time[0] * 4
    trajectory = ph.rollout(ph.capture(burgers.burgers_step(0.1, 0.1, 1)), u, 15, 0 * u)
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


@pytest.mark.parametrize("dims", [1, 2])
def test_step_is_plain_phiflow(dims: int) -> None:
    if dims == 1:
        u, f = (burgers.waves_1d(burgers.line(16), 2, None, (1, 3), 3, 0.5, seed) for seed in (0, 1))
    else:
        u, f = (burgers.waves_2d(burgers.square(8), 2, np.zeros(1), seed=seed).time[0] for seed in (0, 1))
    expected = diffuse.explicit(advect.mac_cormack(u, u, 0.2), 0.03, 0.2, substeps=2) + 0.2 * f
    found = burgers.burgers_step(0.2, 0.03, 2, advect.mac_cormack)(u, f)
    assert equal(component_values(found, ("trajectory",)), component_values(expected, ("trajectory",)))


# --- reconstruction of an initial state (Thuerey et al., Physics-based Deep Learning) ---

N, BOOK_STEPS = 128, 16


def book_step(u: Field) -> Field:
    """Diffusion, then advection, as in the book's notebook: dt = 1/32, ν = 0.01/(N·π)."""
    u = diffuse.explicit(u, 0.01 / (N * np.pi), 1 / 32)
    return advect.semi_lagrangian(u, u, 1 / 32)


def on_line(values: torch.Tensor) -> Field:
    return CenteredGrid(wrap(values, spatial("x"), channel(vector="x")), PERIODIC, bounds=Box(x=(-1, 1)))


def descend(step: Callable[[Field], Field], target: Field, updates: int) -> tuple[list[float], list[torch.Tensor]]:
    """Gradient descent of rate 5 on the mean square from zero: losses before each update, and gradients."""
    values, losses, gradients = torch.zeros(N, 1), [], []
    for _ in range(updates):
        u = on_line(values.requires_grad_())
        for _ in range(BOOK_STEPS):
            u = step(u)
        loss = (field.l2_loss(u - target) * 2 / N).native()
        (gradient,) = torch.autograd.grad(loss, values)
        losses.append(loss.item())
        gradients.append(gradient)
        values = (values - 5 * gradient).detach()
    return losses, gradients


def test_reconstruction_falls_as_published_and_as_in_eager_phiflow() -> None:
    """Published: .38, .096, .033, .005 after 0, 10, 20, 40 updates, for a target of slightly lower energy (first loss
    .402 here). Fractions of the first loss are compared; tolerances are what rounding of the published digits leaves.
    The first losses and gradients are those of plain PhiFlow to the last bit."""
    block = ph.capture(book_step)
    u = on_line(-torch.sin(np.pi * ((torch.arange(N) + 0.5) / N * 2 - 1))[:, None])
    target = ph.rollout(block, u, BOOK_STEPS).time[BOOK_STEPS]
    losses, gradients = descend(block, target, 41)
    assert losses[0] == pytest.approx(0.402, abs=0.001)
    for update, published in ((10, 0.096), (20, 0.033), (40, 0.005)):
        tolerance = 0.0005 / published + 0.005 / 0.38
        assert losses[update] / losses[0] == pytest.approx(published / 0.38, rel=tolerance)
    assert all(a > b for a, b in zip(losses, losses[1:]))
    eager = descend(book_step, target, 4)
    assert losses[:4] == eager[0] and equal(gradients[:4], eager[1])
