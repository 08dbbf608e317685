"""Oscillator chains against matrix exponentials, an ODE solver, the textbook's Runge–Kutta method and energy balances."""

from __future__ import annotations

import math as pymath
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases.analytic import energy_of_chain
from cases.small import noise, same
from phi.torch.flow import Tensor, batch, channel, instance, math, wrap
from scipy.integrate import solve_ivp
from scipy.linalg import expm

import phi_hybrid as ph
from phi_hybrid.pde.oscillators import Oscillators, nonlinear_oscillators

torch.set_num_threads(1)

CHAINS = {
    "linear": Oscillators(),
    "nonlinear": nonlinear_oscillators(),
    "one": Oscillators(1, gain=2.0, dt=0.1),
    "both": Oscillators(4, coupling=0.3, cubic=0.7, gain=-1.5, dt=0.2),
}
ORDER = "trajectory,oscillators,phase"


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with math.precision(64):
        yield


def controls(steps: int, trajectories: int = 3) -> Tensor:
    return wrap(noise(steps, trajectories, seed=7, dtype=torch.float64), batch("time,trajectory"))


def derivative(chain: Oscillators, y: np.ndarray, u: float) -> np.ndarray:
    """The equations spring by spring, `(oscillators, phase) -> (oscillators, phase)`."""
    x, v = y[:, 0], y[:, 1]
    force = -x.copy()
    for i in range(chain.count - 1):
        stretch = x[i + 1] - x[i]
        tension = chain.coupling * stretch + chain.cubic * stretch**3
        force[i] += tension
        force[i + 1] -= tension
    force[-1] += chain.gain * u
    return np.stack([v, force], 1)


def exact(chain: Oscillators, y: np.ndarray, u: float, time: float) -> np.ndarray:
    def right(_: float, z: np.ndarray) -> np.ndarray:
        return derivative(chain, z.reshape(y.shape), u).ravel()

    return solve_ivp(right, (0, time), y.ravel(), "DOP853", rtol=1e-12, atol=1e-13).y[:, -1].reshape(y.shape)


def test_set_ups_of_the_book_and_the_paper() -> None:
    linear, nonlinear = Oscillators(), nonlinear_oscillators()
    assert linear == Oscillators(count=2, coupling=0.2, cubic=0, gain=1, dt=0.5, steps=24)
    assert nonlinear == Oscillators(count=2, coupling=0, cubic=1, gain=3, dt=0.125, steps=96)
    assert linear.dt * linear.steps == nonlinear.dt * nonlinear.steps == 12


# --- in time ---


@pytest.mark.parametrize("name", CHAINS)
def test_step_is_the_classical_runge_kutta_method(name: str) -> None:
    chain, u = CHAINS[name], controls(1).time[0]
    start = chain.random_states(3, seed=0)
    found = ph.capture(chain.step)(start, u).numpy(ORDER)
    for y, c, after in zip(start.numpy(ORDER), u.numpy("trajectory"), found):
        k1 = derivative(chain, y, c)
        k2 = derivative(chain, y + chain.dt / 2 * k1, c)
        k3 = derivative(chain, y + chain.dt / 2 * k2, c)
        k4 = derivative(chain, y + chain.dt * k3, c)
        np.testing.assert_allclose(after, y + chain.dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", CHAINS)
def test_order_four(name: str) -> None:
    """Against an ODE solver of order 8, the control changing in between. Measured: 3.99 … 4.08."""
    chain = CHAINS[name]
    start, given = chain.random_states(1, seed=0), (0.7, -1.2)
    expected = start.numpy(ORDER)[0]
    for u in given:
        expected = exact(chain, expected, u, 1.0)
    errors = []
    for n in (10, 20, 40):
        u = wrap(torch.tensor(given, dtype=torch.float64).repeat_interleave(n), batch("time"))
        after = replace(chain, dt=1 / n).controlled(start, u)
        errors.append(np.abs(after.numpy(ORDER)[0] - expected).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (abs(orders - 4) < 0.2).all() and errors[-1] < 1e-5, (errors, orders)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_linear_chain_tends_to_the_matrix_exponential(count: int) -> None:
    chain, u = Oscillators(count, dt=1 / 256), 0.4
    springs = np.diag(np.r_[np.full(count - 1, 1.0), 0]) + np.diag(np.r_[0, np.full(count - 1, 1.0)])
    springs = springs - np.eye(count, k=1) - np.eye(count, k=-1)
    generator = np.zeros((2 * count + 1, 2 * count + 1))  # of (x, v, 1)
    generator[:count, count : 2 * count] = np.eye(count)
    generator[count:-1, :count] = -np.eye(count) - 0.2 * springs
    generator[-2, -1] = u
    start = chain.random_states(1, seed=0)
    x = start.numpy(ORDER)[0]
    expected = (expm(generator) @ np.r_[x[:, 0], x[:, 1], 1])[:-1].reshape(2, count).T
    after = chain.controlled(start, wrap(torch.full((256,), u, dtype=torch.float64), batch("time"))).numpy(ORDER)[0]
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CHAINS)
def test_free_chains_lose_energy_with_the_fifth_power_of_the_step(name: str) -> None:
    """As the Runge–Kutta method does on oscillators: 1 − |R(iω dt)|² ≈ (ω dt)⁶/72 per step. Measured: 4.4 … 5.0."""
    start, losses = CHAINS[name].random_states(3, seed=0), []
    for n in (20, 40):
        chain = replace(CHAINS[name], dt=1 / n)
        energies = [energy_of_chain(chain, s) for s in (start, chain.controlled(start, math.zeros(batch(time=4 * n))))]
        losses.append(float(math.max(abs(energies[1] / energies[0] - 1), "trajectory")))
    assert losses[0] < 1e-5 and 4 < pymath.log2(losses[0] / losses[1]) < 5.5, losses
    if name == "one":
        assert losses[0] == pytest.approx(4 * (1 / 20) ** 5 / 72, rel=0.01)


def test_controls_found_with_the_jacobian_bring_the_linear_chain_back() -> None:
    """The task of the book: the state depends linearly on the controls, so that least squares solves it at once."""
    chain = Oscillators()
    inputs = chain.random_states(1, seed=0), wrap(torch.zeros(24, 1).double(), batch("time,trajectory"))
    bound = ph.capture(chain.controlled, check=False).bind(*inputs)
    start, free = bound.flatten(*inputs)
    jacobian = torch.func.jacrev(lambda c: bound.native(start, c)[0].flatten())(free)[..., 0]
    missing = (start - bound.native(start, free)[0]).flatten()
    assert missing.norm() > 0.1
    found = torch.linalg.lstsq(jacobian, missing, driver="gelsd").solution[:, None]
    torch.testing.assert_close(bound.native(start, found)[0], start, rtol=0, atol=1e-12)


# --- states ---


def test_random_states() -> None:
    chain = CHAINS["both"]
    states = chain.random_states(200, seed=3)
    values = states.numpy(ORDER)
    assert values.shape == (200, 4, 2) and 0 <= values.min() and values.max() < 1
    np.testing.assert_allclose(values.mean(0), 0.5, atol=0.1)
    assert same(states, chain.random_states(200, 3)) and not same(states, chain.random_states(200, 4))


STATE = Oscillators().random_states(2, 0)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (1.0, r"state is a float: expected dims \(batch, oscillators=2, phase=position,velocity\), e.g. from random"),
        (STATE.phase[0], "state has shape .*trajectory.*: expected dims"),
        (Oscillators(3).random_states(2, 0), "state has shape .*oscillators.*=3.*: expected dims"),
        (wrap(torch.zeros(2, 2), instance("oscillators"), channel(phase="v,x")), "state has shape .*v,x.*: expected"),
        (math.to_int32(STATE), "state has type int32: expected real numbers; use math.to_float"),
    ],
)
def test_wrong_states(state: Any, message: str) -> None:
    for use in (lambda: Oscillators().step(state, 0.0), lambda: Oscillators().controlled(state, controls(2))):
        with pytest.raises(ph.StateError, match=message):
            use()
