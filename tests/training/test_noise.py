"""Statistics of injected noise, what it is added to, and that there is none without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cases.chains import agree, force_at, make_data, make_solver, squares, step_by_hand, target_at, windows
from cases.small import DT, SmallNet, equal, faces, forced_step, line, native_of, noise
from phi.torch.flow import Field, Solve, field, fluid, math

import phi_hybrid as ph
from phi_hybrid.data import Batch, DataLayout
from phi_hybrid.training.noise import Noise, Ramp

NO_INPUTS = ph.bridge.flatten(())[1]
SIZES = (3.0, 0.02)
"""Standard deviation of the two state tensors."""


def many(count: int = 2000, dtype: torch.dtype = torch.float64) -> Batch:
    """Windows of two fields of very different size."""
    layout = ph.bridge.flatten((line(0), line(1)))[1]
    states = tuple(s * noise(count, 2, 8, 1, seed=n, dtype=dtype) for n, s in enumerate(SIZES))
    return ph.Trajectories(states, (), layout, NO_INPUTS).whole()


def batch_of(states: Sequence[torch.Tensor], layout: Any, scale: tuple[float, ...] | None = None) -> Batch:
    return Batch(tuple(states), (), DataLayout(layout, NO_INPUTS), scale or (1.0,) * len(states))


def seeded(noise: Noise, batch: Batch, seed: int = 0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    return noise.draw(batch)


def is_normal(e: torch.Tensor, sigma: float) -> None:
    """Mean, deviation and tails of 16000 independent numbers, each within four of its standard errors."""
    root = e.numel() ** 0.5
    assert abs(float(e.mean())) < 4 * sigma / root
    assert float(e.std()) == pytest.approx(sigma, rel=4 / (2**0.5 * root))
    assert float((e.abs() > 2 * sigma).double().mean()) == pytest.approx(0.0455, abs=4 * 0.0455**0.5 / root)


# --- statistics ---


@pytest.mark.parametrize("relative", [True, False])
def test_normal_with_the_deviation_of_each_component(relative: bool) -> None:
    b = many()
    for e, size, u in zip(seeded(Noise(0.3, relative=relative), b), SIZES, b.initial):
        assert e.shape == u.shape and e.dtype == u.dtype
        is_normal(e, 0.3 * (size if relative else 1.0))


@pytest.mark.parametrize(("limit", "deviation"), [(1.0, 0.53960), (2.0, 0.87963)])
def test_truncated(limit: float, deviation: float) -> None:
    """The deviation of a truncated normal distribution is known."""
    for e, size in zip(seeded(Noise(0.3, truncated=limit), many()), SIZES):
        unit = e / (0.3 * size)
        assert 0.98 * limit < float(unit.abs().max()) <= limit * 1.01  # the data's own deviation is only near `size`
        assert float(unit.std()) == pytest.approx(deviation, rel=0.02)
        assert abs(float(unit.mean())) < 0.02


@pytest.mark.parametrize("limit", [None, 2.0])
def test_complex_noise(limit: float | None) -> None:
    """Independent real and imaginary parts, which share the variance; no modulus beyond the limit."""
    states = torch.complex(*(noise(2000, 2, 8, 1, seed=n, dtype=torch.float64) for n in range(2)))
    b = batch_of([states], ph.bridge.flatten((line(0),))[1], (3.0,))
    (e,) = seeded(Noise(0.1, truncated=limit), b)
    assert e.dtype == torch.complex128 and e.shape == states[:, 0].shape
    assert abs(correlation(e.real, e.imag)) < 4 / e.numel() ** 0.5
    if limit is None:
        is_normal(e.real, 0.3 / 2**0.5)
        is_normal(e.imag, 0.3 / 2**0.5)
    else:
        assert float(e.abs().max()) < limit * 0.3 and float(e.std()) == pytest.approx(0.87963 * 0.3, rel=0.02)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.ravel(), b.ravel()]))[0, 1])


def test_independence_of_components_points_trajectories_and_steps() -> None:
    torch.manual_seed(0)
    drawn = Noise(0.3, "every_step").draw_for(many(), 3)
    e, other = drawn[0]
    within = [(e, other), (e[:, 1:], e[:, :-1]), (e[1:], e[:-1])]
    pairs = [*within, (e, drawn[1][0]), (e, drawn[2][0]), (drawn[1][1], drawn[2][1])]
    assert all(abs(correlation(*pair)) < 4 / pair[0].numel() ** 0.5 for pair in pairs)


@pytest.mark.parametrize("entries", [2, 5])
def test_random_walk(entries: int) -> None:
    """σ·√(k/K) on entry k of K, σ on the newest; the increments are independent and alike."""
    states = [2.0 * noise(2000, 2, 8, 1, seed=n, dtype=torch.float64) for n in range(entries)]
    b = batch_of(states, ph.bridge.flatten((line(0),) * entries)[1])
    walk = seeded(Noise(0.3, random_walk=True, relative=False), b)
    for k, e in enumerate(walk, 1):
        is_normal(e, 0.3 * (k / entries) ** 0.5)
    increments = [walk[0], *(b - a for a, b in zip(walk, walk[1:]))]
    for n, e in enumerate(increments):
        is_normal(e, 0.3 / entries**0.5)
        assert all(abs(correlation(e, other)) < 4 / e.numel() ** 0.5 for other in increments[:n])


def test_random_walk_of_fields_with_several_tensors() -> None:
    """Each component of a staggered field continues its own one."""
    before, now = faces("closed", 0, torch.float64), faces("closed", 1, torch.float64)
    tensors, layout = ph.bridge.flatten((before, now))
    b = batch_of([t.expand(1500, 2, *t.shape).clone() for t in tensors], layout)
    x_before, y_before, x, y = seeded(Noise(0.3, random_walk=True), b)
    for older, newer in ((x_before, x), (y_before, y)):
        assert correlation(older, newer) == pytest.approx(0.5**0.5, abs=0.02)
        assert float(newer.std()) == pytest.approx(0.3, rel=0.02)


def solenoidal(v: Field) -> Field:
    return fluid.make_incompressible(v, solve=Solve("CG", 1e-10))[0]


@pytest.fixture(scope="module")
def closed() -> Batch:
    """Divergence-free states of two components of different deviation."""
    with math.precision(64):
        v = solenoidal(faces("closed", 0, torch.float64, cells={"x": 12, "y": 10}, b=6))
    states = [torch.stack([t, t], 1) for t in ph.bridge.flatten(v)[0]]
    return batch_of(states, ph.bridge.flatten(v.b[0])[1], (0.3, 0.1))


def test_projected_noise_is_free_of_divergence_and_as_large(closed: Batch) -> None:
    plain, projected = Noise(0.2), Noise(0.2, project=ph.capture(solenoidal))
    e, p = seeded(plain, closed), seeded(projected, closed)
    for number in range(len(e[0])):
        with math.precision(64):
            made, raw = (
                ph.bridge.unflatten(closed.state_layout, tuple(t[number] for t in tensors)) for tensors in (p, e)
            )
            largest = [float(abs(field.divergence(v)).values.max) for v in (made, raw)]
        assert largest[0] < 1e-6 * largest[1]
        squares = [
            sum(float(((t[number] / s) ** 2).sum()) for t, s in zip(tensors, closed.scale)) for tensors in (e, p)
        ]
        assert squares[1] == pytest.approx(squares[0], rel=1e-12)
    rms = [(sum(float(((t / s) ** 2).sum()) for t, s in zip(p, closed.scale)) / sum(t.numel() for t in p)) ** 0.5]
    assert rms[0] == pytest.approx(0.2, rel=4 / (2 * sum(t.numel() for t in p)) ** 0.5)


# --- what it is added to ---


@pytest.fixture(scope="module")
def data() -> ph.Trajectories:
    return make_data()


@pytest.fixture(scope="module")
def solver(data: ph.Trajectories) -> ph.HybridSolver:
    return make_solver(ph.capture(forced_step), data)


def training(objective: ph.Unrolled, solver: ph.HybridSolver, b: Batch, seed: int) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    loss = objective.loss(objective.outputs(solver, b), b)
    return [loss.detach(), *torch.autograd.grad(loss, list(solver.parameters()))]


@pytest.mark.parametrize("adjusted", [False, True])
@pytest.mark.parametrize("where", ["initial", "every_step"])
def test_loss_and_gradient_by_hand(where: Any, adjusted: bool, solver: ph.HybridSolver, data: ph.Trajectories) -> None:
    """Every input that is perturbed, in the order of steps and components; adjusted targets move with all noise so far."""
    steps, b = 3, windows(data, 3)
    objective = ph.Unrolled(steps, noise=Noise(0.2, where, "adjusted" if adjusted else "clean"))
    found = training(objective, solver, b, seed=5)
    torch.manual_seed(5)
    u, loss, moved = b.initial, 0.0, [torch.zeros_like(t) for t in b.initial]
    for n in range(steps):
        if n == 0 or where == "every_step":
            e = [0.2 * s * torch.randn(t.shape, dtype=t.dtype) for t, s in zip(u, data.scale)]
            u, moved = [t + d for t, d in zip(u, e)], [t + d for t, d in zip(moved, e)]
        u, _ = step_by_hand(solver, u, force_at(b, n))
        target = [t + d for t, d in zip(target_at(b, n), moved)] if adjusted else target_at(b, n)
        loss = loss + squares(u, target, b.scale) / steps
    assert agree(found, [loss.detach(), *torch.autograd.grad(loss, list(solver.parameters()))])


def test_noise_after_the_warm_up(solver: ph.HybridSolver, data: ph.Trajectories) -> None:
    """On the steps that count, and no more is drawn than these need."""
    b, u, loss = windows(data, 3), windows(data, 3).initial, 0.0
    found, drawn = training(ph.Unrolled(3, warm_up=1, noise=Noise(0.2, "every_step")), solver, b, 5), torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad():
        u, _ = step_by_hand(solver, u, force_at(b, 0))
    for n in (1, 2):
        u = [t + 0.2 * s * torch.randn(t.shape, dtype=t.dtype) for t, s in zip(u, data.scale)]
        u, _ = step_by_hand(solver, u, force_at(b, n))
        loss = loss + squares(u, target_at(b, n), b.scale) / 2
    assert agree(found, [loss.detach(), *torch.autograd.grad(loss, list(solver.parameters()))])
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize(("steps", "adjusted"), [(1, True), (3, False), (3, True)])
def test_random_walk_by_hand(steps: int, adjusted: bool) -> None:
    """States of two times: the older entry of the result is the newer one of the input, noise included."""

    def leapfrog(before: Field, now: Field) -> tuple[Field, Field]:
        return now, forced_step(now, before) * 0.9

    with math.precision(64):
        start = (line(0, dtype=torch.float64, b=3), line(1, dtype=torch.float64, b=3))
        data = ph.Trajectories.generate(lambda state: leapfrog(*state), start, 5, progress=False)
        physics = ph.capture(lambda state: leapfrog(*state))
        solver = ph.HybridSolver(physics, SmallNet(2, 2, 1).double())
        b = data.windows(steps).collate([data.windows(steps)[n] for n in range(3)])
        settings = dict(random_walk=True, target="adjusted" if adjusted else "clean")
        found = training(ph.Unrolled(steps, noise=Noise(0.2, **settings)), solver, b, seed=2)
        torch.manual_seed(2)
        first, second = (0.2 * s / 2**0.5 * torch.randn(t.shape, dtype=t.dtype) for t, s in zip(b.initial, b.scale))
        moved = (first, first + second)
        u, loss = [t + e for t, e in zip(b.initial, moved)], 0.0
        for n in range(steps):
            after = native_of(physics, *u)
            change = solver.network(torch.cat(after, -1).mT).mT
            u = (after[0] + change[..., :1], after[1] + change[..., 1:])
            moved = (moved[1], moved[1])
            target = [t + e for t, e in zip(target_at(b, n), moved)] if adjusted else target_at(b, n)
            loss = loss + squares(u, target, b.scale) / steps
    assert agree(found, [loss.detach(), *torch.autograd.grad(loss, list(solver.parameters()))])


def test_how_targets_of_a_history_move() -> None:
    """Every entry becomes the one before it; the newest continues itself, component by component."""
    history = Noise(0.1, random_walk=True)
    for state, noise_before, noise_after in (
        ((line(0),) * 3, "abc", "bcc"),
        ((faces("closed"),) * 2, "abcd", "cdcd"),
        ((faces("closed"),) * 3, "abcdef", "cdefef"),
    ):
        tensors, layout = ph.bridge.flatten(state)
        assert history.shift(tuple(noise_before), batch_of(tensors, layout)) == tuple(noise_after)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("where", ["initial", "every_step"])
def test_adjusted_targets_are_reached_by_a_step_that_keeps_differences(where: Any, steps: int) -> None:
    """uₙ₊₁ = uₙ + dt·f: the noise of its input is that of its output, so that there is nothing to learn."""

    def shift(u: Field, f: Field) -> Field:
        return u + DT * f

    with math.precision(64):
        f = line(1, dtype=torch.float64, b=3, time=4)
        data = ph.Trajectories.generate(shift, line(0, dtype=torch.float64, b=3), 4, (f,), progress=False)
    b, block = data.windows(steps).collate([data.windows(steps)[0], data.windows(steps)[1]]), ph.capture(shift)
    for target, none in (("adjusted", True), ("clean", False)):
        objective = ph.Unrolled(steps, noise=Noise(0.3, where, target))
        torch.manual_seed(0)
        assert (float(objective.loss(objective.outputs(block, b), b)) < 1e-28) == none


# --- no noise, seeds, schedules ---


@pytest.mark.parametrize(
    "quiet",
    [
        Noise(0),
        Noise(0.0, "every_step", "adjusted", truncated=2),
        Noise(0.0, project=solenoidal),
        Noise(0.0, random_walk=True),
        Noise(0.5, schedule=Ramp(1, 0, 100)).at(100),
    ],
    ids=["0", "every step", "projected", "random walk", "schedule"],
)
def test_zero_is_no_noise(quiet: Noise, solver: ph.HybridSolver, data: ph.Trajectories) -> None:
    """To the last bit, and no random numbers are used up."""
    b, state = windows(data, 3), torch.get_rng_state()
    outputs = ph.Unrolled(3, noise=quiet).outputs(solver, b)
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(outputs, ph.Unrolled(3).outputs(solver, b))
    found = [training(ph.Unrolled(3, noise=n), solver, b, seed=0) for n in (quiet, None)]
    assert equal(*found)


@pytest.mark.smoke
def test_seeds_decide() -> None:
    b, some = many(3), Noise(0.3, truncated=2)
    assert equal(seeded(some, b, 1), seeded(some, b, 1))
    assert not equal(seeded(some, b, 1), seeded(some, b, 2))
    first = seeded(some, b, 1)
    assert not equal(first, some.draw(b))


def test_the_batch_stays_as_it_is(solver: ph.HybridSolver, data: ph.Trajectories) -> None:
    b = windows(data, 3)
    before = [s.clone() for s in (*b.states, *b.inputs)]
    ph.Unrolled(3, noise=Noise(0.5, "every_step", "adjusted")).outputs(solver, b)
    assert equal((*b.states, *b.inputs), before)


def test_ramp() -> None:
    ramp = Ramp(1.0, 0.2, 10)
    assert [ramp(n) for n in (0, 5, 10, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert Ramp(1.0, 0.5, 0)(0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(sigma=-0.1), "sigma = -0.1"),
        (dict(sigma=float("nan")), "sigma = nan"),
        (dict(sigma=0.1, target="noisy"), "target = 'noisy'.*'clean'.*'adjusted'"),
        (dict(sigma=0.1, truncated=0), "truncated = 0"),
        (dict(sigma=0.1, random_walk=True, where="every_step"), "random_walk.*where='initial'"),
    ],
)
def test_values_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(ph.StateError, match=message):
        Noise(**settings)


@pytest.mark.parametrize("state", [lambda: line(0), lambda: (line(0), faces("closed")), lambda: (line(0),)])
def test_random_walk_needs_a_history(state: Any) -> None:
    tensors, layout = ph.bridge.flatten(state())
    b = batch_of([t.expand(2, 2, *t.shape) for t in tensors], layout)
    with pytest.raises(ph.StateError, match="random_walk"):
        Noise(0.1, random_walk=True).draw(b)


def test_schedule_that_becomes_negative() -> None:
    with pytest.raises(ph.StateError, match="schedule = -1.0 at update 20"):
        Noise(0.1, schedule=lambda update: 1 - update / 10).at(20)
