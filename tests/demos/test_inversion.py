"""The demos of physical gradients: tasks that can be solved, and what each entrant wants."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pg_heat
import pg_poisson
import pytest
import torch
from inversion import (
    break_even,
    cosine,
    distance_to,
    errors,
    loss_of,
    physical_gradient,
    plain_gradient,
    supervised,
    train,
)

from phi_hybrid.optim import Chain, Gradient, Link

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


@pytest.mark.parametrize("name", ["pg", "adam", "lbfgs"])
def test_training_reduces_the_errors(demo: ModuleType, name: str) -> None:
    task = demo.make_task(0)
    before = errors(task, task.observed)
    history = train(task, replace(demo.ENTRANTS[name], batch=8), 2.0, 0)
    assert history["x"][0] == before["x"] and history["y"][1] < before["y"]
    assert history["updates"][-1] >= 1


def test_the_value_of_a_chain_is_its_loss() -> None:
    """What line searches look at, with the gradient of the proxy."""
    chain = Chain(Link(torch.sin, Gradient()), Link(distance_to(torch.zeros(3, 2)), Gradient()))
    x = torch.linspace(0.1, 0.9, 6).reshape(3, 2).requires_grad_()
    loss = torch.sin(x).square().sum(1).mean() / 2
    found = loss_of(chain, x)
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(torch.autograd.grad(found, x), torch.autograd.grad(loss, x))


def test_rates_fall_to_zero() -> None:
    assert [cosine(2.0)(share) for share in (0, 0.5, 1, 1.1)] == pytest.approx([2, 1, 0, 0])


def test_samples_solved_alone(demo: ModuleType) -> None:
    """L-BFGS gets as close to y* as it is told to, and further from x* than to y*."""
    task = demo.make_task(0)
    coarse, fine = (break_even(task, y, 100.0) for y in (0.2, 0.02))
    assert 0.02 < fine["alone_x"] < coarse["alone_x"] < 1.2
    assert coarse["alone_ms"] > 0 and coarse["break_even"] > 100
    assert break_even(task, 1e-9, 100.0, iterations=20) == {}


def test_a_training_that_fails_ends(demo: ModuleType) -> None:
    task = demo.make_task(0)
    broken = replace(demo.ENTRANTS["adam"], batch=8, rate=lambda share: 1e30)
    history = train(task, broken, 1.0, 0)
    assert history["x"][-1] == history["y"][-1] == float("inf")
    assert break_even(task, history["y"][-1], 1.0) == {}


def test_whole_demo(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Metrics, table and figures, also where a training fails or L-BFGS does not get as far."""
    monkeypatch.setattr(demo, "SECONDS", 10)
    entrants = {"pg": replace(demo.ENTRANTS["pg"], batch=8)}
    entrants["broken"] = replace(entrants["pg"], rate=lambda share: 1e30)
    monkeypatch.setattr(demo, "ENTRANTS", entrants)
    monkeypatch.setattr("sys.argv", ["demo", "--quick", "--out", str(tmp_path)])
    demo.main()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["pg"]["y"] < metrics["source"]["y"] and metrics["inverse"]["y"] < 1e-6
    assert metrics["broken"]["x"] == float("inf")
    *_, pg, broken = capsys.readouterr().out.splitlines()
    assert pg.startswith("pg") and broken.startswith("broken") and "inf" in broken
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.json", "training.png", "examples.png"}
