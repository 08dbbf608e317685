"""Mathematics of the studies against loops by hand, dense algebra, plain PhiFlow and analytic solutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import burgers_uncertainty
import drag_shape
import half_inverse_gradients
import numpy as np
import pg_navier_stokes as motion
import physical_gradients as inversion
import pytest
import torch
from cases.small import component_values
from flows import LINE
from phi.math import batch, spatial, wrap

import phi_hybrid as ph
from phi_hybrid.evaluation import calibration
from phi_hybrid.pde import poisson, quantum
from phi_hybrid.pde.penalized_flow import Channel

torch.set_num_threads(1)


# --- networks whose output goes into physics ---


def test_poisson_task_has_a_solution() -> None:
    task = half_inverse_gradients.laplacian(0)
    assert sum(p.numel() for p in task.network.parameters()) == 24_896
    f = task.held_out[:2]
    solve = ph.capture(poisson.solve).bind(poisson.noise(poisson.square(8), 2, 0))
    assert float(task.loss(task.physics(solve.native(f)[0], f), f)) < 1e-6


def test_quantum_loss_is_the_infidelity_and_has_a_gradient() -> None:
    """HIG looks at real and imaginary parts of ∂L/∂ψ, which lazily conjugated tensors do not have."""
    generator = torch.Generator().manual_seed(0)
    psi, target = (torch.randn(5, 14, dtype=torch.complex64, generator=generator) for _ in range(2))
    expected = quantum.infidelity(*(wrap(s, batch("b"), spatial("x")) for s in (psi, target))).mean
    found = half_inverse_gradients.infidelity(psi.requires_grad_(), torch.cat([target.real, target.imag], 1))
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert torch.view_as_real(torch.autograd.grad(found, psi)[0]).shape == (5, 14, 2)


@pytest.mark.parametrize(("change", "last"), [(half_inverse_gradients.falling, 0.0), (lambda entrant: entrant, 0.1)])
def test_rate_of_an_entrant_falls_only_if_asked_to(change: Callable, last: float) -> None:
    made = []

    def make(network: torch.nn.Module) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(network.parameters(), 0.1))
        return made[-1]

    states = torch.ones(8, 1)
    task = half_inverse_gradients.Task(
        torch.nn.Linear(1, 1), lambda y, x: y, half_inverse_gradients.squares, states, states
    )
    half_inverse_gradients.train(task, change(half_inverse_gradients.Entrant(make, 2)), 0.2, 0)
    trained, warm_up = (optimizer.param_groups[0]["lr"] for optimizer in made)
    assert trained == pytest.approx(last, abs=1e-3)
    assert warm_up == 0.1


# --- networks that invert physics ---


@pytest.mark.parametrize("case", ["heat", "poisson"])
def test_updates_of_x_are_adjoint_inverse_and_truth(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CELLS": 16, "SAMPLES": 24, "HELD_OUT": 8}.items():
        monkeypatch.setattr(inversion, name, value)
    task = inversion.CASES[case][0](0)
    truth = task.truth[:2]
    guess = (0.5 * truth).requires_grad_()
    seen, found = task.physics(truth), task.physics(guess)
    ways = inversion.plain_gradient, inversion.physical_gradient, inversion.supervised
    plain, physical, supervised = (way(task, seen, truth).update(guess).update for way in ways)
    (adjoint,) = torch.autograd.grad(((found - seen) ** 2).sum() / 2, guess)
    torch.testing.assert_close(plain, -adjoint)
    torch.testing.assert_close(supervised, truth - guess.detach())
    torch.testing.assert_close(task.physics(physical), (seen - found).detach(), rtol=0, atol=1e-4)
    if case == "poisson":  # nothing is lost there
        torch.testing.assert_close(physical, truth - guess.detach(), rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def simulation() -> motion.Simulation:
    return motion.Simulation(32)


@pytest.fixture(scope="module")
def smoke(simulation: motion.Simulation) -> motion.Smoke:
    return motion.samples(simulation, motion.CHUNK, seed=0)


def test_markers_are_carried_by_the_flow(simulation: motion.Simulation, smoke: motion.Smoke) -> None:
    """Uniform flow of 2 cells per time for t = 2, half a cell per step."""
    velocity = torch.zeros_like(smoke.velocity)
    velocity[:, 0] = 2.0
    moved = simulation.forward(velocity, smoke.before)[1]
    wave, expected = (torch.fft.fft2(m)[:, 1, 0] for m in (moved, smoke.before.roll(4, 1)))
    damping = math.cos(math.pi / 32) ** 8  # of the longest wave, by interpolation halfway between cells
    torch.testing.assert_close(wave, damping * expected, rtol=1e-4, atol=1e-3)


def test_updates_of_a_flow(simulation: motion.Simulation, smoke: motion.Smoke) -> None:
    """Plain ones are the adjoint; a physical one from rest carries the marker most of the way, and ends at the truth."""
    guess = (0.7 * smoke.velocity).requires_grad_()
    found = simulation.forward(guess, smoke.before)[1]
    (adjoint,) = torch.autograd.grad(((found - smoke.after) ** 2).sum() / 2, guess)
    plain = motion.plain_gradient(simulation, smoke).update(guess).update
    torch.testing.assert_close(plain, -adjoint, rtol=1e-3, atol=1e-3)
    physical = motion.physical_gradient(simulation, smoke)
    first = physical.update(torch.zeros_like(smoke.velocity)).update
    before, after = (motion.errors(simulation, v, smoke) for v in (0 * first, first))
    assert before == pytest.approx({"velocity": 1.0, "marker": 1.0})
    assert after["marker"] < 0.3 and after["velocity"] < 0.8
    assert physical.update(smoke.velocity).update.norm() < 0.15 * smoke.velocity.norm()


# --- shapes ---


def test_adjoint_reduces_the_drag_at_equal_area() -> None:
    tunnel = drag_shape.Tunnel(Channel(14))
    before = tunnel.drag(drag_shape.DISC)
    assert tunnel.solves == 1 and tunnel.steps == tunnel.forward_steps > 10
    drag_shape.by_adjoint(tunnel, 3, 0)
    assert tunnel.solves >= 3 and tunnel.steps > tunnel.forward_steps
    assert tunnel.least[1] < 0.95 * before
    for mask in tunnel.mask(torch.as_tensor(tunnel.best)):
        assert float(mask.sum()) * tunnel.channel.dx**2 == pytest.approx(np.pi / 4, rel=1e-6)


# --- uncertainty ---


def test_ensemble_errors_by_hand_and_spread_that_does_not_know_the_truth() -> None:
    case = replace(LINE, fine=64, coarse=16, trajectories=3, steps=8, pretraining=4, updates=2, filters=(8,))
    metrics, forecasts = burgers_uncertainty.forecasts_of(case, 3, 0, "cpu")
    names, forecast = ["time", "trajectory"], forecasts["strong_force"]
    members = component_values(forecast.members, ["member", *names])[0].double()
    source, truth = (component_values(u, names)[0].double() for u in (forecast.source, forecast.truth))
    expected = {"source": (source - truth).abs().mean(), "single": (members - truth).abs().mean()}
    expected["ensemble"] = (members.mean(0) - truth).abs().mean()
    for name, mae in expected.items():
        assert metrics[f"{name}, strong_force"]["mae"] == pytest.approx(float(mae), rel=1e-5)
    scaled = metrics["rms"]["factor"] * metrics["ensemble"]["spread_skill"]
    assert metrics["rms"]["spread_skill"] == pytest.approx(scaled, rel=1e-4)
    # held-out data and those of another viscosity have the same initial states and forces
    one, other = (forecasts[kind] for kind in ("held_out", "unknown_viscosity"))
    spreads = [component_values(calibration.spread(f.members), names)[0] for f in (one, other)]
    np.testing.assert_array_equal(*spreads)
    assert not np.array_equal(*(component_values(f.truth, names)[0] for f in (one, other)))
