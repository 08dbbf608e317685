import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from phi.torch.flow import batch, tensor

import phi_hybrid as ph
from phi_hybrid.plot import errors
from phi_hybrid.plot.error_curves import as_samples, statistics

VALUES = np.random.default_rng(1).lognormal(size=(9, 6))


def test_median_and_percentiles_of_finite_errors():
    lower, median, upper = statistics(VALUES, (10, 90))
    np.testing.assert_allclose([lower, median, upper], np.percentile(VALUES, [10, 50, 90], axis=0))


def test_failures_rank_above_all_finite_errors():
    values = np.array([[1.0, np.nan], [2.0, 2.0], [3.0, np.inf], [4.0, 4.0], [5.0, 5.0]])
    lower, median, upper = statistics(values, (0, 100))
    assert (lower[1], median[1], upper[1]) == (2, 5, np.inf)
    assert statistics(values[:, 1:], (0, 50))[2] == 5  # the neighbour ∞ has no weight here
    assert statistics(values[2:, 1:], (0, 60))[2] == np.inf and statistics(values[2:, 1:], (0, 90))[2] == np.inf


def test_failed_correlations_rank_below_all_others():
    values = np.array([[-np.inf, 0.9], [0.5, 0.9], [0.7, -np.inf], [0.8, -np.inf], [0.9, -np.inf]])
    lower, median, upper = statistics(values, (0, 100))
    assert lower.tolist() == [-np.inf] * 2 and median.tolist() == [0.7, -np.inf] and upper.tolist() == [0.9] * 2
    assert statistics(values, (25, 80))[0][0] == 0.5  # the neighbour −∞ has no weight here
    assert statistics(values, (10, 80))[0][0] == -np.inf  # between −∞ and 0.5
    ax = errors({"a": values}, log=False).axes[0]
    assert np.isfinite(ax.get_ylim()).all()


def test_line_and_band_hold_the_statistics():
    ax = errors({"a": VALUES}, dt=0.5).axes[0]
    line = ax.get_lines()[0]
    np.testing.assert_allclose(line.get_xdata(), 0.5 * np.arange(6))
    np.testing.assert_allclose(line.get_ydata(), np.median(VALUES, axis=0))
    top = ax.collections[0].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(np.percentile(VALUES, 90, axis=0).max())
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "MAE")
    assert [text.get_text() for text in ax.texts] == ["a"]


def test_blow_up_is_marked_where_it_first_happens():
    values = np.ones((4, 10))
    values[1:, 6:], values[3, 5] = np.nan, np.inf
    ax = errors({"a": values, "b": np.ones(10) * 2}, dt=0.1).axes[0]
    line, cross = ax.get_lines()[0], next(line for line in ax.get_lines() if line.get_marker() == "X")
    assert np.isfinite(line.get_ydata()).tolist() == [True] * 6 + [False] * 4
    assert cross.get_xdata()[0] == pytest.approx(0.5)
    assert "blow-up from t = 0.5 (3 of 4)" in [text.get_text() for text in ax.texts]


def test_a_curve_without_any_finite_value_is_still_marked():
    ax = errors({"a": np.full(5, np.nan)}).axes[0]
    assert "blow-up from t = 0" in [text.get_text() for text in ax.texts]


def test_all_kinds_of_arrays_agree():
    expected = as_samples("a", VALUES)
    np.testing.assert_allclose(as_samples("a", torch.tensor(VALUES, requires_grad=True)), expected)
    np.testing.assert_allclose(as_samples("a", tensor(VALUES.T, batch("time,trajectory"))), expected, rtol=1e-6)
    assert as_samples("a", [1.0, 2.0]).shape == (1, 2)


def test_given_axes_are_used():
    ax = Figure().add_subplot()
    assert errors({"a": VALUES}, ax=ax) is ax.figure and ax.get_lines()


def test_wrong_curves():
    with pytest.raises(ph.StateError, match=r"curve 'a': expected shape \(samples, time\)"):
        errors({"a": np.ones((2, 3, 4))})
    with pytest.raises(ph.StateError, match="curve 'a': no dim 'time'"):
        errors({"a": tensor([1.0, 2.0], batch("trajectory"))})
    with pytest.raises(ph.StateError, match=r"band=\(90, 10\)"):
        errors({"a": VALUES}, band=(90, 10))
    with pytest.raises(ph.StateError, match="curves = {}: expected"):
        errors({})
    for wrong in ([[1.0, 2.0], [3.0]], "mae", None):
        with pytest.raises(ph.StateError, match="curve 'a': expected an array"):
            errors({"a": wrong})
    with pytest.raises(ph.StateError, match="dt = 0: expected"):
        errors({"a": VALUES}, dt=0)


def test_the_legend_says_what_bands_are():
    def said(values, **settings):
        legend = errors({"a": values}, **settings).axes[0].get_legend()
        return legend and [text.get_text() for text in legend.get_texts()]

    assert said(VALUES) == ["median", "10–90 % of the samples"]
    assert said(VALUES, band=(0, 100)) == ["median", "min–max of the samples"]
    assert said(VALUES[:1]) is None  # no band


def test_a_solver_has_its_colour_whichever_are_shown():
    def colours(figure):
        return {line.get_label(): line.get_color() for line in figure.axes[0].get_lines()}

    names = ["source", "one step", "four steps"]
    everything = colours(errors({name: VALUES for name in names}))
    assert len(set(everything.values())) == 3
    some = {name: VALUES for name in names[1:]}
    assert colours(errors(some, order=names)) == {name: everything[name] for name in some}
    assert colours(errors(some)) != {name: everything[name] for name in some}


def test_leaders_do_not_look_like_lines():
    values = np.ones((1, 6)) * np.arange(1, 7)
    values[0, 3:] = np.nan
    ax = errors({"a": values, "b": VALUES[:1]}).axes[0]
    leaders = [text.arrow_patch for text in ax.texts if text.arrow_patch is not None]
    lines = {line.get_color() for line in ax.get_lines()}
    assert leaders and all(leader.get_linestyle() != "-" for leader in leaders)
    assert not lines & {to_hex(leader.get_edgecolor()).upper() for leader in leaders}


def test_pages_may_be_dark():
    assert errors({"a": VALUES}).get_facecolor() == (1, 1, 1, 1)
