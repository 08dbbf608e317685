"""Scores of ensembles against loops by hand, numerical integrals and the analytic scores of normal distributions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from cases.small import component_values, faces, line, noise
from phi.torch.flow import Tensor, batch, math, spatial, wrap

import phi_hybrid as ph
from phi_hybrid.evaluation import calibration


def drawn(members: int, samples: int, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal truth and members with so many times its standard deviation, `(member, x)` and `(x,)`."""
    generator = torch.Generator().manual_seed(seed)
    u = spread * torch.randn(members, samples, generator=generator, dtype=torch.float64)
    truth = torch.randn(samples, generator=generator, dtype=torch.float64)
    return wrap(u, batch("member"), spatial("x")), wrap(truth, spatial("x"))


def values(tensor: Tensor, dims: str) -> np.ndarray:
    with math.precision(64):
        return tensor.numpy(dims)


# --- mean and spread ---


def test_mean_and_spread_of_staggered_fields_with_further_dims() -> None:
    u = faces("closed", 0, torch.float64, time=2, member=3)
    for found, reduce in ((calibration.mean(u), np.mean), (calibration.spread(u), lambda x, a: np.std(x, a, ddof=1))):
        assert found.boundary == u.boundary and "member" not in found.shape
        for own, members in zip(component_values(found, ["time"]), component_values(u, ["member", "time"])):
            np.testing.assert_allclose(own.numpy(), reduce(members.numpy(), 0), rtol=1e-12)


def test_rescaled_members_keep_their_mean() -> None:
    u = line(0, dtype=torch.float64, time=2, member=5)
    scaled = calibration.rescale(u, 3.0)
    for statistic, factor in ((calibration.mean, 1), (calibration.spread, 3)):
        found, before = (component_values(statistic(v), ["time"])[0] for v in (scaled, u))
        torch.testing.assert_close(found, factor * before, rtol=1e-12, atol=1e-12)


# --- CRPS ---


@pytest.mark.parametrize("count", [2, 3, 8])
def test_crps_by_hand(count: int) -> None:
    """Ten lines of loops, per time."""
    u, truth = line(0, dtype=torch.float64, time=3, member=count), line(1, dtype=torch.float64, time=3)
    found = values(calibration.crps(u, truth, ("time",)), "time")
    own, true = component_values(u, ["member", "time"])[0], component_values(truth, ["time"])[0]
    for n in range(3):
        scores = []
        for x, y in zip(own[:, n].reshape(count, -1).T.tolist(), true[n].flatten().tolist()):
            error = sum(abs(a - y) for a in x) / count
            pairs = sum(abs(a - b) for a in x for b in x) / (2 * count * (count - 1))
            scores.append(error - pairs)
        assert found[n] == pytest.approx(np.mean(scores), rel=1e-12)


def test_crps_with_all_pairs_is_the_integral_of_the_squared_distance() -> None:
    """∫ (F(x) − 1{x ≥ y})² dx of the empirical F, by quadrature: the fair score has (M − 1)/M of its pairs' weight."""
    members, y = np.sort(noise(7, seed=3).double().numpy()), 0.3
    x = np.linspace(-6, 6, 240_001)
    distribution = np.searchsorted(members, x, side="right") / 7
    integral = scipy.integrate.trapezoid((distribution - (x >= y)) ** 2, x)
    fair = float(calibration.crps(wrap(torch.tensor(members), batch("member")), wrap(torch.tensor(y).double())))
    error = np.abs(members - y).mean()
    assert error + (fair - error) * 6 / 7 == pytest.approx(integral, abs=1e-4)


@pytest.mark.parametrize("count, spread", [(2, 1.0), (5, 1.0), (5, 0.4)])
def test_crps_of_normal_distributions(count: int, spread: float) -> None:
    """E|σX − Y| − E|σX − σX'|/2 = √(2/π)·√(1 + σ²) − σ/√π for any number of members."""
    found = float(calibration.crps(*drawn(count, 200_000, spread)))
    assert found == pytest.approx(np.sqrt(2 / np.pi * (1 + spread**2)) - spread / np.sqrt(np.pi), rel=0.01)


def test_crps_of_one_member_is_the_mean_absolute_error() -> None:
    u, truth = drawn(1, 50)
    expected = np.abs(values(u, "member,x")[0] - values(truth, "x")).mean()
    assert float(calibration.crps(u, truth)) == pytest.approx(expected, rel=1e-6)


# --- spread and skill, coverage, ranks ---


def test_spread_and_skill_by_hand() -> None:
    u = faces("closed", 0, torch.float64, time=2, member=4)
    truth = faces("closed", 1, torch.float64, time=2)
    expected, error, count = np.zeros(2), np.zeros(2), 0
    for own, true in zip(component_values(u, ["member", "time"]), component_values(truth, ["time"])):
        expected += 1.25 * np.var(own.numpy(), 0, ddof=1).sum((1, 2))
        error += ((own.mean(0) - true).numpy() ** 2).sum((1, 2))
        count += true[0].numel()
    along = ("time",)
    assert values(calibration.skill(u, truth, along), "time") == pytest.approx(np.sqrt(error / count))
    assert values(calibration.expected_skill(u, along), "time") == pytest.approx(np.sqrt(expected / count))
    assert values(calibration.spread_skill(u, truth, along), "time") == pytest.approx(np.sqrt(expected / error))
    assert float(calibration.spread_skill(u, truth)) == pytest.approx(np.sqrt(expected.sum() / error.sum()))


@pytest.mark.parametrize("count", [2, 5, 20])
def test_exchangeable_members_are_calibrated(count: int) -> None:
    """Truth and members of one distribution, few members included."""
    u, truth = drawn(count, 40_000)
    assert float(calibration.spread_skill(u, truth)) == pytest.approx(1, abs=0.02)
    for level in (0.5, 0.9):
        assert float(calibration.coverage(u, truth, level)) == pytest.approx(level, abs=0.01)
    ranks = values(calibration.rank_histogram(u, truth), "rank")
    assert len(ranks) == count + 1 and ranks.sum() == pytest.approx(1)
    np.testing.assert_allclose(ranks, 1 / (count + 1), atol=0.01)


def test_overconfident_members_and_their_recalibration() -> None:
    u, truth = drawn(20, 40_000, 0.5)
    ratio = float(calibration.spread_skill(u, truth))
    assert ratio == pytest.approx(np.sqrt(0.25 * 1.05 / (1 + 0.25 / 20)), abs=0.01)
    reach = scipy.stats.t.ppf(0.95, 19) * np.sqrt(1.05) * 0.5
    expected = 2 * scipy.stats.norm.cdf(reach) - 1  # but for the scatter of s
    assert float(calibration.coverage(u, truth, 0.9)) == pytest.approx(expected, abs=0.03)
    ranks = values(calibration.rank_histogram(u, truth), "rank")
    assert ranks[0] > 3 / 21 and ranks[-1] > 3 / 21 and ranks[10] < 1 / 21
    better = calibration.rescale(u, 1 / ratio)
    assert float(calibration.spread_skill(better, truth)) == pytest.approx(1, abs=1e-6)
    assert float(calibration.coverage(better, truth, 0.9)) == pytest.approx(0.9, abs=0.01)
    assert float(calibration.crps(better, truth)) < float(calibration.crps(u, truth))


@pytest.mark.parametrize("count, spread", [(3, 1.0), (5, 1.0), (50, 0.5), (50, 2.0)])
def test_covering_scale_restores_the_spread_of_the_truth(count: int, spread: float) -> None:
    """With many members their mean is right and only the spread is wrong; with few of the right spread nothing is."""
    u, truth = drawn(count, 20_000, spread)
    expected = 1 if spread == 1 else np.sqrt((1 + spread**2 / count) / (1 + 1 / count)) / spread
    assert calibration.covering_scale(u, truth) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_covering_scale_covers(level: float) -> None:
    u, truth = line(0, 40, torch.float64, time=5, member=4), line(1, 40, torch.float64, time=5)
    scale = calibration.covering_scale(u, truth, level)
    for factor, expected in ((1 + 1e-9, level), (1 - 1e-9, level - 1 / 200)):
        found = float(calibration.coverage(calibration.rescale(u, factor * scale), truth, level))
        assert found == pytest.approx(expected, abs=1e-6)


def test_ranks_by_hand() -> None:
    u = wrap(torch.tensor([[0.0, 1.0, 2.0, 5.0], [1.0, 1.0, 3.0, 4.0]]), batch("member"), spatial("x"))
    truth = wrap(torch.tensor([0.5, 1.0, 9.0, 3.0]), spatial("x"))
    assert values(calibration.rank_histogram(u, truth), "rank").tolist() == [0.25, 0.5, 0.25]


def test_dims_are_kept_in_the_order_asked_for() -> None:
    u, truth = line(0, time=2, trajectory=3, member=4), line(1, time=2, trajectory=3)
    one = values(calibration.coverage(u, truth, 0.5, ("trajectory", "time")), "trajectory,time")
    other = values(calibration.coverage(u, truth, 0.5, ("time", "trajectory")), "trajectory,time")
    assert one.shape == (3, 2) and (one == other).all() and 0 < one.mean() < 1


# --- errors ---


def test_errors() -> None:
    u, truth = line(0, time=2, member=3), line(1, time=2)
    with pytest.raises(ph.StateError, match="members along a batch dim 'member' of at least 2, got sizes \\[None\\]"):
        calibration.spread_skill(truth, truth)
    with pytest.raises(ph.StateError, match="of at least 2, got sizes \\[1\\]"):
        calibration.coverage(line(0, member=1), line(1), 0.5)
    with pytest.raises(ph.StateError, match="members and truth differ in kind: dims"):
        calibration.crps(u, line(1))
    with pytest.raises(ph.StateError, match="there is no dim \\['y'\\], only \\['time', 'x', 'vector'\\]"):
        calibration.crps(u, truth, ("y",))
    with pytest.raises(ph.StateError, match="level = 90"):
        calibration.coverage(u, truth, 90)
    with pytest.raises(ph.StateError, match="factor = nan: expected a finite number ≥ 0"):
        calibration.rescale(u, float("nan"))
    with pytest.raises(ph.StateError, match="no scale covers 90% of the truth, because the spread is zero"):
        calibration.covering_scale(0 * u, truth)
    for score in (
        calibration.expected_skill,
        lambda v: calibration.skill(v, truth),
        lambda v: calibration.crps(u, v.member[0]),
    ):
        with pytest.raises(ph.StateError, match="torch.complex64, but scores compare real numbers"):
            score(u * 1j)
    with pytest.raises(ph.StateError, match="hold NaN or infinity, to which no score applies"):
        calibration.rank_histogram(u * float("nan"), truth)


def test_whole_numbers_are_refused() -> None:
    """Where the truth of 0.9 was rounded to the members' 0."""
    members = wrap(torch.zeros(2, 3, dtype=torch.int64), batch("member"), spatial("x"))
    with pytest.raises(ph.StateError, match="int64.*convert them to floating point"):
        calibration.crps(members, 0.9 * math.ones(spatial(x=3)))


def test_states_of_other_sizes() -> None:
    """Where shares above 1 came out, or values were repeated."""
    u = line(0, time=2, member=3, trajectory=1)
    for truth in (line(1, time=2, trajectory=3), line(1, time=3, trajectory=1)):
        with pytest.raises(ph.StateError, match="members of batch sizes .* do not fit: compare the same times"):
            calibration.coverage(u, truth, 0.9)
    with pytest.raises(ph.StateError, match="along = .*each dim once"):
        calibration.crps(u, line(1, time=2, trajectory=1), ("time", "time"))
    closed = faces("closed", 0, torch.float64, member=3)
    with pytest.raises(ph.StateError, match="components differ in size there"):
        calibration.crps(closed, faces("closed", 1, torch.float64), "x")


def test_ties_count_half_below() -> None:
    """An odd number of them, too."""
    u = wrap(torch.zeros(3, 4), batch("member"), spatial("x"))
    ranks = values(calibration.rank_histogram(u, 0 * u.member[0]), "rank")
    assert ranks.tolist() == [0, 0.5, 0.5, 0]


def test_covering_scale_at_levels_that_round_up() -> None:
    """0.55·100 is 55.000000000000007 in floating point."""
    u, truth = drawn(5, 100)
    scaled = calibration.rescale(u, calibration.covering_scale(u, truth, 0.55) * (1 + 1e-9))
    assert float(calibration.coverage(scaled, truth, 0.55)) == pytest.approx(0.55, abs=1e-6)
