"""Stages: their settings, their rate and their text."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

import phi_hybrid as ph
from phi_hybrid.studies import Stage
from phi_hybrid.studies.stage import Clock, alike


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
    assert stage.scaled(1).text == stage.text


def test_the_rate_falls_with_the_time() -> None:
    clock = Clock(8.0)
    for used in (0.0, 2.0, 4.0, 8.0, 9.0):
        clock.used = used
        assert clock.falling(7) == pytest.approx((1 + math.cos(math.pi * min(used, 8) / 8)) / 2)
    assert clock.is_over and not Clock().is_over


def test_texts_are_the_same_in_every_process() -> None:
    stage = Stage(ph.Unrolled(2), 5, optimizer=partial(torch.optim.Adam, betas=(0.8, 0.9)))
    function = Stage(ph.Unrolled(2), 5, optimizer=lambda p, lr: torch.optim.SGD(p, lr))
    assert "0.8" in stage.text and "0x" not in function.text
    assert stage.text != Stage(ph.Unrolled(3), 5).text


def test_functions_are_compared_by_what_they_do_and_remember() -> None:
    def remembers_itself(rate: float) -> Callable:
        def own(x: float) -> float:
            return own(x - 1) if x > 0 else rate

        return own

    assert alike([remembers_itself(0.5)], [remembers_itself(0.5)])
    assert not alike(remembers_itself(0.5), remembers_itself(0.25))
    weights = torch.ones(3)
    assert alike(lambda: weights, lambda: weights) and not alike(lambda: 1, lambda: 2)
    assert not alike(lambda w=weights: w, lambda w=2 * weights: w)
