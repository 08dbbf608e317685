import numpy as np
import pytest
from cases.plots import line, plane

import phi_hybrid as ph
from phi_hybrid.plot import spacetime


def test_x_runs_to_the_right_and_time_upwards():
    u = np.arange(3 * 4, dtype=float).reshape(3, 4)
    ax = spacetime(line(u, length=2.0), dt=0.5).axes[0]
    drawn = ax.images[0]
    np.testing.assert_allclose(drawn.get_array(), u)  # rows are times
    assert drawn.origin == "lower" and drawn.get_extent() == [0, 2, -0.25, 1.25]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "t")


def test_differences_stand_below_all_but_the_reference():
    u = np.arange(3 * 4, dtype=float).reshape(3, 4)
    figure = spacetime({"a": line(u - 1), "truth": line(u), "b": line(u + 2)}, reference="truth")
    upper, lower = figure.axes[:3], figure.axes[3:6]
    assert [ax.get_title() for ax in upper] == ["truth", "a", "b"]
    assert not lower[0].axison
    np.testing.assert_allclose(lower[1].images[0].get_array(), -1)
    np.testing.assert_allclose(lower[2].images[0].get_array(), 2)
    assert {ax.images[0].get_clim() for ax in upper} == {(0, 11)}
    assert {ax.images[0].get_clim() for ax in lower[1:]} == {(-2, 2)}


def test_part_of_a_state():
    u = np.arange(3 * 4, dtype=float).reshape(3, 4)
    drawn = spacetime((line(u), line(-u)), part=1).axes[0].images[0]
    np.testing.assert_allclose(drawn.get_array(), -u)


def test_planes_are_refused():
    with pytest.raises(ph.StateError, match="spacetime shows 1D"):
        spacetime(plane())
