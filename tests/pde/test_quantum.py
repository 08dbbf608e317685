"""Quantum dipole against dense matrices, matrix exponentials, eigenvalues and Rabi oscillations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases.analytic import energy_of_level
from cases.small import noise, same
from phi.torch.flow import Tensor, batch, math, wrap
from scipy.linalg import expm

import phi_hybrid as ph
from phi_hybrid.pde.quantum import Well, infidelity

torch.set_num_threads(1)

WELL = Well()
ORDER = "trajectory,x"


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with math.precision(64):
        yield


def hamiltonian(well: Well, u: float) -> np.ndarray:
    """−∂²/∂x² + u·x, entry by entry."""
    dx, inside = well.length / (well.points - 1), well.points - 2
    h = np.zeros((inside, inside))
    for j in range(inside):
        h[j, j] = 2 / dx**2 + u * (j + 1) * dx
        for k in (j - 1, j + 1):
            if 0 <= k < inside:
                h[j, k] = -1 / dx**2
    return h


def random_states(well: Well, trajectories: int = 3) -> Tensor:
    return well.superpositions(trajectories, 0, range(1, well.points - 1), phases=True)


def fields(steps: int, trajectories: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return wrap(3 * noise(steps, trajectories, seed=7, dtype=dtype), batch("time,trajectory"))


def test_set_up_of_the_paper() -> None:
    assert (WELL.points, WELL.length, WELL.dt, WELL.steps) == (16, 2.0, 0.05, 384)


# --- in time ---


@pytest.mark.parametrize("well", [WELL, Well(3, 1.0, 0.3), Well(9, 3.0, -0.1)])
def test_step_solves_the_equations_of_crank_and_nicolson(well: Well) -> None:
    psi, u = random_states(well), fields(1).time[0]
    after = ph.capture(well.step)(psi, u).numpy(ORDER)
    for before, control, found in zip(psi.numpy(ORDER), u.numpy("trajectory"), after):
        h = 0.5j * well.dt * hamiltonian(well, control)
        one = np.eye(len(h))
        np.testing.assert_allclose(found, np.linalg.solve(one + h, (one - h) @ before), rtol=0, atol=1e-14)


def test_order_two() -> None:
    """Against matrix exponentials, the field changing in between. Measured: 2.00."""
    well, strengths = Well(8, 3.0), (5.0, -8.0)
    psi = random_states(well, 1)
    expected = psi.numpy(ORDER)[0]
    for u in strengths:
        expected = expm(-1j * hamiltonian(well, u) * 0.2) @ expected
    errors = []
    for n in (100, 200, 400):
        u = wrap(torch.tensor(strengths, dtype=torch.float64).repeat_interleave(n), batch("time"))
        after = replace(well, dt=0.2 / n).controlled(psi, u)
        errors.append(np.abs(after.numpy(ORDER)[0] - expected).max())
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 2, atol=0.05)
    assert errors[-1] < 1e-4


@pytest.mark.parametrize(("bits", "rounding"), [(64, 1e-12), (32, 1e-4)])
def test_norm_and_overlaps_are_conserved_to_rounding(bits: int, rounding: float) -> None:
    with math.precision(bits):
        psi = random_states(WELL)
        u = fields(384, dtype=torch.float64 if bits == 64 else torch.float32)
        after = WELL.controlled(psi, u).numpy(ORDER).astype(complex)
        np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, rtol=0, atol=rounding)
        alike = wrap(torch.ones(384), batch("time"))
        start, end = psi.numpy(ORDER).astype(complex), WELL.controlled(psi, alike).numpy(ORDER).astype(complex)
        np.testing.assert_allclose(end.conj() @ end.T, start.conj() @ start.T, rtol=0, atol=rounding)
        assert np.abs(end - start).max() > 0.1


def test_steps_back_in_time_take_steps_back() -> None:
    psi, u = random_states(WELL), fields(100)
    back = replace(WELL, dt=-WELL.dt).controlled(WELL.controlled(psi, u), u.time[::-1])
    np.testing.assert_allclose(back.numpy(ORDER), psi.numpy(ORDER), rtol=0, atol=1e-12)


def test_free_eigenstates_only_turn_their_phase() -> None:
    """By 2·atan(E·dt/2) per step."""
    steps = 50
    for level in (1, 2, 3, 14):
        psi = WELL.eigenstate(level)
        after = WELL.controlled(psi, math.zeros(batch(time=steps))).numpy("x")
        phase = np.exp(-2j * steps * np.arctan(energy_of_level(WELL, level) * WELL.dt / 2))
        np.testing.assert_allclose(after, phase * psi.numpy("x"), rtol=0, atol=1e-12)


def test_rabi_oscillation() -> None:
    """A weak field A·cos ωt, resonant to the lowest transition, moves the particle up with probability sin²(A·x₁₂·t/2).

    Terms of frequency 2ω make it quiver by A·x₁₂/ω = 2 % around that (measured: up to 3.4 %).
    """
    dx = WELL.length / (WELL.points - 1)
    first, second = (WELL.eigenstate(n).numpy("x").real for n in (1, 2))
    dipole = abs(first @ (np.arange(1, 15) * dx * second))
    assert dipole == pytest.approx(16 * WELL.length / (9 * np.pi**2), rel=0.01)
    frequency = np.diff([2 / WELL.dt * np.arctan(energy_of_level(WELL, n) * WELL.dt / 2) for n in (1, 2)])[0]
    times = (np.arange(WELL.steps) + 0.5) * WELL.dt
    strength = np.pi / (dipole * WELL.steps * WELL.dt)
    u = wrap(torch.as_tensor(strength * np.cos(frequency * times)), batch("time"))
    trajectory = ph.rollout(ph.capture(WELL.step), WELL.eigenstate(1), WELL.steps, u)
    found = 1 - infidelity(trajectory, WELL.eigenstate(2)).numpy("time")
    expected = np.sin(strength * dipole * np.arange(WELL.steps + 1) * WELL.dt / 2) ** 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05)
    assert found[-1] > 0.99


# --- states ---


@pytest.mark.parametrize("well", [WELL, Well(3, 1.0), Well(40, 5.0)])
def test_eigenstates_diagonalise_the_hamiltonian(well: Well) -> None:
    inside = well.points - 2
    states = np.stack([well.eigenstate(n).numpy("x") for n in range(1, inside + 1)])
    energies = np.array([energy_of_level(well, n) for n in range(1, inside + 1)])
    np.testing.assert_allclose(states @ states.T, np.eye(inside), rtol=0, atol=1e-13)
    h = hamiltonian(well, 0.0)
    np.testing.assert_allclose(states @ h @ states.T, np.diag(energies), rtol=0, atol=1e-13 * h.max() * inside)
    np.testing.assert_allclose(energies, np.linalg.eigvalsh(h), rtol=1e-12)


def test_superpositions() -> None:
    states = WELL.superpositions(500, seed=1)
    values = states.numpy(ORDER)
    basis = np.stack([WELL.eigenstate(n).numpy("x") for n in range(1, 15)])
    amplitudes = values @ basis.T
    np.testing.assert_allclose((abs(amplitudes[:, 1:3]) ** 2).sum(1), 1, rtol=0, atol=1e-13)
    assert np.abs(np.delete(amplitudes, [1, 2], 1)).max() < 1e-13 and not values.imag.any()
    angle = np.arctan2(amplitudes[:, 2].real, amplitudes[:, 1].real)
    assert abs(np.exp(1j * angle).mean()) < 0.1 and abs(np.exp(2j * angle).mean()) < 0.1  # of all directions alike
    assert same(states, WELL.superpositions(500, 1)) and not same(states, WELL.superpositions(500, 2))
    general = WELL.superpositions(500, 1, levels=(1, 4, 5), phases=True).numpy(ORDER) @ basis.T
    np.testing.assert_allclose((abs(general[:, [0, 3, 4]]) ** 2).sum(1), 1, rtol=0, atol=1e-13)
    assert abs(np.exp(1j * np.angle(general[:, [0, 3, 4]])).mean(0)).max() < 0.15
    with math.precision(32):
        assert WELL.superpositions(2, 0).native(ORDER).dtype == WELL.eigenstate(1).native("x").dtype == torch.complex64


def test_infidelity() -> None:
    a, b = random_states(WELL, 2), WELL.superpositions(2, seed=9, phases=True)
    expected = 1 - abs((a.numpy(ORDER).conj() * b.numpy(ORDER)).sum(1)) ** 2
    for found in (infidelity(a, b), infidelity(b, a), infidelity(a * np.exp(0.7j), b)):
        np.testing.assert_allclose(found.numpy("trajectory"), expected, rtol=0, atol=1e-14)
    assert abs(infidelity(a, a)).max < 1e-14
    assert float(infidelity(WELL.eigenstate(1), WELL.eigenstate(4))) == pytest.approx(1, abs=1e-14)
    assert same(ph.capture(infidelity)(a, b), infidelity(a, b))


# --- derivatives ---


def test_gradient_of_a_long_sequence() -> None:
    """Of the loss with respect to three entries of the field, by central differences."""
    block = ph.capture(lambda p, u, target: infidelity(WELL.controlled(p, u), target), check=False)
    psi, u, target = block.flatten(WELL.eigenstate(1), fields(48, 2), WELL.superpositions(2, 0))
    gradient = torch.func.grad(lambda c: block.native(psi, c, target)[0].sum())(u)
    for time, trajectory in ((0, 0), (30, 1), (47, 0)):
        shift = torch.zeros_like(u)
        shift[time, trajectory] = 1e-5
        upper, lower = (block.native(psi, u + s * shift, target)[0].sum() for s in (1, -1))
        assert float(gradient[time, trajectory]) == pytest.approx(float(upper - lower) / 2e-5, rel=1e-5, abs=1e-9)


# --- wrong arguments ---

GROUND = WELL.eigenstate(1)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: WELL.step(1.0, 0.0), r"psi is a float: expected complex \(batch, x=14\), e.g. from eigenstate"),
        (lambda: WELL.controlled(Well(8).eigenstate(1), fields(2)), "psi has shape .*x.*=6.*: expected complex"),
        (lambda: WELL.step(wrap(torch.zeros(14) * 1j, batch("x")), 0.0), "psi has shape .*x.*: expected complex"),
        (lambda: WELL.step(math.real(GROUND), 0.0), "psi has type float.*: expected .*; use math.to_complex"),
        (lambda: WELL.eigenstate(0), "level = 0: expected an integer from 1 to 14, or a Well with more"),
        (lambda: WELL.eigenstate(1.0), "level = 1.0: expected an integer from 1 to 14"),
        (lambda: WELL.superpositions(1, 0, (1, 15)), "level = 15: expected an integer from 1 to 14"),
        (lambda: infidelity(2.0, GROUND), "psi is a float: expected complex"),
        (lambda: infidelity(GROUND, Well(8).eigenstate(1)), "psi has 14 points and target 6: take both from the same"),
        (lambda: infidelity(GROUND, math.real(GROUND)), "target has type float.*: expected complex amplitudes"),
    ],
)
def test_wrong_arguments(use: Callable, message: str) -> None:
    with pytest.raises(ph.StateError, match=message):
        use()
