"""The demo of searching through a corrected solver: noise, errors and their summary, on a perfect solver."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reconstruct_hybrid as demo
import torch

import phi_hybrid as ph

torch.set_num_threads(1)


def test_a_perfect_solver_finds_what_a_wrong_one_does_not() -> None:
    """Data of the coarse solver itself; the wrong one lets the force act twice."""
    case = replace(demo.LINE, fine=32, coarse=32, trajectories=2, steps=8)
    right = demo.physics(case, 32)
    test, _ = demo.reference_data(case, 0)

    def wrong(u, force):
        return right(right(u, force), force)

    errors = demo.compare({"source": wrong, "hybrid": right}, test, (6,), 12, 0)
    assert set(errors) == {(6, level, name) for level in demo.NOISE for name in ("source", "hybrid")}
    assert all(found.shape == (13, 2) and np.allclose(found[0], 1) for found in errors.values())
    rows = demo.summary(errors)
    assert rows["hybrid"]["x_6_0"] < 0.1 < rows["source"]["x_6_0"]
    assert rows["hybrid"]["gain_6_0"] == 1 and rows["hybrid"]["x_6_0_best"] <= rows["hybrid"]["x_6_0"]
    assert rows["hybrid"]["x_6_0.1"] > rows["hybrid"]["x_6_0"]
    assert demo.figure(errors).axes


def test_noise_is_a_part_of_the_state() -> None:
    state = demo.reference_data(replace(demo.LINE, fine=32, coarse=32, trajectories=8, steps=1), 0)[0].initial_state
    (clean,), (seen,) = (ph.bridge.flatten(u)[0] for u in (state, demo.noisy(state, 0.1, 3)))
    assert float((seen - clean).square().mean().sqrt() / clean.square().mean().sqrt()) == pytest.approx(0.1, rel=0.15)
    assert torch.equal(ph.bridge.flatten(demo.noisy(state, 0.0, 3))[0][0], clean)
