"""Problems and methods of the map of update rules: dials against dense algebra, updates against the truth, verdicts by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import rules_figure
import rules_map
import rules_problems
import torch
from matplotlib.colors import to_hex
from rules_figure import verdict
from rules_problems import Problem

CASES = {
    "heat": Problem("heat", 1e2, 16, 1),
    "heat in steps": Problem("heat", 1e2, 16, 8),
    "burgers": Problem("burgers", 1e1, 16, 1),
    "oscillators": Problem("oscillators", 1e2, 4, 1),
    "pairs of oscillators": Problem("oscillators", 1e2, 16, 1),
}


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rules_map, rules_problems):
        monkeypatch.setattr(module, "TRAINING", 64)


def matrix(problem: Problem) -> torch.Tensor:
    """∂P/∂x at x = 0."""
    physics, zero = rules_problems.physics_of(problem)[0], torch.zeros(1, problem.outputs, dtype=torch.float64)
    return torch.autograd.functional.jacobian(lambda x: physics(x)[0], zero)[:, 0]


@pytest.mark.parametrize("name", ["heat", "heat in steps"])
def test_diffusion_has_the_condition_number_of_the_dial(name: str) -> None:
    assert float(torch.linalg.cond(matrix(CASES[name]))) == pytest.approx(1e2, rel=1e-9)


def test_more_steps_of_diffusion_are_the_same_physics() -> None:
    torch.testing.assert_close(matrix(CASES["heat in steps"]), matrix(CASES["heat"]))


def test_a_pair_of_oscillators_has_about_the_condition_number_of_the_dial() -> None:
    """First-order perturbation of weak springs: the condition number is inverse to the coupling."""
    conditions = [float(torch.linalg.cond(matrix(Problem("oscillators", c, 4, 1)))) for c in (1e3, 1e4)]
    assert conditions[0] == pytest.approx(1e3, rel=0.2)
    assert conditions[1] == pytest.approx(10 * conditions[0], rel=0.01)


def test_pairs_of_oscillators_do_not_feel_each_other() -> None:
    torch.testing.assert_close(
        matrix(CASES["pairs of oscillators"]), torch.block_diag(*[matrix(CASES["oscillators"])] * 4)
    )


@pytest.mark.parametrize("name", CASES)
def test_physical_gradients_point_to_the_truth(name: str) -> None:
    """Exactly for linear physics, and to second order for Burgers' equation."""
    task = rules_problems.task_of(CASES[name], 0)
    truth, seen = task.truth[:8], task.observed[:8]
    guess = truth + 1e-3 * torch.randn_like(truth)
    left = guess + rules_map.physical(task, seen).update(guess).update - truth
    assert float(left.norm() / (guess - truth).norm()) < (0.1 if name == "burgers" else 1e-6)


@pytest.mark.parametrize("method", rules_map.METHODS)
def test_every_method_learns(method: str) -> None:
    problem = CASES["heat"]
    task, rate = rules_problems.task_of(problem, 0), min(rules_map.METHODS[method].rates[-1], 0.3)
    before = task.errors()["y"]
    numbers = rules_map.batches(torch.arange(64), rules_map.METHODS[method].batch(problem), 0)
    update = rules_map.updates(rules_map.METHODS[method], task, numbers, rate)
    for _ in range(20):
        update(0.0)
    assert task.errors()["y"] < 0.8 * before


def test_runs_on_disk_are_not_repeated(tmp_path: Path) -> None:
    runs = rules_map.Runs(tmp_path / "runs.jsonl")
    runs.get("failed", lambda: {"y": math.inf})
    again = rules_map.Runs(tmp_path / "runs.jsonl")
    assert again.get("failed", lambda: {"y": 0.0}) == {"key": "failed", "y": math.inf}


def test_a_verdict_tells_a_lead_from_the_spread() -> None:
    errors = {"adam": [1.0, 2.0, 3.0], "hig": [4.0, 6.0, 3.5], "physical": [math.inf, math.inf, 1.0]}
    found = verdict(errors)
    assert (found.best, found.second, found.ratio, found.clear) == ("adam", "hig", 2.0, True)
    assert not verdict({**errors, "hig": [2.5, 6.0, 4.0]}).clear


def test_the_map_shows_the_best_method_of_every_square() -> None:
    methods = {"adam": [{"y": 1.0, "x": 3.0}], "hig": [{"y": 2.0, "x": 1.5}]}
    names = ["heat condition=1e+00 outputs=4 steps=1", "heat condition=1e+01 outputs=4 steps=1"]
    left, right = rules_figure.draw({name: {"methods": methods} for name in names}).axes
    for ax, best in ((left, "adam"), (right, "hig")):
        colours = {to_hex(patch.get_facecolor()) for patch in ax.patches}
        assert len(ax.patches) == 2 and colours == {rules_figure.COLOURS[best]}
        assert [text.get_text().split("\n")[1] for text in ax.texts] == ["2.00 ×", "2.00 ×"]
