"""Stages: their settings, their rate and their text."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import phi_hybrid as ph
from phi_hybrid.studies import Stage
from phi_hybrid.studies.stage import Clock, alike, description


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        dict(updates=3, seconds=1.0),
        dict(updates=0),
        dict(seconds=-1.0),
        dict(updates=3, lr=0.0),
        dict(updates=3, batch_size=0),
        dict(updates=3, clip=-1.0),
        dict(updates=3, optimizer="adam"),
    ],
    ids=str,
)
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(ph.StateError):
        Stage(ph.Unrolled(1), **wrong)


def test_budgets() -> None:
    assert Stage(ph.Unrolled(1), 100).scaled(0.25).updates == 25
    assert Stage(ph.Unrolled(1), 3).scaled(0.01).updates == 1
    assert Stage(ph.Unrolled(1), seconds=10.0).scaled(3).seconds == 30.0


def test_budgets_of_what_happens_at_certain_updates() -> None:
    noise = ph.Noise(0.1, schedule=ph.training.Ramp(1, 0, 200))
    stages = {0: ph.Unrolled(1, noise=noise), 100: ph.Unrolled(2), 150: ph.Unrolled(4)}
    stage = Stage(ph.Curriculum(stages), 200)
    short = stage.scaled(0.1)
    assert short.updates == 20 and list(short.objective.stages) == [0, 10, 15]
    assert short.objective.stages[0].noise.at(10).sigma == noise.at(100).sigma == 0.05
    assert list(stage.scaled(0.001).objective.stages) == [0, 1, 2]
    assert description([stage.scaled(1)]) == description([stage])


def test_the_rate_falls_with_the_time() -> None:
    clock = Clock(8.0)
    for used in (0.0, 2.0, 4.0, 8.0, 9.0):
        clock.used = used
        assert clock.falling(7) == pytest.approx((1 + math.cos(math.pi * min(used, 8) / 8)) / 2)
    assert clock.is_over and not Clock().is_over


def test_texts_are_the_same_in_every_process() -> None:
    stages = [Stage(ph.Unrolled(2), 5, optimizer=partial(torch.optim.Adam, betas=(0.8, 0.9)))]
    function = [Stage(ph.Unrolled(2), 5, optimizer=lambda p, lr: torch.optim.SGD(p, lr))]
    assert "0.8" in description(stages) and "0x" not in description(function)
    assert description(stages) != description([Stage(ph.Unrolled(3), 5)])


FUNCTIONS = """
def settings(rate):
    def own(x):
        return own(x - 1) if x in {"a", "b", "c", 3} else rate

    return [own, {"further": [lambda x, factor=2.0: factor * x]}]
"""


def described(rate: float) -> str:
    scope: dict[str, Any] = {}
    exec(FUNCTIONS, scope)
    return description([Stage(ph.Unrolled(1), 1, optimizer=partial(print, scope["settings"](rate)))])


def test_functions_are_described_by_what_they_do_and_remember() -> None:
    """The same in a process that orders sets differently."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_stage as t; print(t.described(0.5))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == described(0.5) != described(0.25)


def test_functions_that_remember_themselves_are_compared() -> None:
    scope: dict[str, Any] = {}
    exec(FUNCTIONS, scope)
    assert alike(scope["settings"](0.5), scope["settings"](0.5))
    assert not alike(scope["settings"](0.5), scope["settings"](0.25))
    weights = torch.ones(3)
    assert alike(lambda: weights, lambda: weights) and not alike(lambda: 1, lambda: 2)
