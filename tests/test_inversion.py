"""The demos of physical gradients: tasks that can be solved, and what each entrant wants."""

from __future__ import annotations

from types import ModuleType

import pg_heat
import pg_poisson
import pytest
import torch
from inversion import errors, physical_gradient, plain_gradient, supervised, train

torch.set_num_threads(1)


@pytest.fixture(params=[pg_heat, pg_poisson], ids=["heat", "poisson"])
def demo(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name, value in {"CELLS": 16, "SAMPLES": 24, "HELD_OUT": 8}.items():
        monkeypatch.setattr(request.param, name, value)
    return request.param


def test_what_the_entrants_want(demo: ModuleType) -> None:
    """Of a guess x: the adjoint of the error, the error of x as far as y shows it, and the error of x."""
    task = demo.make_task(0)
    truth = task.truth[:2]
    guess = (0.5 * truth).requires_grad_()
    seen, found = task.physics(truth), task.physics(guess)
    wanted = {c: c(task, seen, truth).update(guess).update for c in (plain_gradient, physical_gradient, supervised)}
    (adjoint,) = torch.autograd.grad(((found - seen) ** 2).sum() / 2, guess)
    torch.testing.assert_close(wanted[plain_gradient], -adjoint)
    torch.testing.assert_close(wanted[supervised], truth - guess.detach())
    torch.testing.assert_close(task.physics(wanted[physical_gradient]), (seen - found).detach(), rtol=0, atol=1e-4)
    if demo is pg_poisson:  # nothing is lost there
        torch.testing.assert_close(wanted[physical_gradient], truth - guess.detach(), rtol=0, atol=1e-9)


def test_training_reduces_the_errors(demo: ModuleType) -> None:
    task = demo.make_task(0)
    before = errors(task, task.observed)
    history = train(task, demo.ENTRANTS["pg"], 8, 2.0, 0)
    assert history["x"][0] == before["x"] and history["x"][-1] < before["x"]
    assert history["updates"][-1] > 3
