"""The demo of noisy observations: how much noise there is, and when a search is stopped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reconstruct_noise as demo
import torch
from phi.torch.flow import math
from reconstruct_burgers import BLOCK, Found, Search, sine

import phi_hybrid as ph
from phi_hybrid.bridge import flatten

torch.set_num_threads(1)


@pytest.mark.parametrize("times", [(3,), (2, 3)])
def test_noise_has_the_strength_it_is_said_to_have(times: tuple[int, ...]) -> None:
    with math.precision(64):
        observed, sigma = demo.observe(times, 0.1, 64, 0)
        trajectory = ph.rollout(BLOCK, sine(), 3)
        clean = trajectory.time[list(times)] if len(times) > 1 else trajectory.time[times[0]]
        (seen,), (truth,) = flatten(observed)[0], flatten(clean)[0]
    assert observed.shape.get_size("noise") == 64
    assert sigma == pytest.approx(0.1 * float(truth.square().mean().sqrt()))
    assert float((seen - truth).std()) == pytest.approx(sigma, rel=0.02)
    assert float(demo.observe(times, 0.0, 2, 0)[1]) == 0


def test_search_is_stopped_where_noise_is_left() -> None:
    found = Found(None, 0.0, np.array([1.0, 0.5, 0.01, 0.001]), np.array([[1.0], [0.5], [0.2], [0.4]]))
    assert demo.stopped(found, 0.1) == 2 and demo.stopped(found, 0.0) == 3
    assert demo.summary(found, 0.1) == {"x": 0.4, "x_stopped": 0.2, "stop": 2, "x_best": 0.2}
    assert demo.stopped(replace(found, losses=np.array([1.0, 0.9])), 0.1) == 1


def test_early_stopping_pays_under_noise() -> None:
    """Going on beyond the noise level fits the noise."""
    with math.precision(64):
        observed, sigma = demo.observe((8,), 0.1, 4, 0)
        wanted = Search(60, demo.searches((8,))["gradient descent"].settings)
        row = demo.summary(demo.search(observed, (8,), wanted, quick=False), sigma)
    assert row["x_stopped"] < 0.9 * row["x"] and row["x_stopped"] < 1.2 * row["x_best"]
