"""Navier–Stokes steps against exact solutions, balances and hand-written formulas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases.analytic import taylor_green
from phi.torch.flow import Field, advect, batch, math, wrap

import phi_hybrid as ph
from phi_hybrid.pde import navier_stokes as ns

torch.set_num_threads(1)

SCHEMES = {"semi_lagrangian": advect.semi_lagrangian, "mac_cormack": advect.mac_cormack}


def faces(velocity: Field, order: str = "x,y") -> list[np.ndarray]:
    return [velocity.values[{"~vector": d}].numpy(order) for d in "xy"]


def energy(velocity: Field) -> float:
    return float(np.mean([np.mean(c**2) for c in faces(velocity)]))


def vortices(cells: int, advection: Callable, viscosity: float, time: float, cfl: float = 0.5) -> tuple[Field, Field]:
    """Taylor–Green vortices after `time`: computed and exact, float64."""
    grid, dx = ns.periodic_square(cells), 2 * np.pi / cells
    steps = round(time / (cfl * dx))
    flow = ns.navier_stokes_step(time / steps, ns.diffusion_substeps(viscosity, time / steps, dx, 2), advection)
    start = taylor_green(grid, 0.0, viscosity)
    block = ph.capture(lambda v: flow(v, viscosity), start, check=False)
    return ph.rollout(block, start, steps).time[-1], taylor_green(grid, time, viscosity)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_taylor_green_converges_with_first_order_at_fixed_cfl(scheme: str) -> None:
    """Semi-Lagrangian advection in space and time, MacCormack through the splitting and the frozen velocity."""
    with math.precision(64):
        errors = []
        for cells in (32, 64):
            computed, exact = vortices(cells, SCHEMES[scheme], 0.05, 1.0)
            errors.append(np.sqrt(energy(computed - exact) / energy(exact)))
    assert 0.9 < np.log2(errors[0] / errors[1]) < 1.6, errors


def test_energy_of_taylor_green_decays_within_one_percent() -> None:
    with math.precision(64):
        computed, exact = vortices(128, advect.mac_cormack, 0.01, 1.0, cfl=0.25)  # 0.6 %; 1.2 % at CFL ½
    assert energy(computed) == pytest.approx(energy(exact), rel=0.01)
    assert energy(exact) / 0.25 == pytest.approx(np.exp(-4 * 0.01), rel=1e-6)


def test_laminar_kolmogorov_flow_is_stationary() -> None:
    """u = A·sin(ky) with νk² and drag against the force, balanced in the discrete equations."""
    dt, viscosity, drag, cells = 0.05, 0.05, 0.1, 16
    with math.precision(64):
        grid = ns.periodic_square(cells)
        force = ns.kolmogorov_force(grid, waves=2)
        k2 = (2 - 2 * np.cos(2 * 2 * np.pi / cells)) / (2 * np.pi / cells) ** 2
        balanced = grid.with_values(force.values * dt / (1 - (1 - dt * viscosity * k2) * (1 - dt * drag)))
        for advection in SCHEMES.values():
            with ph.linear_solve.linear_solves():
                after = ns.navier_stokes_step(dt, 1, advection, force, drag)(balanced, viscosity)
            for a, b in zip(faces(after), faces(balanced)):
                assert np.abs(a - b).max() < 1e-12
    assert abs(faces(balanced)[0]).max() > 1


def test_one_viscosity_per_batch_entry() -> None:
    start = ns.divergence_free_noise(ns.periodic_square(16), 1, 3, 1.0, seed=0).trajectory[0]
    block = ph.capture(ns.navier_stokes_step(0.1))
    both = block(start, wrap([0.01, 0.05], batch("case")))
    for n, viscosity in enumerate((0.01, 0.05)):
        for a, b in zip(faces(both.case[n]), faces(block(start, wrap(viscosity)))):
            assert np.abs(a - b).max() < 1e-6
    assert energy(both.case[0]) > energy(both.case[1])


def test_semi_lagrangian_viscosity_is_that_of_the_formula() -> None:
    for dx in (200 / 32, 200 / 64):
        fraction = (1.0 / dx) % 1
        added = ns.numerical_viscosity(advect.semi_lagrangian, dx, 1.0, 1.0, 100.0)
        assert added == pytest.approx(dx**2 * fraction * (1 - fraction) / 2, rel=0.02)
        assert abs(ns.numerical_viscosity(advect.mac_cormack, dx, 1.0, 1.0, 100.0)) < 0.1 * added


# --- wake ---


def test_wake_grid_and_viscosity() -> None:
    wake = ns.Wake()
    stream = wake.grid(64)
    assert stream.resolution.get_size("x") == 32 and stream.resolution.get_size("y") == 64
    across, along = faces(stream)
    assert across.shape == (33, 64) and along.shape == (32, 64)
    assert (across == 0).all() and (along == 1).all()
    assert wake.viscosity(100.0) == pytest.approx(0.2)
    assert wake.substeps(1.0, 256, 100.0) == 2 and wake.substeps(1.0, 64, 100.0) == 1


def test_wake_step() -> None:
    wake = ns.Wake()
    reynolds = wrap([100.0, 800.0], batch("trajectory"))
    start = wake.disturbed(32, 2)
    block = ph.capture(wake.step(1.0, 1, advect.mac_cormack), start, reynolds)
    flow = ph.rollout(block, start, 20, reynolds).time[-1]
    assert ph.quantities.largest_divergence(flow, wake.obstacle.geometry) < 1e-5
    along = faces(flow.trajectory[1])[1]
    assert np.abs(along[7:9, 8]).max() < 0.35 and np.abs(along).max() > 1.1  # slow in the cylinder, fast beside it
    assert np.abs(along[:, 0] - 1).max() < 0.5  # what flows in
    assert np.abs(along - faces(flow.trajectory[0])[1]).max() > 1e-3  # Re matters
    assert flow.boundary == start.boundary


def test_undisturbed_wake_stays_symmetric() -> None:
    wake = ns.Wake()
    block = ph.capture(wake.step(1.0), wake.grid(32), wrap(300.0))
    across, along = faces(ph.rollout(block, wake.grid(32), 10, wrap(300.0)).time[-1])
    assert np.abs(along - along[::-1]).max() < 1e-4 and np.abs(across + across[::-1]).max() < 1e-4


@pytest.mark.parametrize("cells", [7, 35, 36])
def test_substeps_are_stable_on_cells_that_are_not_square(cells: int) -> None:
    """An odd number of them."""
    wake = ns.Wake()
    dx = wake.grid(cells).dx.numpy("vector").astype(float)
    for dt in (0.1, 1.0, 30.0):
        assert wake.viscosity(10.0) * dt / wake.substeps(dt, cells, 10.0) * sum(1 / dx**2) <= 0.5 * (1 + 1e-6)


def test_waves_that_a_grid_does_not_carry() -> None:
    with pytest.raises(ph.StateError, match="wavelength = 0.3: expected at least four cells"):
        ns.numerical_viscosity(advect.semi_lagrangian, 1.0, 0.1, 1.0, 0.3)
