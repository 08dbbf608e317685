import math
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

import phi_hybrid as ph
from phi_hybrid.evaluation import Spread, Table
from phi_hybrid.plot import comparison

INF = math.inf
TABLE = Table(
    {
        "source": {"mae": 0.3},
        "one_step": {"mae": Spread((0.1, INF, 0.12))},
        "unrolled": {"mae": Spread((0.03, 0.02, 0.04))},
        "broken": {"mae": Spread((INF, INF, 0.5))},
    }
)


def lines(ax, marker):
    return [line for line in ax.get_lines() if line.get_marker() == marker]


def test_every_seed_is_a_dot_beside_the_bar_at_the_median():
    ax = comparison(TABLE, "mae").axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(TABLE.rows)
    dots = [sorted(line.get_xdata()) for line in lines(ax, "o")]
    assert dots == [[0.3], [0.1, 0.12], [0.02, 0.03, 0.04], [0.5]]
    for height, line in enumerate(lines(ax, "o")):
        assert np.abs(line.get_ydata() - height).max() < 0.3
    bars = [line.get_xdata()[0] for line in lines(ax, "None")]
    assert bars == [0.3, 0.12, 0.03, 1.0]  # the last one at the right edge, in fractions of the axes
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "mae")
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # first row on top


def test_failures_stand_at_the_edge_with_their_number():
    ax = comparison(TABLE, "mae").axes[0]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines(ax, "X")] == [(1.0, 1), (1.0, 3)]
    assert [t.get_text() for t in ax.texts] == ["1 of 3 failed", "2 of 3 failed"]
    low, high = ax.get_xlim()
    assert low < 0.02 and high > 0.5


def test_failed_correlations_stand_on_the_left():
    ax = comparison(Table({"net": {"c": Spread((0.9, -INF, -0.1))}}), "c", log=False, quantity="correlation").axes[0]
    assert lines(ax, "X")[0].get_xdata()[0] == 0.0 and ax.get_xlabel() == "correlation"
    assert lines(ax, "None")[0].get_xdata()[0] == -0.1


def test_nothing_finite_and_nothing_different():
    for values in ((INF, INF), (0.2, 0.2)):
        ax = comparison(Table({"a": {"mae": Spread(values)}}), "mae").axes[0]
        low, high = ax.get_xlim()
        assert 0 < low < high < INF


def test_rows_without_a_number_stay_empty():
    """They have not failed, and the others keep their places and colours."""
    seeds = [{"a": {"mae": v}, "b": {"mae": v, "drag": v}, "c": {"drag": 2 * v}} for v in (1.0, 3.0)]
    single = Table({name: {"drag": row.get("drag", math.nan)} for name, row in seeds[0].items()})
    for table in (Table.over_seeds(seeds), single):
        ax = comparison(table, "drag").axes[0]
        assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
        assert not ax.texts and not lines(ax, "X")
        assert {round(y) for line in lines(ax, "o") for y in line.get_ydata()} == {1, 2}


def test_given_axes_are_used():
    ax = Figure(figsize=(3, 2)).add_subplot()
    figure = comparison(TABLE, "mae", ax=ax)
    assert figure is ax.figure and figure.get_size_inches().tolist() == [3, 2] and ax.get_lines()


def test_wrong_columns():
    with pytest.raises(ph.StateError, match=re.escape("columns ['nrmse'] are not in the table; it has ['mae']")):
        comparison(TABLE, "nrmse")
    with pytest.raises(ph.StateError, match="column 'x' holds 0, which a logarithmic axis cannot show; use log=False"):
        comparison(Table({"a": {"x": 0.0}}), "x")


def test_dots_and_bars_are_explained_where_there_are_several_seeds():
    figure = comparison(TABLE, "mae")
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one seed", "median"]
    figure.draw_without_rendering()
    assert ax.get_legend().get_window_extent().y1 < ax.xaxis.label.get_window_extent().y0
    assert comparison(Table({"a": {"mae": 0.1}}), "mae").axes[0].get_legend() is None
