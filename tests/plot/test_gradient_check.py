import numpy as np
import pytest
from cases import simulators
from cases.small import line
from phi.torch.flow import math

import phi_hybrid as ph
from phi_hybrid.plot import gradient_growth


def check(step, **settings):
    return ph.check_gradients(step, line(0), steps=6, directions=2, points=1, **settings)


def test_growth_and_differences_are_drawn():
    found = check(simulators.growing)
    left, right = gradient_growth(found).axes
    backwards, forwards = left.get_lines()
    np.testing.assert_allclose(backwards.get_ydata(), 1.5 ** np.arange(7), rtol=1e-9)
    np.testing.assert_allclose(forwards.get_ydata(), 1.5 ** np.arange(7), rtol=1e-9)
    assert len(right.get_lines()[0].get_ydata()) == len(found.arguments[0].agreements[0].curve)
    assert {t.get_text() for t in left.texts} == {"backwards", "forwards"}


def test_several_checks_and_those_without_growth(tmp_path):
    checks = {
        "wrong": check(simulators.detached),
        "loss": check(lambda u: math.sum(u.values**2, u.values.shape)),
        "root": check(simulators.rooted),
    }
    figure = gradient_growth(checks)
    assert {"wrong", "loss", "root"} <= {t.get_text() for t in figure.axes[1].texts}
    figure.savefig(tmp_path / "figure.png")


def test_eight_checks_are_told_apart():
    """By colours, and dashes where these come to an end; backwards from forwards by their width."""
    found = check(simulators.growing)
    figure = gradient_growth({f"simulator {n}": found for n in range(8)})
    left, right = figure.axes
    for lines in (left.get_lines()[::2], left.get_lines()[1::2], right.get_lines()):
        assert len({(line.get_color(), str(line.get_linestyle())) for line in lines}) == 8
    assert [line.get_linewidth() for line in left.get_lines()[:2]] == [1.5, 0.7]
    legends = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in figure.axes]
    assert legends == [["backwards", "forwards", "all directions"], ["median", "all directions"]]


def test_something_else_is_refused():
    with pytest.raises(ph.StateError, match="check_gradients returns"):
        gradient_growth(3)
    with pytest.raises(ph.StateError, match="check_gradients returns"):
        gradient_growth({})
