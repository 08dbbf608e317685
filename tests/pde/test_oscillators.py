"""Oscillator chains against matrix exponentials, an ODE solver, the textbook's Runge–Kutta method and energy balances."""

from __future__ import annotations

import math as pymath
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases.derivatives import check_derivatives, check_vmap
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


def controls(steps: int, trajectories: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return wrap(noise(steps, trajectories, seed=7, dtype=dtype), batch("time,trajectory"))


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
    result = solve_ivp(
        lambda _, z: derivative(chain, z.reshape(y.shape), u).ravel(),
        (0, time),
        y.ravel(),
        "DOP853",
        rtol=1e-12,
        atol=1e-13,
    )
    return result.y[:, -1].reshape(y.shape)


def test_set_ups_of_the_book_and_the_paper() -> None:
    linear, nonlinear = Oscillators(), nonlinear_oscillators()
    assert (linear.count, linear.coupling, linear.cubic, linear.gain, linear.dt, linear.steps) == (
        2,
        0.2,
        0,
        1,
        0.5,
        24,
    )
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
        after, step = start, ph.capture(replace(chain, dt=1 / n).step, check=False)
        for u in given:
            after = ph.rollout(step, after, n, u).time[-1]
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
    step = ph.capture(chain.step, check=False)
    after = ph.rollout(step, start, 256, u).time[-1].numpy(ORDER)[0]
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-10)


# --- energy ---


@pytest.mark.parametrize("name", CHAINS)
def test_exact_free_motion_conserves_energy_and_the_control_does_work(name: str) -> None:
    chain = CHAINS[name]
    start = chain.random_states(1, seed=0)
    y = start.numpy(ORDER)[0]

    def energy(values: np.ndarray) -> float:
        return float(chain.energy(wrap(torch.tensor(values), *start.shape.non_batch)))

    assert energy(exact(chain, y, 0.0, 12.0)) == pytest.approx(energy(y), rel=1e-10)
    u, dt = 0.8, 1e-5
    gained = (energy(exact(chain, y, u, dt)) - energy(exact(chain, y, u, -dt))) / (2 * dt)
    assert gained == pytest.approx(chain.gain * u * y[-1, 1], rel=1e-6)


@pytest.mark.parametrize("name", CHAINS)
def test_free_chains_lose_energy_with_the_fifth_power_of_the_step(name: str) -> None:
    """As the Runge–Kutta method does on oscillators: 1 − |R(iω dt)|² ≈ (ω dt)⁶/72 per step. Measured: 4.4 … 5.0."""
    start, losses = CHAINS[name].random_states(3, seed=0), []
    for n in (20, 40):
        chain = replace(CHAINS[name], dt=1 / n)
        after = ph.rollout(ph.capture(chain.step, check=False), start, 4 * n, 0.0)
        losses.append(float(math.max(abs(chain.energy(after.time[-1]) / chain.energy(start) - 1), "trajectory")))
    assert losses[0] < 1e-5 and 4 < pymath.log2(losses[0] / losses[1]) < 5.5, losses
    if name == "one":
        assert losses[0] == pytest.approx(4 * (1 / 20) ** 5 / 72, rel=0.01)


# --- sequences, captured ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CHAINS)
def test_controlled_rollout_and_repeated_steps_agree_captured_or_not(name: str, dtype: torch.dtype) -> None:
    chain = CHAINS[name]
    with math.precision(64 if dtype == torch.float64 else 32):
        start, u = chain.random_states(3, 0), controls(6, dtype=dtype)
        expected = start
        for n in range(6):
            expected = chain.step(expected, u.time[n])
        assert expected.native(ORDER).dtype == dtype
        step = ph.capture(chain.step)
        assert not list(step.parameters())
        for f in (chain.step, step):
            assert same(ph.rollout(f, start, 6, u).time[-1], expected)
        for f in (chain.controlled, ph.capture(chain.controlled)):
            assert same(f(start, u), expected)


def test_values_keep_their_precision_whatever_the_global_one_is() -> None:
    chain, u = CHAINS["linear"], controls(2)
    start = chain.random_states(3, seed=0)
    with math.precision(32):
        found = [chain.controlled(start, u), ph.capture(chain.controlled)(start, u), chain.step(start, 0.5)]
    assert same(found[0], found[1]) and [f.dtype.precision for f in found] == [64, 64, 64]


def test_batch_dims_of_state_and_control_are_combined() -> None:
    chain = CHAINS["nonlinear"]
    start, u = chain.random_states(2, seed=0), wrap(noise(4, 3, dtype=torch.float64), batch("time,candidate"))
    found = ph.capture(chain.controlled)(start, u)
    assert set(found.shape.batch.names) == {"trajectory", "candidate"}
    for i in range(2):
        for j in range(3):
            alone = chain.controlled(start.trajectory[i], u.candidate[j])
            torch.testing.assert_close(
                found.trajectory[i].candidate[j].native("oscillators,phase"),
                alone.native("oscillators,phase"),
                rtol=0,
                atol=1e-14,
            )
    everywhere = ph.rollout(ph.capture(chain.step), start.trajectory[0], 4, u)
    assert everywhere.shape.get_size("candidate") == 3


def test_blocks_travel_with_their_steps() -> None:
    chain = CHAINS["both"]
    block = pickle.loads(pickle.dumps(ph.capture(chain.step, chain.random_states(3, seed=0), 0.5)))
    for trajectories in (3, 5):  # a new signature as well
        start = chain.random_states(trajectories, seed=0)
        assert same(block(start, 0.5), chain.step(start, 0.5))


# --- derivatives ---


@pytest.mark.parametrize("name", CHAINS)
def test_derivatives(name: str) -> None:
    chain = CHAINS[name]
    start, u = chain.random_states(2, seed=0), controls(2, 2)
    block = ph.capture(chain.controlled)
    tensors = block.flatten(start, u)
    check_derivatives(block.native, tensors, second=name != "both")
    check_vmap(block.native, tensors)


def test_trajectories_do_not_feel_each_other() -> None:
    chain = CHAINS["nonlinear"]
    block = ph.capture(chain.controlled)
    start, u = block.flatten(chain.random_states(3, seed=0), controls(5))
    jacobian = torch.func.jacrev(lambda c: block.native(start, c)[0])(
        u
    )  # (trajectory, oscillators, phase, time, trajectory)
    for i in range(3):
        for j in range(3):
            assert (jacobian[i, ..., j].abs().max() > 0.01) if i == j else not jacobian[i, ..., j].any()


def test_controls_found_with_the_jacobian_bring_the_linear_chain_back() -> None:
    """The task of the book: the state depends linearly on the controls, so that least squares solves it at once."""
    chain = Oscillators()
    block = ph.capture(chain.controlled, check=False)
    start, free = block.flatten(
        chain.random_states(1, seed=0), wrap(torch.zeros(24, 1).double(), batch("time,trajectory"))
    )
    jacobian = torch.func.jacrev(lambda c: block.native(start, c)[0].flatten())(free)[..., 0]
    missing = (start - block.native(start, free)[0]).flatten()
    assert missing.norm() > 0.1
    found = torch.linalg.lstsq(jacobian, missing, driver="gelsd").solution[:, None]
    torch.testing.assert_close(block.native(start, found)[0], start, rtol=0, atol=1e-12)


# --- states and wrong arguments ---


def test_random_states() -> None:
    chain = CHAINS["both"]
    states = chain.random_states(200, seed=3)
    values = states.numpy(ORDER)
    assert values.shape == (200, 4, 2) and values.dtype == np.float64 and STATE.dtype.precision == 32
    assert 0 <= values.min() and values.max() < 1
    np.testing.assert_allclose(values.mean(0), 0.5, atol=0.1)
    assert same(states, chain.random_states(200, 3)) and not same(states, chain.random_states(200, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(count=0), "count = 0: expected an integer of at least 1"),
        (dict(count=2.0), "count = 2.0: expected an integer"),
        (dict(steps=0), "steps = 0: expected an integer"),
        (dict(coupling=pymath.nan), "coupling = nan: expected a finite number"),
        (dict(cubic="1"), "cubic = '1': expected a finite number"),
        (dict(gain=pymath.inf), "gain = inf: expected a finite number"),
        (dict(dt=0.0), "dt = 0.0: expected a finite number other than 0; a negative one runs backwards"),
    ],
)
def test_wrong_chains(arguments: dict, message: str) -> None:
    with pytest.raises(ph.StateError, match=message):
        Oscillators(**arguments)


STATE = Oscillators().random_states(2, 0)  # in single precision


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
    chain = Oscillators()
    for use in (
        lambda: chain.step(state, 0.0),
        lambda: chain.controlled(state, controls(2)),
        lambda: chain.energy(state),
    ):
        with pytest.raises(ph.StateError, match=message):
            use()


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ([1.0], r"control is a list: expected one value per batch entry, \(batch\), or a number; use wrap"),
        (
            controls(4, 2, torch.float32),
            r"control has shape .*time.* takes the control of one time.*controlled.*or ph.rollout",
        ),
        (wrap(torch.ones(2) * 1j, batch("trajectory")), "control has type complex.*: expected real numbers"),
        (wrap([1.0, 2.0], channel("u")), "control has shape .*u.*: expected one value .*make its dims batch dims"),
    ],
)
def test_wrong_controls(control: Any, message: str) -> None:
    for step in (Oscillators().step, ph.capture(Oscillators().step)):
        with pytest.raises(ph.StateError, match=message):
            step(STATE, control)


def test_wrong_sequences() -> None:
    chain = Oscillators()
    with pytest.raises(
        ph.StateError, match=r"control has shape .*trajectory.*: expected one value per step and batch.*step\("
    ):
        chain.controlled(STATE, controls(4).time[0])
    with pytest.raises(ph.StateError, match=r"the state has shape .*time.* pick a frame, e.g. state.time\[0\]"):
        chain.controlled(math.expand(STATE, batch(time=3)), controls(4, 2))
    with pytest.raises(ph.StateError, match="4 entries along 'time' but 5 steps"):
        ph.rollout(chain.step, STATE, 5, controls(4, 2, torch.float32))
