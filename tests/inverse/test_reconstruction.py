"""Inverse problems against loops by hand in plain PhiFlow, and a published reconstruction."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from cases import small
from cases.small import SmallNet, faces, forced_step, line, noise
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
from phi_hybrid import optim
from phi_hybrid.bridge import flatten
from phi_hybrid.inverse.reconstruction import reconstruct
from phi_hybrid.optim import GaussNewton, mean_square

CELLS, STEPS = 128, 16


def step(u: Field) -> Field:
    """Diffusion, then advection: dt = 1/32, ν = 0.01/(N·π) (Thuerey et al., Physics-based Deep Learning)."""
    u = diffuse.explicit(u, 0.01 / (CELLS * np.pi), 1 / 32)
    return advect.semi_lagrangian(u, u, 1 / 32)


def sine(cells: int = CELLS) -> Field:
    x = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 - 1
    with math.precision(64):
        values = wrap(-torch.sin(np.pi * x)[:, None], spatial("x"), channel(vector="x"))
        return CenteredGrid(values, PERIODIC, bounds=Box(x=(-1, 1)))


BLOCK = ph.capture(step)
TRAJECTORY = ph.rollout(BLOCK, sine(), STEPS)


def zero(u: Field) -> Field:
    return u.with_values(math.zeros_like(u.values))


def after(u: Field, steps: int) -> Field:
    for _ in range(steps):
        u = step(u)
    return u


def natives(state: Any) -> torch.Tensor:
    return torch.cat([t.reshape(-1) for t in flatten(state)[0]])


def agree(found: Any, expected: Any, tolerance: float = 1e-12) -> bool:
    a, b = (v if isinstance(v, torch.Tensor) else natives(v) for v in (found, expected))
    return float((a - b).norm()) <= tolerance * float(b.norm())


@functools.lru_cache
def by_hand(times: tuple[int, ...], lr: float, iterations: int) -> tuple[list[float], list[Field]]:
    """Gradient descent in plain PhiFlow, on the mean square over all times together."""

    def loss(u: Field) -> math.Tensor:
        return sum(field.l2_loss(after(u, t) - TRAJECTORY.time[t]) for t in times) * 2 / (CELLS * len(times))

    u, losses, path = zero(sine()), [], []
    with math.precision(64):
        slope = field.functional_gradient(loss, "u", get_output=True)
        for _ in range(iterations):
            value, gradient = slope(u)
            losses.append(float(value.native().detach()))
            path.append(u)
            u = u - lr * (gradient[0] if isinstance(gradient, (tuple, list)) else gradient)
    return losses, path


# --- the published Burgers reconstruction ---


@pytest.mark.parametrize(
    "physics, times, lr",
    [(BLOCK, (16,), 5.0), (step, (2, 5), 2.0)],
    ids=["captured", "plain, two times"],
)
def test_first_iterations_are_those_of_plain_phiflow(physics: Any, times: tuple[int, ...], lr: float) -> None:
    losses, path = by_hand(times, lr, 4)
    with math.precision(64):
        observation = TRAJECTORY.time[list(times)] if len(times) > 1 else TRAJECTORY.time[times[0]]
    result = reconstruct(
        physics, observation, zero(sine()), times=times, loss=mean_square, lr=lr, iterations=3, keep_path=True
    )
    assert result.losses == pytest.approx(losses, rel=1e-12)
    assert all(agree(result.path.iteration[n], expected) for n, expected in enumerate(path))
    assert agree(result.state, path[-1]) and result.state.boundary == PERIODIC


def test_loss_falls_as_published() -> None:
    """Published: .38, .096, .033, .005; measured in single precision before: .402, .102, .035, .0054."""
    result = reconstruct(BLOCK, TRAJECTORY.time[16], zero(sine()), times=(16,), loss=mean_square, lr=5.0, iterations=40)
    assert len(result.losses) == 41 and result.path is None
    for n, expected in ((0, 0.402), (10, 0.102), (20, 0.0353), (40, 0.0054)):
        assert result.losses[n] == pytest.approx(expected, rel=0.01)
    assert all(a > b for a, b in zip(result.losses, result.losses[1:]))


# --- rules and optimizers ---


def short() -> tuple[ph.PhysicsBlock, Field, Field, Field]:
    """Two steps on few cells: block, truth, observation, start."""
    block, truth = ph.capture(small.step, check=False), line(cells=8, dtype=torch.float64)
    with math.precision(64):
        return block, truth, ph.rollout(block, truth, 2).time[2], truth * 0.9


@pytest.mark.smoke
def test_gauss_newton_is_that_of_dense_algebra() -> None:
    block, truth, observation, start = short()
    goal, x = natives(observation), natives(start).reshape(1, 8, 1)

    def physics(x: torch.Tensor) -> torch.Tensor:
        return block.native(*block.native(x[0]))[0].reshape(-1)

    block.flatten(start)
    losses = []
    for _ in range(10):
        jacobian = torch.autograd.functional.jacobian(physics, x).reshape(8, 8).numpy()
        error = (physics(x) - goal).numpy()
        losses.append(0.5 * float(error @ error))
        x = x - 0.5 * torch.from_numpy(np.linalg.solve(jacobian, error)).reshape(x.shape)
    result = reconstruct(block, observation, start, times=(2,), rule=GaussNewton(), lr=0.5, iterations=10)
    assert result.losses[:10] == pytest.approx(losses, rel=1e-8)
    assert agree(result.state, x.reshape(-1), 1e-8)
    assert result.losses[-1] < 1e-4 * result.losses[0]


@pytest.mark.parametrize("name", ["Adam", "LBFGS"])
def test_torch_optimizers(name: str) -> None:
    """The same iterates as by the optimizer alone, on autograd's gradient."""
    block, _, observation, start = short()
    maker = {
        "Adam": torch.optim.Adam,
        "LBFGS": functools.partial(torch.optim.LBFGS, line_search_fn="strong_wolfe"),
    }[name]
    goal, (tensor,) = natives(observation), block.flatten(start)
    x = tensor.clone().requires_grad_()
    search, losses = maker([x], lr=0.1), []

    def closure() -> torch.Tensor:
        search.zero_grad()
        loss = ((block.native(*block.native(x))[0].reshape(-1) - goal) ** 2).sum() / 2
        loss.backward()
        return loss

    for _ in range(10):
        losses.append(float(search.step(closure).detach()))
    result = reconstruct(block, observation, start, times=(2,), optimizer=maker, lr=0.1, iterations=10)
    assert result.losses[:10] == pytest.approx(losses, rel=1e-9, abs=1e-12)
    assert agree(result.state, x.detach().reshape(-1), 1e-9)


# --- kinds of physics, batches ---


def test_several_batch_dims_are_samples_too() -> None:
    """Losses are means over all of them, and every one has its own trust region, as if reconstructed alone."""
    block, _, observation, start = short()
    with math.precision(64):
        factors = wrap(torch.tensor([[1.0, 0.5, -1.0], [2.0, 0.1, -3.0]], dtype=torch.float64), batch("a,b"))
        several = observation.with_values(observation.values * factors)
        guesses = start.with_values(math.stack([start.values, zero(start).values], batch("guess")))
    settings = dict(times=(2,), rule=optim.TrustRegion(GaussNewton(), 0.3), iterations=3, keep_path=True)
    together = reconstruct(block, several, start, **settings)
    singles = {(i, j): reconstruct(block, several.a[i].b[j], start, **settings) for i in range(2) for j in range(3)}
    assert together.losses == pytest.approx(np.mean([s.losses for s in singles.values()], 0))
    for (i, j), single in singles.items():
        assert agree(together.state.a[i].b[j], single.state)
        assert agree(together.path.a[i].b[j], single.path)
    both, one = (reconstruct(block, o, guesses, **settings) for o in (several, several.a[1].b[2]))
    assert set(both.state.shape.batch.names) == {"a", "b", "guess"}
    assert agree(both.state.a[1].b[2], one.state)
    assert agree(one.state.guess[0], singles[1, 2].state)
    assert agree(one.state.guess[1], reconstruct(block, several.a[1].b[2], zero(start), **settings).state)


def test_an_observation_of_another_kind_than_the_state() -> None:
    """Velocity and marker are unknown; what is seen is the marker after two steps. PhiFlow's own gradient by hand."""
    state = {"u": faces("closed", 0, torch.float64), "c": line_of_markers()}

    def physics(state: dict) -> Field:
        c = state["c"]
        for _ in range(2):
            c = advect.semi_lagrangian(c, state["u"], 0.2)
        return c

    with math.precision(64):
        truth = {"u": faces("closed", 5, torch.float64), "c": state["c"]}
        seen = physics(truth)
        slope = math.gradient(lambda u, c: field.l2_loss(physics({"u": u, "c": c}) - seen), "u,c", get_output=True)
        u, c, losses = state["u"], state["c"], []
        for _ in range(5):
            value, (du, dc) = slope(u, c)
            losses.append(float(value.native().detach()))
            u, c = u - 0.1 * du, c - 0.1 * dc
    result = reconstruct(ph.capture(physics), seen, state, lr=0.1, iterations=5)
    assert result.losses[:5] == pytest.approx(losses, rel=1e-10)
    assert agree(result.state["u"], u, 1e-10) and agree(result.state["c"], c, 1e-10)
    assert result.losses[-1] < 0.9 * result.losses[0]


def line_of_markers() -> Field:
    values = noise(6, 5, seed=3, dtype=torch.float64)
    with math.precision(64):
        return CenteredGrid(wrap(values, spatial("x,y")), 0, bounds=Box(x=2.0, y=1.5))


def test_a_hybrid_solver_with_a_force_that_changes_with_time() -> None:
    """The network takes part, is not trained, and keeps its mode; the loop by hand uses autograd."""
    steps, u = 3, faces("closed", 0, torch.float64, b=2)
    force, truth = (
        faces("closed", 1, torch.float64, b=2, time=steps),
        faces("closed", 2, torch.float64, b=2),
    )
    solver = ph.HybridSolver(ph.capture(forced_step), SmallNet(4, 2, 2, gain=2.0).double(), ph.Additive()).train()
    with math.precision(64):
        trajectory = ph.rollout(solver, truth, steps, force)
        result = reconstruct(solver, trajectory.time[[1, 3]], u, force, times=(1, 3), lr=0.2, iterations=5)
        solver.eval()
        x = [t.clone().requires_grad_() for t in flatten(u)[0]]
        losses = []
        for _ in range(5):
            solver.flatten(u, force.time[0])
            state, loss = x, 0
            for n in range(steps):
                state = solver.native(*state, *flatten(force.time[n])[0])
                if n + 1 in (1, 3):
                    goal = flatten(trajectory.time[n + 1])[0]
                    loss = loss + sum(((a - b) ** 2).sum() for a, b in zip(state, goal)) / 2
            gradients = torch.autograd.grad(loss, x)
            losses.append(float(loss.detach()) / 2)
            x = [(t - 0.2 * g).detach().requires_grad_() for t, g in zip(x, gradients)]
    assert result.losses[:5] == pytest.approx(losses, rel=1e-10)
    assert agree(result.state, torch.cat([t.detach().reshape(-1) for t in x]), 1e-10)
    assert all(p.grad is None for p in solver.parameters())


def test_no_iterations_are_the_start() -> None:
    block, _, observation, start = short()
    result = reconstruct(block, observation, start, times=(2,), iterations=0, keep_path=True)
    assert agree(result.state, start) and len(result.losses) == 1
    assert result.path.shape.get_size("iteration") == 1


def test_what_is_not_finite_has_an_iteration_and_what_was_found_before() -> None:
    with math.precision(64):
        start = line(cells=8, dtype=torch.float64)
        block = ph.capture(lambda u: u * u * u)
        with pytest.raises(ph.NonFiniteError, match=r"iteration \d+ of 20: .* smaller lr") as caught:
            reconstruct(block, zero(start), start, lr=1e3, iterations=20, keep_path=True)
        so_far = caught.value.trajectory
        assert len(so_far.losses) == caught.value.step - 1 > 0
        assert so_far.path.shape.get_size("iteration") == caught.value.step
        with pytest.raises(ph.NonFiniteError, match="inf"):
            reconstruct(block, zero(start), start, lr=1e60, iterations=1)


def test_rules_that_fail_have_an_iteration() -> None:
    block, _, observation, start = short()
    with pytest.raises(ph.SolveError, match="iteration 1 of 3: .*GaussNewtonCG") as caught:
        rule = optim.GaussNewtonCG(tolerance=1e-12, iterations=1)
        reconstruct(block, observation, start, times=(2,), rule=rule, iterations=3)
    assert caught.value.step == 1 and agree(caught.value.trajectory.state, start)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"iterations": -1}, "iterations = -1"),
        ({"times": ()}, r"times = \(\)"),
        ({"times": (2, 1)}, r"times = \(2, 1\)"),
        ({"times": (0,)}, r"times = \(0,\)"),
        ({"times": (1, 2)}, "'time'.* 2"),
    ],
)
def test_settings_that_do_not_fit(change: dict, message: str) -> None:
    block, _, observation, start = short()
    with pytest.raises(ph.StateError, match=message):
        reconstruct(block, observation, start, **{"times": (2,), **change})


def test_observations_that_do_not_fit() -> None:
    block, truth, observation, start = short()
    with pytest.raises(ph.StateError, match="3 entries.* 2 "):
        reconstruct(block, ph.rollout(block, truth, 2), start, times=(1, 2))
    with pytest.raises(ph.StateError, match="boundary"):
        reconstruct(block, observation.with_boundary(0), start, times=(2,))
    with pytest.raises(ph.StateError, match="repeated"):
        reconstruct(ph.capture(lambda u: u.values), observation.values, start, times=(2,))


def test_numbers_that_are_none() -> None:
    """Found before the search, whatever the iterations, since neither lr nor the rule could mend them."""
    block, _, observation, start = short()
    for iterations in (0, 2):
        with pytest.raises(ph.NonFiniteError, match="x0 holds 8 ") as caught:
            reconstruct(block, observation, start * float("nan"), times=(2,), iterations=iterations)
        assert caught.value.step == 0
        with pytest.raises(ph.NonFiniteError, match="observation holds 8 "):
            reconstruct(block, observation * float("inf"), start, times=(2,), iterations=iterations)


def test_arguments_that_do_not_fit_each_other() -> None:
    block = ph.capture(forced_step)
    u, force, goal = line(0, b=2), line(1), line(2, b=3)
    for x0, observation, *inputs in ((u, goal, force), (u, line(2), line(1, b=3)), (line(0), goal, line(1, b=2))):
        with pytest.raises(ph.StateError, match="'b' has sizes . and ."):
            reconstruct(block, observation, x0, *inputs)
    with pytest.raises(ph.StateError, match="torch.float32, torch.float64"):
        reconstruct(block, line(2), line(0), line(1, dtype=torch.float64))
    with pytest.raises(ph.StateError, match="'b'"):
        reconstruct(block, line(2), line(0, b=2).b[2:], force)
    with pytest.raises(ph.StateError, match="x0.*torch.int64"):
        reconstruct(lambda u: 2 * u, wrap([1.0, 2.0], spatial("x")), wrap([1, 2], spatial("x")))


def test_a_search_that_diverges_says_so() -> None:
    u = line(0, trajectory=2)
    with pytest.warns(RuntimeWarning, match="the loss rose from .* to .*: the search diverges; take a smaller lr"):
        ph.reconstruct(ph.capture(lambda v: 0.9 * v), 0.9 * u, 0 * u, lr=5.0, iterations=4)
