"""The moving average of gradient norms, against values worked out by hand."""

from __future__ import annotations

import pytest

from phi_hybrid.training.gradient_norm import GradientNormAverage


def seen(norms: list[float], **settings: float) -> GradientNormAverage:
    usual = GradientNormAverage(**{"skip": 10.0, "memory": 0.5, "first": 3, **settings})
    for norm in norms:
        usual.see(norm)
    return usual


def test_norms_of_zero_are_no_measure() -> None:
    """All that come after them would be skipped, for ever."""
    average = GradientNormAverage(3.0)
    for _ in range(30):
        average.see(0.0)
    assert not average.exceeded_by(1.0)
    average.see(1.0)
    assert average.average > 0


def test_average_of_the_first_norms_is_plain_then_it_forgets() -> None:
    assert seen([2.0]).average == 2.0
    assert seen([2.0, 4.0], memory=0.9).average == 3.0
    assert seen([2.0, 4.0, 9.0], memory=0.9).average == pytest.approx(5.0)
    assert seen([2.0, 4.0, 9.0]).average == 6.0  # ½ · 3 + ½ · 9


def test_nothing_is_judged_at_first() -> None:
    assert not seen([1.0, 1.0]).exceeded_by(1e9)
    assert seen([1.0, 1.0, 1.0]).exceeded_by(10.1)
    assert not seen([1.0, 1.0, 1.0]).exceeded_by(10.0)


def test_no_limit() -> None:
    usual = seen([1.0] * 30, skip=None)
    usual.see(1e9)
    assert not usual.exceeded_by(1e30)


def test_one_excess_hardly_moves_the_average_but_a_lasting_change_is_followed() -> None:
    usual = GradientNormAverage(10.0)
    for _ in range(200):
        usual.see(1.0)
    usual.see(1e6)
    assert usual.average == pytest.approx(0.98 + 0.02 * 10)
    skipped = 0
    while usual.exceeded_by(1e6):
        usual.see(1e6)
        skipped += 1
    assert 50 < skipped < 100  # each multiplies the average by 1.18


def test_state_is_all_there_is() -> None:
    usual, other = seen([1.0, 5.0, 2.0, 7.0]), GradientNormAverage(10.0, 0.5, 3)
    other.load(usual.state())
    for norm in (3.0, 4.0):
        usual.see(norm)
        other.see(norm)
    assert usual.average == other.average and usual.seen == other.seen
