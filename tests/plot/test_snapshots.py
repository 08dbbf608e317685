import matplotlib as mpl
import numpy as np
import pytest
from cases.plots import line, plane, vector_of
from phi.torch.flow import CenteredGrid

import phi_hybrid as ph
from phi_hybrid.plot import rollout


def images(figure):
    return [ax.images[0] for ax in figure.axes if ax.images]


def test_image_has_x_to_the_right_and_y_upwards():
    drawn = images(rollout(plane(), times=[1]))[0]
    assert drawn.origin == "lower" and drawn.get_extent() == [0, 4, 0, 3]
    x, y = np.arange(4) + 0.5, np.arange(3) + 0.5
    np.testing.assert_allclose(drawn.get_array(), x[None, :] + 10 * y[:, None] + 100)  # rows are y, columns x


def test_rows_are_solvers_with_differences_below_and_shared_scales():
    truth = plane()
    figure = rollout({"other": truth + 7, "truth": truth}, reference="truth", times=3)
    arrays, limits = zip(*[(i.get_array(), i.get_clim()) for i in images(figure)])
    assert len(arrays) == 9  # truth, other, other − truth
    np.testing.assert_allclose(arrays[1] + 7, arrays[4])
    for difference in arrays[6:]:
        np.testing.assert_allclose(difference, 7)
    assert set(limits[:6]) == {(5.5, 228.5)} and set(limits[6:]) == {(-7.0, 7.0)}
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["t = 0", "t = 1", "t = 2"]


def test_times_are_scaled_by_dt():
    figure = rollout(plane(5), times=[0, -1], dt=0.25)
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == ["t = 0", "t = 1"]


def test_lines_hold_the_values_of_each_solver():
    u = np.sin(2 * np.pi * (np.arange(8) + 0.5) / 8)[None] * np.arange(1, 4)[:, None]
    figure = rollout({"a": line(u), "b": line(u + 0.5)}, reference="a", times=3)
    values, apart = figure.axes[:3], figure.axes[3:]
    np.testing.assert_allclose(values[2].get_lines()[0].get_xdata(), (np.arange(8) + 0.5) / 8)
    np.testing.assert_allclose(values[2].get_lines()[0].get_ydata(), u[2])
    np.testing.assert_allclose(apart[1].get_lines()[0].get_ydata(), 0.5, rtol=1e-6)
    assert {ax.get_ylim() for ax in values} == {values[0].get_ylim()}
    assert {text.get_text() for text in values[2].texts} == {"a", "b"}


def test_a_blown_up_solver_does_not_set_the_scale():
    u = np.tile(np.sin(2 * np.pi * (np.arange(8) + 0.5) / 8), (4, 1))
    bad = u.copy()
    bad[2], bad[3, 5] = 1e9, np.inf
    for reference in ("good", None):
        figure = rollout({"good": line(u), "bad": line(bad)}, reference=reference, times=4)
        assert figure.axes[0].get_ylim()[1] < 1.2
        notes = [[text.get_text() for text in ax.texts] for ax in figure.axes[:4]]
        assert "bad: off scale" in notes[2] and "bad: non-finite" in notes[3]


def test_non_finite_cells_are_masked_and_named():
    figure = rollout({"good": plane(), "bad": CenteredGrid(plane().values / 0, 0, plane().bounds, x=4, y=3)}, times=1)
    bad = images(figure)[1]
    assert bad.get_array().mask.all()
    assert mpl.colors.to_hex(bad.get_cmap().get_bad()) == "#9a9a9a"
    assert "non-finite" in [text.get_text() for text in figure.axes[1].texts]


def test_example_selects_one_trajectory():
    u = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    drawn = rollout(line(u), times=[1], example=1).axes[0].get_lines()[0]
    np.testing.assert_allclose(drawn.get_ydata(), u[1, 1])


def plume(frames=3):
    """States of two parts on different grids."""
    smoke = plane(frames)
    return {"velocity": smoke * 2, "smoke": CenteredGrid(smoke, 0, smoke.bounds, x=8, y=6)}


def test_parts_of_states():
    """Of one state, of one per solver, and of tuples; solvers that know this part only may give it alone."""
    state = plume()
    expected = images(rollout(state["smoke"], times=2))
    for given, part in (
        (state, "smoke"),
        ({"a": state}, "smoke"),
        (tuple(state.values()), 1),
        ({"a": state["smoke"]}, None),
    ):
        for found, one in zip(images(rollout(given, part=part, times=2)), expected):
            np.testing.assert_array_equal(found.get_array(), one.get_array())
    both = images(rollout({"a": state, "b": state["smoke"] + 1}, part="smoke", reference="a", times=1))
    np.testing.assert_allclose(both[2].get_array(), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "part", "message"),
    [
        ({"a": plume()}, None, r"trajectory 'a' has the parts \['velocity', 'smoke'\].*part='velocity'"),
        ({"a": plume()}, "heat", r"trajectory 'a' has the parts .*part = 'heat'"),
        (tuple(plume().values()), 2, r"the trajectory has the parts \[0, 1\].*part = 2"),
        ({"a": {"inner": plume()}}, "inner", "part 'inner' of trajectory 'a' is a dict, expected a Field"),
    ],
)
def test_wrong_parts(given, part, message):
    with pytest.raises(ph.StateError, match=message):
        rollout(given, part=part)


def test_settings_and_pyplot_are_untouched(tmp_path):
    from matplotlib import pyplot

    before = dict(mpl.rcParams)
    rollout(plane(), title="heading").savefig(tmp_path / "x.png")
    assert dict(mpl.rcParams) == before and not pyplot.get_fignums()
    assert (tmp_path / "x.png").stat().st_size < 300 * 1024


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"reference": "exact"}, r"unknown reference 'exact'.*'a', 'b'"),
        ({"times": [0, 3]}, r"frame index \[3\] out of range.*3 frames"),
        ({"times": 0}, "times = 0"),
        ({"times": [0.5]}, r"times = \[0.5\]: expected"),
        ({"times": "all"}, "times = 'all': expected"),
        ({"dt": "0.1"}, "dt = '0.1': expected"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ph.StateError, match=message):
        rollout({"a": plane(), "b": plane()}, **arguments)


def test_wrong_trajectories():
    with pytest.raises(ph.StateError, match="no dim 'time'"):
        rollout(plane().time[0])
    with pytest.raises(ph.StateError, match="mismatching resolution.*'a'.*'b'"):
        rollout({"a": line(np.zeros((2, 4))), "b": line(np.zeros((2, 8)))})
    with pytest.raises(ph.StateError, match="mismatching bounds"):
        rollout({"a": line(np.zeros((2, 4))), "b": line(np.zeros((2, 4)), length=2.0)})
    with pytest.raises(ph.StateError, match="equally many frames"):
        rollout({"a": plane(2), "b": plane(3)})
    with pytest.raises(ph.StateError, match=r"example=2 out of range: dim 'trajectory'"):
        rollout(line(np.zeros((2, 3, 4))), example=2)
    with pytest.raises(ph.StateError, match="trajectory 'a' is a ndarray, expected a Field"):
        rollout({"a": np.zeros((3, 4))})
    with pytest.raises(ph.StateError, match="non-empty mapping"):
        rollout({})


def test_the_part_names_the_colour_bar():
    state = {"smoke": plane(), "velocity": CenteredGrid(vector_of(x=1.0, y=2.0), 0, x=4, y=3) * plane()}

    def label(**settings):
        return rollout({"a": state, "b": state}, reference="a", **settings).axes[-2].get_ylabel()

    assert label(part="smoke") == "smoke" and label(part="smoke", unit="g") == "smoke [g]"
    assert label(part="velocity", quantity="magnitude") == "|velocity|"
    assert label(part="velocity", quantity="y") == "velocity y"
    assert rollout((plane(), plane()), part=1).axes[-1].get_ylabel() == "u"
