"""Diffusion in Fourier space, staggered beside centered fields, implicit diffusion on faces, cell sizes, against solutions by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import pytest
import torch
from phi.geom import UniformGrid
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Field,
    Noise,
    StaggeredGrid,
    diffuse,
    extrapolation,
    field,
    math,
    spatial,
    vec,
    wrap,
)

from phi_hybrid import _compat, capture
from phi_hybrid.linear_solve import linear_solves

SIZES = {"y": 2.0, "x": 5.0, "z": 0.7}


@pytest.mark.parametrize("grid", [CenteredGrid, StaggeredGrid])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_waves_decay_in_fourier_space(grid: type, dims: int) -> None:
    """exp(−ν·k²·t) for sines on boxes of unlike cells, y before x."""
    names, shown = list(SIZES)[:dims], {n: 2 * np.pi / SIZES[n] for n in list(SIZES)[:dims]}

    def wave(points: math.Tensor) -> math.Tensor:
        return math.prod([math.sin(shown[n] * points.vector[n] + 0.3) for n in names], "0")

    with math.precision(64):
        u = grid(wave, PERIODIC, bounds=Box(**{n: SIZES[n] for n in names}), **{n: 8 for n in names})
        rate = 0.05 * sum(k**2 for k in shown.values())
        expected = u * np.exp(-rate * 0.4)
        math.assert_close(diffuse.fourier(u, 0.05, 0.4), expected, rel_tolerance=1e-12, abs_tolerance=1e-12)
        upstream = _compat.grid_defects._fourier_of_unit_cells(u, 0.05, 0.4)
        assert not math.close(math.real(upstream.values), expected.values, rel_tolerance=1e-3, abs_tolerance=1e-3)


def test_centered_values_are_taken_to_the_faces() -> None:
    v = StaggeredGrid(Noise(), PERIODIC, x=4, y=3)
    c = CenteredGrid(Noise(), PERIODIC, x=4, y=3)
    cells = c.values.numpy("x,y")
    at_faces = {"x": (np.roll(cells, 1, 0) + cells) / 2, "y": (np.roll(cells, 1, 1) + cells) / 2}
    for product in (v * c, c.at(v) * v):
        for name, value in at_faces.items():
            np.testing.assert_allclose(
                product.vector[name].values.numpy("x,y"), v.vector[name].values.numpy("x,y") * value, rtol=1e-6
            )
    by_index = _compat.grid_defects._combine_by_index(v, c, lambda a, b: a * b)
    assert not math.close(by_index.values, (v * c).values, rel_tolerance=1e-3)


def test_faces_that_only_one_field_stores_are_refused() -> None:
    v, c = StaggeredGrid(Noise(), 0, x=4, y=3), CenteredGrid(Noise(), ZERO_GRADIENT, x=4, y=3)
    with pytest.raises(ValueError, match=r"centered\.at\(staggered\)"):
        v + c


def test_implicit_diffusion_on_faces_of_equal_shapes() -> None:
    """Each component by a dense matrix of its own: one side open, one closed, so that both have 4 × 4 faces."""

    def matrix(walls: tuple[bool, bool]) -> np.ndarray:
        a = 2 * np.eye(4) - np.eye(4, k=1) - np.eye(4, k=-1)
        for end, wall in zip((0, -1), walls):
            a[end, end] -= not wall  # a wall keeps the value 0 outside, an open side repeats the last value
        return a

    with linear_solves():
        v = StaggeredGrid(Noise(), {"x-": 0, "x+": ZERO_GRADIENT, "y-": ZERO_GRADIENT, "y+": 0}, x=4, y=4)
        result = diffuse.implicit(v, 0.3, 0.5)
    along_x, along_y = matrix((True, False)), matrix((False, True))
    for name in "xy":
        system = np.eye(16) + 0.15 * (np.kron(along_x, np.eye(4)) + np.kron(np.eye(4), along_y))
        before = v.values[{"~vector": name}].numpy("x,y")
        after = np.linalg.solve(system, before.ravel()).reshape(4, 4)
        np.testing.assert_allclose(result.values[{"~vector": name}].numpy("x,y"), after, rtol=0, atol=3e-7)


def test_implicit_diffusion_next_to_a_wall_of_a_tensor() -> None:
    wall = math.tensor(0.7)
    u = CenteredGrid(Noise(), {"x-": wall, "x+": ZERO_GRADIENT}, x=5)
    plain: Field = CenteredGrid(u.values, {"x-": 0.7, "x+": ZERO_GRADIENT}, x=5)
    with linear_solves():
        found, expected = (diffuse.implicit(f, 0.3, 0.5) for f in (u, plain))
    math.assert_close(found.values, expected.values, abs_tolerance=1e-6)
    a = 2 * np.eye(5) - np.eye(5, k=1) - np.eye(5, k=-1)
    a[-1, -1] = 1
    rhs = u.values.numpy("x") + 0.15 * 0.7 * np.eye(5)[0]
    np.testing.assert_allclose(found.values.numpy("x"), np.linalg.solve(np.eye(5) + 0.15 * a, rhs), atol=1e-5)


def single_precision_on_an_exact_box() -> Field:
    with math.precision(64):  # in which alone a box is 0.7 long
        bounds = Box(x=0.7)
    return CenteredGrid(Noise(), PERIODIC, bounds, x=7)


@pytest.mark.parametrize("upstream", [True, False])
def test_cell_sizes_have_the_precision_in_which_they_are_asked_for(
    upstream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if upstream:
        for name in ("dx", "center"):
            cached = cached_property(getattr(UniformGrid, name).func)
            cached.__set_name__(UniformGrid, name)
            monkeypatch.setattr(UniformGrid, name, cached)
    single = single_precision_on_an_exact_box()
    places = 0.1 * (np.arange(7) + 0.5)
    _ = single.geometry.dx, single.center
    with math.precision(64):
        size, centers = single.geometry.dx.numpy("vector").astype(float), single.center.numpy("x,vector")
    errors = np.abs(size - 0.1).max(), np.abs(centers[:, 0] - places).max()
    assert all((error > 1e-10) == upstream for error in errors), errors


def test_captured_steps_have_the_places_of_their_precision() -> None:
    single = single_precision_on_an_exact_box()
    block = capture(lambda u: u.values * u.center.vector["x"], single)
    values = torch.linspace(0, 1, 7, dtype=torch.float64)
    found = block(single.with_values(wrap(values, spatial("x"))))
    with math.precision(64):
        torch.testing.assert_close(found.native("x"), values * 0.1 * (torch.arange(7) + 0.5), rtol=1e-14, atol=0)


# --- curl ---


def _flow_2d(points: math.Tensor) -> math.Tensor:
    x, y = points.vector["x"], points.vector["y"]
    return vec(x=math.sin(2 * np.pi * y / 3), y=math.cos(np.pi * x))


def _curl_2d(x: math.Tensor, y: math.Tensor) -> math.Tensor:
    return -np.pi * math.sin(np.pi * x) - 2 * np.pi / 3 * math.cos(2 * np.pi * y / 3)


def _flow_3d(points: math.Tensor) -> math.Tensor:
    x, y, z = (points.vector[n] for n in "xyz")
    return vec(x=math.sin(np.pi * z), y=math.sin(np.pi * x), z=math.sin(np.pi * y))


def _curl_3d(x: math.Tensor, y: math.Tensor, z: math.Tensor) -> math.Tensor:
    return np.pi * vec(x=math.cos(np.pi * y), y=math.cos(np.pi * z), z=math.cos(np.pi * x))


def _curl_error(curl: Callable, grid: type, cells: int, dims: int) -> float:
    bounds = Box(x=2.0, y=3.0) if dims == 2 else Box(x=2.0, y=2.0, z=2.0)
    flow, exact = (_flow_2d, _curl_2d) if dims == 2 else (_flow_3d, _curl_3d)
    with math.precision(64):
        found = curl(grid(flow, PERIODIC, bounds, **dict.fromkeys("xyz"[:dims], cells)))
        expected = exact(*(found.center.vector[n] for n in "xyz"[:dims]))
        return float(math.max(abs(found.values - expected)))


@pytest.mark.parametrize("grid, dims", [(CenteredGrid, 2), (StaggeredGrid, 2), (StaggeredGrid, 3)])
def test_curl_is_of_second_order(grid: type, dims: int) -> None:
    errors = [_curl_error(field.curl, grid, cells, dims) for cells in (8, 16)]
    assert errors[1] < 0.3 * errors[0]
    upstream = _curl_error(_compat.grid_defects._curl_padded_by_others, grid, 16, dims)
    assert (upstream > 10 * errors[1]) == (grid is CenteredGrid)


def test_curl_at_a_moving_lid() -> None:
    """−∂u/∂y between 0 in the last cells and 1 in those beyond the lid, a quarter apart."""
    cavity = StaggeredGrid(0, {"x": 0, "y-": 0, "y+": vec(x=1.0, y=0)}, Box(x=1.0, y=1.0), x=4, y=4)
    expected = np.zeros((5, 5))
    expected[-1] = -4
    np.testing.assert_allclose(field.curl(cavity).values.numpy("y,x"), expected, atol=1e-6)
    upstream = _compat.grid_defects._curl_padded_by_others(cavity).values.numpy("y,x")
    assert not upstream.any()  # takes the lid's velocity across it


@pytest.mark.parametrize("grid", [CenteredGrid, StaggeredGrid])
def test_curl_is_captured(grid: type) -> None:
    u = grid(Noise(vector="x,y"), {"x": PERIODIC, "y": 0}, Box(x=2.0, y=3.0), x=5, y=4)
    assert (capture(field.curl, u)(u).values.numpy("x,y") == field.curl(u).values.numpy("x,y")).all()


def test_the_last_of_two_constant_sides_fills_the_corners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sides' hashes are, which are addresses, as PhiML numbers them by the order of a set."""
    orders = [("x", "y"), ("y", "x")]
    sides = {"x": extrapolation.ConstantExtrapolation(1.0), "y": extrapolation.ConstantExtrapolation(2.0)}
    ones = math.ones(spatial(x=2, y=2))

    def corners(pad: Callable, salt: int) -> list[float]:
        monkeypatch.setattr(extrapolation.ConstantExtrapolation, "__hash__", lambda side: int(side.value) ^ salt)
        mixed = [extrapolation.combine_sides(**{dim: sides[dim] for dim in order}) for order in orders]
        return [float(pad(m, ones, {"x": (1, 1), "y": (1, 1)})[{"x": 0, "y": 0}]) for m in mixed]

    assert corners(_compat.grid_defects._pad_in_any_order, 0) != corners(_compat.grid_defects._pad_in_any_order, 3)
    assert corners(_compat.grid_defects._pad, 0) == corners(_compat.grid_defects._pad, 3) == [2.0, 1.0]
