import numpy as np
import pytest
import torch
from cases.plots import line
from matplotlib.figure import Figure
from phi.torch.flow import PERIODIC, Box, CenteredGrid, batch, math, spatial, tensor, vec

import phi_hybrid as ph
from phi_hybrid import plot

ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
CENTRE = np.array([1.0, -2.0, 0.5, 3.0])


def states(points):
    """Points (iteration, 2) of a tilted plane as 1D states of four cells."""
    points = np.asarray(points, dtype=np.float64)
    values = CENTRE + points @ ROTATION[:2]
    return CenteredGrid(tensor(values, batch("iteration"), spatial("x")), PERIODIC, Box(x=1.0), x=4)


def bowl(u):
    """Squared distance to the centre, plus 1."""
    return 1 + math.l2_loss(u.values - tensor(CENTRE, spatial("x"))) * 2


SPIRAL = [(4, 0), (0, 1), (-3, 0), (0, -0.7), (1, 0)]


def tracks(ax):
    return [one.get_xydata() for one in ax.get_lines() if one.get_marker() == "o"]


def test_paths_keep_their_distances_in_the_plane_of_their_components():
    """All iterates lie in one plane, so that projection loses nothing: distances and the loss are as in space."""
    with math.precision(64):
        figure = plot.descent({"search": states(SPIRAL)}, bowl, cells=9)
    (drawn,) = tracks(figure.axes[0])
    apart = lambda p: np.linalg.norm(p[:, None] - p[None], axis=-1)  # noqa: E731
    np.testing.assert_allclose(apart(drawn), apart(np.array(SPIRAL)), atol=1e-9)
    labels = figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    a, b = np.array(SPIRAL, float).T
    shares = np.linalg.eigvalsh(np.cov(a, b))[::-1]
    for n, (label, share) in enumerate(zip(labels, shares / shares.sum())):
        assert label == f"component {n + 1} ({100 * share:.0f} % of the variance)"


def test_the_image_is_the_loss_in_the_plane():
    with math.precision(64):
        figure = plot.descent({"search": states(SPIRAL)}, bowl, marks={"truth": states([(0, 0)]).iteration[0]}, cells=9)
    ax = figure.axes[0]
    (mesh,) = [c for c in ax.collections if hasattr(c, "get_coordinates")]
    corners, shades = mesh.get_coordinates(), mesh.get_array().reshape(9, 9)
    (star,) = [one.get_xydata()[0] for one in ax.get_lines() if one.get_marker() == "*"]
    expected = np.log10(1 + ((corners - star) ** 2).sum(-1))
    np.testing.assert_allclose(shades, expected, atol=1e-9)
    assert [c.get_ylabel() for c in figure.axes[1:]] == ["log₁₀ loss"]


def test_several_paths_staggered_states_and_given_axes():
    """Components of a staggered state differ in shape; torch losses will do."""
    from phi.torch.flow import StaggeredGrid

    def path(turn):
        frames = [StaggeredGrid(vec(x=float(n), y=turn * n**2), 0, x=3, y=2) for n in range(4)]
        return math.stack(frames, batch("iteration"))

    ax = Figure(figsize=(4, 3)).add_subplot()
    seen = []

    def loss(u):
        seen.append(u.shape.get_size("iteration"))
        return torch.linspace(0, 1, seen[-1])

    figure = plot.descent({"left": path(-1.0), "right": path(1.0)}, loss, cells=5, ax=ax, quantity="error")
    assert figure is ax.figure and seen == [25] and len(tracks(ax)) == 2
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["left", "right"]
    low, high = ax.get_xlim()
    for track in tracks(ax):
        assert low < track[:, 0].min() and track[:, 0].max() < high


@pytest.mark.parametrize(
    "paths, message",
    [
        ({}, "paths = {}: expected"),
        ({"a": states([(0, 0), (1, 1), (2, 2)])}, "lie on a line"),
        ({"a": states([(0, 0)])}, "lie on a line"),
        ({"a": states(SPIRAL), "b": line([[0.0] * 5] * 3)}, "batch dims \\['time'\\], expected 'iteration' alone"),
        (
            {"a": states(SPIRAL), "b": math.rename_dims(line([[0.0] * 5] * 3), "time", batch("iteration"))},
            "of another kind",
        ),
    ],
)
def test_paths_that_span_no_plane_or_do_not_fit(paths, message):
    with pytest.raises(ph.StateError, match=message):
        plot.descent(paths, bowl)
