"""Rules on the published Burgers reconstruction against dense algebra on plain PhiFlow, and the demo around it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import reconstruct_burgers as demo
import torch
from phi.torch.flow import Field, math

import phi_hybrid as ph
from phi_hybrid.bridge import flatten
from phi_hybrid.optim import GaussNewton, HalfInverse

torch.set_num_threads(1)
STEPS = 4


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with math.precision(64):
        yield


def after(u: Field, steps: int) -> Field:
    """Plain PhiFlow."""
    for _ in range(steps):
        u = demo.step(u)
    return u


def vector(u: Field) -> torch.Tensor:
    return u.values.native("x,vector")[:, 0]


def jacobian(u: Field) -> torch.Tensor:
    """∂P⁴(u)/∂u of plain PhiFlow by autograd."""
    x = vector(u).detach().clone().requires_grad_()
    y = vector(after(u.with_values(math.wrap(x[:, None], u.values.shape)), STEPS))
    return torch.autograd.grad(y, x, torch.eye(len(x), dtype=x.dtype), is_grads_batched=True)[0]


@pytest.mark.parametrize("rule, lr", [(GaussNewton(0.3), 0.3), (GaussNewton(1.0), 1.0), (HalfInverse(0.5, 1e-3), 0.3)])
def test_first_ten_iterations_are_those_of_dense_algebra(rule: GaussNewton | HalfInverse, lr: float) -> None:
    """Δx = (JᵀJ + λ²)⁻¹ Jᵀ e, or (JᵀJ)^(−3/4) Jᵀ e, from eigenvalues of JᵀJ; nothing but PhiFlow and NumPy."""
    goal, u = after(demo.sine(), STEPS), 0.5 * demo.sine()
    start, path, losses = u, [vector(u)], []
    for _ in range(10):
        error = vector(goal - after(u, STEPS)).numpy()
        losses.append(0.5 * float(error @ error))
        matrix = jacobian(u).numpy()
        squares, modes = np.linalg.eigh(matrix.T @ matrix)
        half = np.where(squares > 1e-6 * squares[-1], squares, np.inf) ** (-0.75)
        weights = half if isinstance(rule, HalfInverse) else 1 / (squares + rule.damping**2)
        dx = modes @ (weights * (modes.T @ (matrix.T @ error)))
        u = u.with_values(u.values + lr * math.wrap(torch.from_numpy(dx)[:, None], u.values.shape))
        path.append(vector(u))
    result = ph.reconstruct(demo.BLOCK, goal, start, times=(STEPS,), rule=rule, lr=lr, iterations=10, keep_path=True)
    assert result.losses[:10] == pytest.approx(losses, rel=1e-8)
    found = flatten(result.path)[0][0][..., 0]
    assert torch.allclose(found, torch.stack(path), rtol=0, atol=1e-8)
    assert result.losses[10] < 0.05 * result.losses[0]


def test_jacobian_by_hand_is_that_of_finite_differences() -> None:
    u = 0.5 * demo.sine()
    matrix = jacobian(u)
    direction = torch.sin(torch.arange(demo.CELLS, dtype=torch.float64))
    shift = u.with_values(1e-6 * math.wrap(direction[:, None], u.values.shape))
    slope = (vector(after(u + shift, STEPS)) - vector(after(u - shift, STEPS))) / 2e-6
    assert (matrix @ direction - slope).norm() < 1e-6 * slope.norm()


def test_an_inverse_simulator_works_before_the_shock_only() -> None:
    trajectory = ph.rollout(demo.BLOCK, demo.sine(), 16)
    errors = {
        steps: demo.search(trajectory.time[steps], (steps,), demo.searches(steps)["inverse simulator"], True).errors
        for steps in (8, 16)
    }
    assert errors[8][4, 0] < 0.02 and errors[16].min() > 0.5


def test_all_searches_reduce_the_loss_and_are_measured() -> None:
    observed = ph.rollout(demo.BLOCK, demo.sine(), 8).time[8]
    for name, wanted in demo.searches(8).items():
        wanted = demo.Search(4, wanted.settings)
        found = demo.search(observed, (8,), wanted, quick=False)
        assert found.losses.shape == (5,) and found.errors.shape == (5, 1), name
        assert found.losses[0] == pytest.approx(float(vector(observed).square().mean())) and found.errors[0, 0] == 1
        assert found.losses[-1] < 0.8 * found.losses[0] and found.errors[-1, 0] < 0.95, name
        last = vector(found.result.state - demo.sine()).norm() / vector(demo.sine()).norm()
        assert found.errors[-1, 0] == pytest.approx(float(last))


@pytest.mark.slow
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", "--quick", "--out", str(tmp_path)])
    demo.main()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["step 8: half-inverse, lr 0.3"]["loss"] < 0.1 * metrics["source"]["loss"]
    assert {p.stem for p in tmp_path.glob("*.png")} == {"curves", "states", "landscape"}
