"""Jumps and kinks of known functions."""

from __future__ import annotations

import pytest
import torch

from phi_hybrid.sensitivity.breaks import JUMP, KINK, breaks, missed

X, D = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)


@pytest.mark.parametrize("place", [-0.0873, -0.05, 0.0, 1e-9, 0.0125, 0.031])
def test_a_jump_is_found_wherever_it_is(place: float) -> None:
    (found,) = breaks(lambda x: torch.sin(x) + 0.3 * (x > place), X, D, 1e-12)
    assert found.kind == JUMP and found.size == pytest.approx(0.3, rel=1e-3)
    assert abs(float(found.centre) - place) <= float(found.half) * 1.01
    assert float(found.half.abs().max()) < 1e-6


@pytest.mark.parametrize("place", [-0.0873, -0.05, 0.0, 1e-9, 0.0125, 0.031])
def test_a_kink_is_found_wherever_it_is(place: float) -> None:
    found = breaks(lambda x: torch.exp(x) + 0.2 * (x - place).abs(), X, D, 1e-14)
    assert [f.kind for f in found] == [KINK]
    assert found[0].size <= 0.4 * 1.01


@pytest.mark.parametrize("f", [torch.sin, torch.exp, lambda x: torch.tanh(300 * x), lambda x: x**3, torch.zeros_like])
def test_smooth_functions_have_none(f: object) -> None:
    assert not breaks(f, X, D, 1e-14)


def test_jumps_below_the_floor_are_noise() -> None:
    assert not breaks(lambda x: x + 1e-10 * (x > 0.03), X, D, 1e-9)


def test_a_small_jump_is_found_beside_large_kinks() -> None:
    x, d = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    found = breaks(lambda x: torch.stack([5 * (x[0] - 0.03).abs(), 0.001 * (x[1] > 0.02)]), x, d, 1e-12)
    assert found[0].kind == JUMP and found[0].size == pytest.approx(0.001)


def test_gradients_miss_the_part_of_a_change_that_jumps() -> None:
    off, change = missed(lambda x: x + 0.3 * (x > 0.01), X, D, D, True)
    assert change == pytest.approx(0.5) and off == pytest.approx(0.3)  # from −0.1 to 0.1
    assert missed(torch.sin, X, D, D, False)[0] == 0
