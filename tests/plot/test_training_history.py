import numpy as np
import pytest

import phi_hybrid as ph
from phi_hybrid.plot import history
from phi_hybrid.plot.training_history import running_median

RUN = {"update": [1, 2, 3, 4, 5], "loss": [5.0, 4.0, 50.0, 2.0, 1.0], "lr": [1e-3] * 5, "gradient_norm": [1.0] * 5}


def names_in(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_running_median_ignores_a_spike_and_keeps_the_length():
    np.testing.assert_allclose(running_median(RUN["loss"], 3), [4.5, 5, 4, 2, 1.5])
    np.testing.assert_allclose(running_median(RUN["loss"], 1), RUN["loss"])


def test_raw_smooth_and_validation_are_drawn():
    ax = history(RUN | {"validation": {"update": [2, 4], "mae": [0.5, 0.25]}}, window=3).axes[0]
    raw, smooth, points = ax.get_lines()
    np.testing.assert_allclose(raw.get_ydata(), RUN["loss"])
    np.testing.assert_allclose(smooth.get_ydata(), [4.5, 5, 4, 2, 1.5])
    assert raw.get_alpha() < 0.5 and points.get_marker() == "o"
    np.testing.assert_allclose(points.get_xydata(), [[2, 0.5], [4, 0.25]])
    assert ax.get_yscale() == "log"


@pytest.mark.parametrize("validation", [{}, {"update": [], "mae": []}, None])
def test_validation_may_be_empty(validation):
    ax = history({"a": RUN | {"validation": validation}, "b": RUN}).axes[0]
    assert len(ax.get_lines()) == 4
    assert names_in(ax.get_legend()) == ["a", "b", "raw", "running median"]


def test_stages_stand_one_after_the_other():
    later = {"update": [0, 1, 2], "loss": [0.5, 0.4, 0.3], "validation": {"update": [2], "mae": [0.1]}}
    ax = history({"a": [RUN, later], "b": [RUN]}, window=1).axes[0]
    lines = [line for line in ax.get_lines() if line.get_label() == "a" or len(line.get_xdata()) == 3]
    assert [line.get_xdata().tolist() for line in lines[:2]] == [[1, 2, 3, 4, 5], [6, 7, 8]]
    assert [6, 6] in [list(line.get_xdata()) for line in ax.get_lines()]  # where the stage begins
    assert [8] in [list(line.get_xdata()) for line in ax.get_lines() if line.get_marker() == "o"]
    assert len({line.get_color() for line in lines}) == 1
    assert names_in(ax.get_legend()) == ["a", "b", "raw", "running median", "validation MAE", "next stage"]


def test_names_stand_in_a_legend_that_hides_no_line():
    figure = history({f"method {n}": RUN for n in range(9)})
    (ax,) = figure.axes
    assert not ax.texts, "no leaders, which look like data"
    figure.draw_without_rendering()
    legend = ax.get_legend().get_window_extent()
    assert legend.y1 < ax.xaxis.label.get_window_extent().y0 and legend.y0 >= 0
    lines = [line for line in ax.get_lines() if line.get_label().startswith("method")]
    assert len({(line.get_color(), str(line.get_linestyle())) for line in lines}) == 9


def test_other_quantities():
    ax = history(RUN, quantity="gradient_norm", log=False).axes[0]
    assert ax.get_ylabel() == "gradient norm" and ax.get_lines()[0].get_ydata()[0] == 1


def test_non_finite_losses_are_marked():
    ax = history(RUN | {"loss": [3.0, 2.0, np.nan, np.inf, 1.0]}).axes[0]
    assert "non-finite at update 3" in [text.get_text() for text in ax.texts]


def test_wrong_histories():
    with pytest.raises(ph.StateError, match="history 'a'.*'update' and 'loss'"):
        history({"a": {"update": [1]}})
    with pytest.raises(ph.StateError, match="equally long"):
        history({"update": [1, 2], "loss": [1.0]})
    with pytest.raises(ph.StateError, match="histories = {}: expected"):
        history({})
