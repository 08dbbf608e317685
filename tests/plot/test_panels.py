from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text

from phi_hybrid.plot._panels import calm_range, difference_scale, line_limits, outer_labels, panel_grid, value_scale
from phi_hybrid.plot._style import spread


def test_signed_data_get_symmetric_limits_and_positive_data_do_not():
    signed = value_scale([np.array([[-1.0, 3.0]])], None, False)
    assert (signed.low, signed.high, signed.cmap) == (-3, 3, "RdBu_r")
    assert value_scale([np.array([[1.0, 3.0]])], None, False)[:3] == (1, 3, "viridis")
    assert value_scale([np.array([[1.0, 3.0]])], None, True)[:2] == (-3, 3)


def test_the_reference_sets_the_limits_and_the_rest_is_marked_as_exceeding():
    scale = value_scale([np.array([[0.0, 1.0]]), np.array([[0.5, 99.0]])], np.array([[0.0, 1.0]]), False)
    assert (scale.low, scale.high, scale.extend) == (0, 1, "max")


def test_constant_and_empty_data_have_limits():
    assert value_scale([np.full((2, 3), 4.0)], None, False)[:2] == (2, 6)
    assert value_scale([np.full((2, 3), np.nan)], None, False)[:2] == (0, 1)


def test_decaying_flows_keep_their_initial_range():
    decay = np.array([1000.0, 10, 1, 1, 1, 1])[:, None] * [0, 1]
    assert calm_range([decay]) == (0, 1000)
    assert calm_range([decay[::-1]]) == (0, 10)


def test_differences_are_capped_at_the_amplitude_of_the_reference():
    assert difference_scale([np.array([[5.0], [6.0]])], np.array([[0.0, 4.0]]))[:2] == (-2, 2)
    assert difference_scale([np.zeros((2, 2))], np.array([[0.0, 4.0]]))[:2] == (-1, 1)


def test_an_accurate_solver_does_not_shrink_the_scale_of_the_others():
    accurate, coarse = np.full((4, 2), 0.01), np.arange(8.0).reshape(4, 2) / 8
    assert difference_scale([accurate, accurate, coarse], np.array([[0.0, 4.0]]))[:2] == (-0.875, 0.875)


def test_axes_widen_for_lines_beyond_the_scale_but_not_for_diverging_ones():
    scale = value_scale([np.array([[0.0, 1.0]])], None, False)
    for high, expected in ((1.2, 1.26), (3.0, 1.56)):
        limits = line_limits([np.array([[0.0, 1.0]]), np.array([[0.0, high]])], scale)
        np.testing.assert_allclose(limits, (-0.06, expected))
    assert line_limits([np.array([[0.0, 1.0]]), np.array([[9.0, np.nan]])], scale)[1] == 1.06


def test_labels_keep_their_order_and_distance():
    wanted = np.array([0.5, 0.52, 0.9, 0.51])
    heights = spread(wanted, 0.1)
    assert (np.argsort(heights) == np.argsort(wanted)).all()
    assert np.diff(np.sort(heights)).min() > 0.0999
    np.testing.assert_allclose(heights[[0, 3, 1]], [0.41, 0.51, 0.61])
    assert heights[2] == 0.9 and spread(np.array([1.0, 1.0]), 0.2).max() <= 1


def test_tick_labels_of_neighbouring_panels_do_not_meet() -> None:
    grid = panel_grid(2, 3, 1.0, right=0.2, title=None)
    for ax in (ax for row in grid.axes for ax in row):
        ax.set(xlim=(0, 100), ylim=(0, 200))
    outer_labels(grid.axes, "x", "y")
    grid.figure.canvas.draw()
    lowest, left = grid.axes[-1], [row[0] for row in grid.axes]
    along = [label.get_window_extent() for ax in lowest for label in ax.get_xticklabels() if _is_shown(label, ax)]
    upwards = [label.get_window_extent() for ax in left for label in ax.get_yticklabels() if _is_shown(label, ax)]
    assert len(along) > 6 and len(upwards) > 4
    for boxes in (along, upwards):
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def _is_shown(label: Text, ax: Axes) -> bool:
    x, y = label.get_position()
    return (
        bool(label.get_text())
        and ax.get_xlim()[0] <= x <= ax.get_xlim()[1]
        and ax.get_ylim()[0] <= y <= ax.get_ylim()[1]
    )
