"""Adaptive damping by hand; state."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from cases.hig import Task, relative, update_by_hand

import phi_hybrid as ph
from phi_hybrid.optim import HIG, Closure, LevenbergMarquardt

torch.set_num_threads(1)


def test_updates_by_hand() -> None:
    """Steps that are accepted and steps that are taken back, with dense linear algebra."""
    task, by_hand = Task(4), Task(4)
    optimizer, damping, taken_back = LevenbergMarquardt(task.net, 1.0, damping=0.02, factor=3.0), 0.02, 0
    for _ in range(12):
        before = by_hand.weights().copy()
        loss = float(by_hand.loss(by_hand.outputs()))
        change = update_by_hand(by_hand, 1.0, 0.0, scale=0.5, damping=damping)
        set_weights(by_hand, before + change)
        if float(by_hand.loss(by_hand.outputs())) < loss:
            damping /= 3
        else:
            damping, taken_back = damping * 3, taken_back + 1
            set_weights(by_hand, before)
        assert float(optimizer.step(task.closure)) == pytest.approx(loss, rel=1e-6)
        assert optimizer.damping == pytest.approx(damping)
    assert 0 < taken_back < 12
    assert relative(task.weights(), by_hand.weights()) < 1e-6


def test_a_step_into_the_blue_is_taken_back() -> None:
    """Physics that give no number there, and physics that raise."""
    for error in (None, ph.NonFiniteError("no state", 0)):
        x, moved = torch.nn.Parameter(torch.tensor([[1.0]])), []
        module = torch.nn.ParameterList([x])

        def outputs(error: Exception | None = error, x: torch.Tensor = x, moved: list = moved) -> torch.Tensor:
            moved.append(float(x))
            if error is not None and float(x) < 0:
                raise error
            return torch.log(x)

        optimizer = LevenbergMarquardt(module, damping=1e-3)
        optimizer.step(Closure(outputs, lambda y: (y + 5).square().mean()))
        assert moved[-1] < 0 and float(x) == 1.0 and optimizer.damping == 2e-3


def test_state_is_saved_and_continued() -> None:
    task, other = Task(), Task()
    optimizer = LevenbergMarquardt(task.net, damping=0.1)
    for _ in range(3):
        optimizer.step(task.closure)
    state = copy.deepcopy((optimizer.state_dict(), task.net.state_dict()))
    resumed = LevenbergMarquardt(other.net, damping=7.0)
    resumed.load_state_dict(state[0])
    other.net.load_state_dict(state[1])
    for _ in range(3):
        optimizer.step(task.closure)
        resumed.step(other.closure)
    assert np.array_equal(task.weights(), other.weights()) and resumed.damping == optimizer.damping


def test_wrong_settings() -> None:
    for settings, message in (
        ({"damping": 0.0}, "damping = 0.0"),
        ({"factor": 1.0}, "factor = 1.0"),
        ({"lr": -1}, "lr"),
    ):
        with pytest.raises(ph.StateError, match=message):
            LevenbergMarquardt(Task().net, **settings)


def set_weights(task: Task, weights: np.ndarray) -> None:
    torch.nn.utils.vector_to_parameters(torch.as_tensor(weights), task.net.parameters())


def test_at_a_minimum_the_damping_stays_finite() -> None:
    task = Task(2)
    task.target = task.outputs().detach()
    optimizer = LevenbergMarquardt(task.net, damping=1e11, factor=10.0)
    for _ in range(5):
        optimizer.step(task.closure)
    assert optimizer.damping == 1e12


def test_reaches_the_minimum_where_gauss_newton_diverges() -> None:
    """y = arctan θ from θ = 2: the full step grows without bounds."""
    thetas = [
        torch.nn.ParameterList([torch.nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))]) for _ in range(2)
    ]
    closures = [Closure(lambda net=net: torch.atan(net[0]), lambda y: y.square().mean()) for net in thetas]
    full, damped = HIG(thetas[0], 0.5, 1.0), LevenbergMarquardt(thetas[1], 0.5, damping=1.0)
    for _ in range(6):
        full.step(closures[0])
    for _ in range(40):
        damped.step(closures[1])
    assert abs(float(thetas[0][0])) > 2 and abs(float(thetas[1][0])) < 1e-3
