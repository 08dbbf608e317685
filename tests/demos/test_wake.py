"""The study of the wake: what its network is told, and how its methods share their updates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flows import DENSE_RE, TEST_RE, TRAINING_RE, VALIDATION_RE, WAKE
from wake_correction import LONG, Case, Correction, LongCase, places


def test_the_network_is_told_where_the_cylinder_is() -> None:
    """Against distances by hand: x in 32 and y in 64 cells of 3.125, the cylinder of radius 10 at (50, 50)."""
    solid, near, coordinates = places(64)
    x, y = np.meshgrid((np.arange(32) + 0.5) * 3.125, (np.arange(64) + 0.5) * 3.125, indexing="ij")
    radius = np.hypot(x - 50, y - 50)
    np.testing.assert_array_equal(solid.numpy("x,y") > 0.5, radius < 10)
    np.testing.assert_allclose(near.numpy("x,y"), np.exp(-np.maximum(radius - 10, 0) / 10), rtol=1e-4)
    expected = np.stack([x / 50 - 1, y / 100 - 1], -1)
    np.testing.assert_allclose(coordinates.numpy("x,y,vector"), expected, atol=1e-6)


def test_all_methods_but_one_make_equally_many_updates() -> None:
    case = Case()
    updates = {name: sum(stage.updates for stage in stages[1:]) for name, stages in case.methods().items()}
    assert updates.pop("one_step_long") == case.long
    assert set(updates.values()) == {case.updates}


def test_methods_of_the_long_version_go_on_from_one_another() -> None:
    methods = LongCase().methods()
    *chain, one_step_long = methods.values()
    for shorter, longer in zip(chain, chain[1:]):
        assert longer[:-1] == shorter
    assert [stage.objective.steps for stage in chain[-1]] == list(LONG)
    assert one_step_long[0] == chain[0][0] and {stage.objective.steps for stage in one_step_long} == {1}


def test_the_recipe_is_among_what_is_tuned() -> None:
    methods, candidates = Case().methods(), Case().candidates()
    assert [candidates[f"{n} steps, rate 0.001"] for n in (1, 4)] == [methods["one_step"], methods["unrolled_4"]]
    assert methods["noise"] in candidates.values()


@pytest.mark.parametrize("training", [TRAINING_RE, DENSE_RE], ids=["default", "long"])
def test_no_reynolds_number_is_in_two_sets(training: tuple[float, ...]) -> None:
    everything = training + VALIDATION_RE + TEST_RE
    assert len(set(np.round(everything, 6))) == len(everything) == len(training) + 10
    assert WAKE.substeps(1.0, 64, min(everything)) == WAKE.substeps(1.0, 64, min(training))


@pytest.mark.parametrize("shift", [2, 4])
def test_the_correction_moves_with_what_it_sees_by_blocks_of_two_cells(shift: int) -> None:
    """Far from the edges, which zeros around the grid tell from the rest."""
    torch.manual_seed(0)
    network, seen = Correction(7, 8), torch.rand(1, 7, 64, 64) + 0.5
    moved = network(seen.roll(shift, 2)).roll(-shift, 2)
    assert moved.shape == (1, 2, 64, 64)
    torch.testing.assert_close(moved[:, :, 24:40, 24:40], network(seen)[:, :, 24:40, 24:40], rtol=1e-4, atol=1e-5)
