"""One test per workaround that fails once upstream has mended the defect, and tests that ours is right."""

from __future__ import annotations

import json
import math as python_math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Cuboid,
    Field,
    Noise,
    Obstacle,
    Solve,
    Sphere,
    StaggeredGrid,
    advect,
    batch,
    channel,
    diffuse,
    dual,
    extrapolation,
    fluid,
    math,
    spatial,
    vec,
    wrap,
)
from phiml.backend.torch._torch_backend import TorchBackend
from phiml.math import Tensor as PhiTensor
from phiml.math._lin_trace import LinTracer

import phi_hybrid as ph
from phi_hybrid import _compat

torch.set_num_threads(1)

INFLOW = {"x": ZERO_GRADIENT, "y-": vec(x=0, y=1.0), "y+": ZERO_GRADIENT}
BOUNDARIES_1D: dict[str, Any] = {
    "periodic": PERIODIC,
    "closed": 0,
    "open": ZERO_GRADIENT,
    "inflow": {"x-": vec(x=1.0), "x+": ZERO_GRADIENT},
}
SCHEMES = {"semi_lagrangian": advect.semi_lagrangian, "mac_cormack": advect.mac_cormack}


# --- single cells ---


def _row() -> PhiTensor:
    """0, 1, 2, 3 along x, a single cell along y."""
    return math.wrap(torch.arange(4.0).reshape(4, 1).requires_grad_(), spatial("x,y"))


def test_upstream_single_cells_divide_by_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coordinates of NaN, with which torch writes outside of its memory in backward: the call alone is looked at."""
    monkeypatch.setattr(TorchBackend, "grid_sample", _compat.defects._grid_sample_2d_3d)
    seen = []
    sample = torch.nn.functional.grid_sample
    monkeypatch.setattr(torch.nn.functional, "grid_sample", lambda v, c, **kw: seen.append(c) or sample(v, c, **kw))
    math.grid_sample(_row(), vec(x=wrap([1.0, 2.0], spatial("p")), y=0.0), ZERO_GRADIENT)
    assert seen and not torch.isfinite(seen[0]).all()


@pytest.mark.parametrize(("boundary", "outside"), [(ZERO_GRADIENT, 1.0), (extrapolation.ZERO, 0.0)])
def test_single_cells_are_interpolated(boundary: extrapolation.Extrapolation, outside: float) -> None:
    """Linear between the row and what is beyond: 1.5 at x = 1.5 in the row, `outside` times that one cell away."""
    row, distance = _row(), torch.tensor([0.0, 0.5, -0.25])
    weights = 1 - distance.abs() * (1 - outside)
    values = math.grid_sample(row, vec(x=1.5, y=wrap(distance, spatial("p"))), boundary).native()
    assert values.tolist() == pytest.approx((1.5 * weights).tolist())
    (gradient,) = torch.autograd.grad(values.sum(), row.native("x,y"))
    half = 0.5 * float(weights.sum())
    assert gradient.flatten().tolist() == pytest.approx([0, half, half, 0])


# --- padding with tensors ---


def _derivatives_of_padding(value: float) -> list[torch.Tensor]:
    """In forward mode, and in reverse mode for ones behind all values."""
    u, t = math.wrap(torch.zeros(3), spatial("x")), torch.tensor(value)
    with torch.autograd.forward_ad.dual_level():
        dual_number = torch.autograd.forward_ad.make_dual(t, torch.tensor(1.0))
        padded = math.pad(u, {"x": (1, 1)}, wrap(dual_number)).native()
        tangent = torch.autograd.forward_ad.unpack_dual(padded).tangent
    t.requires_grad_()
    padded = math.pad(u, {"x": (1, 1)}, wrap(t)).native()
    return [tangent, *torch.autograd.grad(padded, t, torch.ones(5))]


def test_upstream_padding_takes_the_value_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchBackend, "pad", _compat.defects._pad_with_number)
    tangent, _ = _derivatives_of_padding(2.0)
    assert tangent is None or not tangent.any()


def test_padding_with_a_tensor_has_derivatives() -> None:
    tangent, gradient = _derivatives_of_padding(2.0)
    assert tangent.tolist() == [1, 0, 0, 0, 1] and gradient == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_padding_with_a_tensor_equals_padding_with_its_value(dtype: torch.dtype) -> None:
    u = math.wrap(torch.arange(6).reshape(2, 3).to(torch.float32), spatial("x,y"))
    for value in (2, -1):
        padded = math.pad(u, {"x": (1, 0), "y": (2, 1)}, wrap(torch.tensor(value, dtype=dtype)))
        assert padded.dtype == u.dtype
        math.assert_close(padded, math.pad(u, {"x": (1, 0), "y": (2, 1)}, value), rel_tolerance=0)
    whole = math.wrap(torch.arange(3), spatial("x"))
    assert math.pad(whole, {"x": (1, 1)}, wrap(torch.tensor(0.5))).dtype == whole.dtype  # as upstream


# --- sides with equal values ---


def _gradients_of_both_sides() -> list[float]:
    """∂/∂(lower, upper) of the sum of a padded line whose two sides happen to have the same value."""
    values = torch.tensor([0.5, 0.5], requires_grad=True)
    sides = extrapolation.combine_sides({"x-": wrap(values[0]), "x+": wrap(values[1])})
    padded = math.pad(math.wrap(torch.zeros(3), spatial("x")), {"x": (1, 1)}, sides)
    return torch.autograd.grad(padded.native().sum(), values)[0].tolist()


def test_upstream_equal_sides_share_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extrapolation.ConstantExtrapolation, "__eq__", _compat.defects._equal_by_value)
    assert _gradients_of_both_sides() == [2.0, 0.0]


def test_equal_sides_have_gradients_of_their_own() -> None:
    assert _gradients_of_both_sides() == [1.0, 1.0]


def test_boundary_values_are_equal_by_value_unless_they_are_inputs() -> None:
    first, second = (extrapolation.ConstantExtrapolation(wrap(torch.tensor(0.5))) for _ in range(2))
    assert first == second == extrapolation.ConstantExtrapolation(0.5)
    with _compat.distinct_boundary_values():
        assert first == first and first != second and first != extrapolation.ConstantExtrapolation(0.5)
        assert extrapolation.ConstantExtrapolation(0.5) == extrapolation.ConstantExtrapolation(0.5)
    trainable = extrapolation.ConstantExtrapolation(wrap(torch.tensor(0.5, requires_grad=True)))
    assert trainable == trainable and trainable != first and trainable != PERIODIC and hash(trainable) == hash(first)


# --- rotated boxes ---


def test_upstream_boxes_look_at_their_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = Cuboid(vec(x=0.0, y=0.0), x=1, y=2).rotated(wrap(torch.tensor(0.5)))
    assert ph.capture(lambda box: box.rotated(0.25), turned)
    monkeypatch.setattr(Box, "is_axis_aligned", property(_compat.defects._compare_rotation))
    with pytest.raises(ph.errors.CaptureError, match="condition"):
        ph.capture(lambda box: box.rotated(0.25), turned)


def test_boxes_know_that_they_are_rotated() -> None:
    box = Cuboid(vec(x=0.0, y=0.0), x=1, y=2)
    assert box.is_axis_aligned.all
    for angle in (0.0, 0.5, wrap(torch.tensor(0.5)), wrap([0.0, 0.5], batch("b"))):
        assert not box.rotated(angle).is_axis_aligned.all
    quarters = box.rotated(python_math.pi / 4).rotated(wrap(torch.tensor(python_math.pi / 4)))
    where = vec(x=wrap([0.9, 0.1], batch("p")), y=wrap([0.1, 0.9], batch("p")))
    assert quarters.lies_inside(where).numpy("p").tolist() == [True, False]


# --- 1D interpolation ---


def _line(values: Any, kind: str) -> Field:
    """Velocity in 1D, 9 cells of width 0.25, with displacements of up to two cells and across the boundary."""
    return CenteredGrid(
        wrap(values, batch("b"), spatial("x"), channel(vector="x")), BOUNDARIES_1D[kind], bounds=Box(x=2.25)
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_upstream_1d_advection_on_torch_crashes(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchBackend, "grid_sample", _compat.defects._grid_sample_2d_3d)
    u = _line(torch.randn(2, 9, 1), "periodic")
    with pytest.raises(RuntimeError, match="grid_sampler"):
        SCHEMES[scheme](u, u, 0.2)


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 1e-6), (64, 1e-14)])
@pytest.mark.parametrize("kind", BOUNDARIES_1D)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_1d_advection_equals_numpy(scheme: str, kind: str, bits: int, tolerance: float) -> None:
    values = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 9, 1)).astype(f"float{bits}")
    with math.precision(bits):
        with math.NUMPY:
            u = _line(values, kind)
            expected = SCHEMES[scheme](u, u, 0.8).values
        u = _line(torch.as_tensor(values), kind)
        found = SCHEMES[scheme](u, u, 0.8).values
        assert expected.default_backend.name == "numpy" and found.default_backend.name == "torch"
        difference = found.numpy("b,x,vector") - expected.numpy("b,x,vector")
        assert np.abs(difference).max() < tolerance
        assert np.abs(found.numpy("b,x,vector") - values).max() > 0.1


def test_1d_semi_lagrangian_is_linear_interpolation_at_the_foot() -> None:
    values = torch.randn(1, 9, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with math.precision(64):
        u = _line(values, "periodic")
        found = advect.semi_lagrangian(u, u, 0.2).values.native("b,x,vector")
    v = values[0, :, 0].tolist()
    for i in range(9):
        foot = i - v[i] * 0.2 / 0.25
        low = python_math.floor(foot)
        expected = v[low % 9] * (low + 1 - foot) + v[(low + 1) % 9] * (foot - low)
        assert found[0, i, 0].item() == pytest.approx(expected, abs=1e-13)


def test_2d_interpolation_is_left_to_torch() -> None:
    grid = torch.randn(1, 4, 5, 2)
    points = torch.rand(1, 6, 2) * 3
    assert torch.equal(
        _compat.TORCH.grid_sample(grid, points, "boundary"),
        _compat.defects._grid_sample_2d_3d(_compat.TORCH, grid, points, "boundary"),
    )
    assert _compat.TORCH.grid_sample(grid[..., 0:1, :], points[..., :1], "boundary") is NotImplemented


# --- the limiter of MacCormack on staggered grids ---


def _shifted_sine_error(direction: float, dim: str) -> float:
    """Maximum error after 8 steps at a CFL number of 0.4; both components carry a sine along `dim`.

    First-order upwinding damps the wave by exp(-(2π/n)² 0.4 (1 - 0.4) / 2 per step), an error of 0.036.
    """
    n, steps = 32, 8
    other = "y" if dim == "x" else "x"
    grid: dict[str, Any] = {dim: n, other: 3, "bounds": Box(**{dim: 1.0, other: 0.1})}

    def sine(shift: float) -> StaggeredGrid:
        def wave(x: Any) -> Any:
            s = math.sin(2 * python_math.pi * (x.vector[dim] - shift))
            return vec(x=s, y=s)

        return StaggeredGrid(wave, PERIODIC, **grid)

    with math.precision(64):
        velocity = StaggeredGrid(vec(**{dim: direction, other: 0.0}), PERIODIC, **grid)
        u = sine(0.0)
        for _ in range(steps):
            u = advect.mac_cormack(u, velocity, 0.4 / n)
        difference = u - sine(direction * 0.4 / n * steps)
        return max(float(math.max(abs(difference.vector[d].values))) for d in "xy")


@pytest.mark.parametrize("dim", ["x", "y"])
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_staggered_mac_cormack_shifts_a_sine(direction: float, dim: str) -> None:
    assert _shifted_sine_error(direction, dim) < 0.012  # a third of the first-order error


def test_upstream_staggered_mac_cormack_is_wrong_in_one_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Field, "closest_values", _compat.defects._closest_values_centered)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert max(_shifted_sine_error(1.0, "x"), _shifted_sine_error(-1.0, "x")) > 0.3


def test_upstream_staggered_mac_cormack_crashes_with_vector_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Field, "closest_values", _compat.defects._closest_values_centered)
    u = StaggeredGrid(Noise(), INFLOW, x=5, y=6)
    with pytest.raises(AssertionError, match="Cannot pad tensor"):
        advect.mac_cormack(u, u, 0.1)


def test_staggered_mac_cormack_with_vector_boundary() -> None:
    uniform = StaggeredGrid(vec(x=0.0, y=1.0), INFLOW, x=5, y=6)
    after = advect.mac_cormack(uniform, uniform, 0.3)
    for d in "xy":  # a uniform flow stays as it is
        math.assert_close(after.vector[d].values, uniform.vector[d].values, abs_tolerance=1e-6)
    noisy = uniform + StaggeredGrid(Noise(), {**INFLOW, "y-": 0}, x=5, y=6)
    after = advect.mac_cormack(noisy, noisy, 0.3)
    assert after.boundary == noisy.boundary
    for d in "xy":
        values = after.vector[d].values
        assert values.shape == noisy.vector[d].values.shape and math.is_finite(values).all


@pytest.mark.parametrize("kind", ["periodic", "closed", "open", "inflow"])
def test_limits_are_the_neighbouring_faces(kind: str) -> None:
    """Interpolated values lie between the limits, which are values of faces or of the boundary."""
    boundary: Any = {"periodic": PERIODIC, "closed": 0, "open": ZERO_GRADIENT, "inflow": INFLOW}[kind]
    u = StaggeredGrid(Noise(), boundary, x=5, y=6)
    points = advect.euler(u, u, 0.37)
    limits = u.closest_values(points)
    interpolated = advect.semi_lagrangian(u, u, -0.37).values  # samples at exactly these points
    for d in "xy":
        component, sample = limits[{"~vector": d}], interpolated[{"~vector": d}]
        low, high = (f(component, "closest_x,closest_y") for f in (math.min, math.max))
        assert ((sample >= low - 1e-6) & (sample <= high + 1e-6)).all
        faces = u.vector[d].values
        allowed = set(np.round(faces.numpy(faces.shape).ravel(), 5)) | {0.0, 1.0}
        assert set(np.round(component.numpy(component.shape).ravel(), 5)) <= allowed


def test_centred_limits_are_upstream_s() -> None:
    u = CenteredGrid(Noise(channel(vector="x,y")), ZERO_GRADIENT, x=5, y=6)
    points = u.points + 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        math.assert_close(
            u.closest_values(points), _compat.defects._closest_values_centered(u, points), abs_tolerance=0
        )


# --- advection on staggered grids in 1D ---


def test_upstream_1d_staggered_advection_gains_a_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result has dims `vector` and `~vector`; once it has not, `_with_values` can go."""
    u = StaggeredGrid(Noise(), PERIODIC, x=7)
    monkeypatch.setattr(Field, "with_values", _compat.defects._with_values_as_given)
    assert set(advect.semi_lagrangian(u, u, 0.1).values.shape.names) == {"x", "vector", "~vector"}


@pytest.mark.parametrize("speed", [1.0, -1.0])
@pytest.mark.parametrize(("scheme", "order"), [(advect.semi_lagrangian, 0.95), (advect.mac_cormack, 1.2)])
def test_1d_staggered_advection_converges(scheme: Callable, order: float, speed: float) -> None:
    """A sine carried at constant speed for one time unit, against the shifted sine."""
    errors = []
    with math.precision(64):
        for cells in (32, 64, 128):
            grid = dict(x=cells, bounds=Box(x=2 * np.pi))
            u, v = StaggeredGrid(lambda x: math.sin(x), PERIODIC, **grid), StaggeredGrid(speed, PERIODIC, **grid)
            for _ in range(cells // 4):
                u = scheme(u, v, 4 / cells)
            exact = np.sin(np.arange(cells) * 2 * np.pi / cells - speed)
            errors.append(np.abs(u.values.numpy(["x", "~vector"])[:, 0] - exact).max())
    assert errors[0] < 0.04 and np.log2(errors[0] / errors[1]) > order and np.log2(errors[1] / errors[2]) > order


# --- implicit diffusion ---


def _axis(cells: int, spacing: float, kind: str) -> np.ndarray:
    """Second differences with zeros beyond both ends, or with their neighbours repeated."""
    matrix = np.diag(-2.0 * np.ones(cells)) + np.diag(np.ones(cells - 1), 1) + np.diag(np.ones(cells - 1), -1)
    if kind == "open":
        matrix[0, 0] = matrix[-1, -1] = -1.0
    return matrix / spacing**2


STAGGERED: dict[str, Any] = {"closed": 0, "open": ZERO_GRADIENT, "inflow": INFLOW}


@pytest.mark.parametrize("kind", STAGGERED)
def test_upstream_implicit_diffusion_on_faces_fails(kind: str) -> None:
    u = StaggeredGrid(Noise(), STAGGERED[kind], x=6, y=5)
    with pytest.raises(ValueError, match="'idx'"):
        _compat.defects._implicit_on_one_grid(u, 0.1, 0.5)


@pytest.mark.parametrize("solves", [True, False], ids=["linear_solves", "PhiFlow"])
@pytest.mark.parametrize("kind", ["closed", "open"])
def test_implicit_diffusion_on_faces_solves_for_each_component(kind: str, solves: bool) -> None:
    cells, spacing = {"x": 6, "y": 5}, {"x": 0.5, "y": 0.25}
    with math.precision(64):
        box = Box(**{n: cells[n] * spacing[n] for n in "xy"})
        u = StaggeredGrid(Noise(batch(b=2)), STAGGERED[kind], box, **cells)
        with ph.linear_solve.linear_solves() if solves else math.precision(64):
            found = diffuse.implicit(u, 0.1, 0.5, Solve("CG", 1e-13, 1e-13))
        assert found.boundary == u.boundary
        for name in "xy":
            values = u.values[{"~vector": name}].numpy("b,x,y")
            nx, ny = values.shape[1:]
            laplace = np.kron(_axis(nx, 0.5, kind), np.eye(ny)) + np.kron(np.eye(nx), _axis(ny, 0.25, kind))
            expected = np.linalg.solve(np.eye(nx * ny) - 0.05 * laplace, values.reshape(2, -1).T).T
            after = found.values[{"~vector": name}].numpy("b,x,y").reshape(2, -1)
            np.testing.assert_allclose(after, expected, atol=1e-10)
            assert np.abs(after - values.reshape(2, -1)).max() > 0.1


def test_upstream_tracing_beside_a_wall_with_a_float_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices are padded with 1.0 - 1.0, which makes them floats."""
    monkeypatch.setattr(LinTracer, "_pad", _compat.defects._pad_tracer_with_constant_type)
    with pytest.raises(AssertionError):
        diffuse.implicit(CenteredGrid(Noise(), 1.0, x=5), 0.1, 0.5)


@pytest.mark.parametrize("kind", ["wall", "inflow"])
def test_implicit_diffusion_beside_a_wall_with_a_value(kind: str) -> None:
    boundary = {"wall": 1.5, "inflow": {"x-": 1.5, "x+": ZERO_GRADIENT}}[kind]
    matrix = np.eye(7) - 0.05 * _axis(7, 0.5, "closed")
    matrix[-1, -1] -= 0.05 / 0.5**2 * (kind == "inflow")
    offset = np.zeros(7)
    offset[0] = offset[-1] = 1.5 * 0.05 / 0.5**2
    offset[-1] *= kind == "wall"
    with math.precision(64):
        u = CenteredGrid(Noise(batch(b=2)), boundary, Box(x=3.5), x=7)
        after = diffuse.implicit(u, 0.1, 0.5, Solve("CG", 1e-13, 1e-13)).values.numpy("b,x")
        expected = np.linalg.solve(matrix, (u.values.numpy("b,x") + offset).T).T
    np.testing.assert_allclose(after, expected, atol=1e-10)


@pytest.mark.parametrize("upstream", [True, False])
def test_tracing_beside_a_field(upstream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream cannot trace beside a boundary that is a field: it looks for cells among indices without all dims."""
    around = CenteredGrid(lambda x, y: 2 * x - y, 0, Box(x=8, y=6), x=32, y=24)
    grid = CenteredGrid(Noise(), around, Box(x=(2, 5), y=(1, 4)), x=6, y=5)

    function = math.jit_compile_linear(lambda u: diffuse.explicit(u, 0.1, 0.5))
    if upstream:
        monkeypatch.setattr(LinTracer, "_pad", _compat.defects._pad_tracer_with_constant_type)
        with pytest.raises(AssertionError):
            function.sparse_matrix_and_bias(grid)
        return
    with math.precision(64):
        matrix, bias = function.sparse_matrix_and_bias(grid)
        applied = matrix @ grid.values + bias
        expected = diffuse.explicit(grid, 0.1, 0.5).values
    np.testing.assert_allclose(applied.numpy("x,y"), expected.numpy("x,y"), atol=1e-6)


# --- matrices ---


def test_upstream_matrices_overflow_from_65536_unknowns_on() -> None:
    with pytest.raises(ValueError, match="out of bounds"):
        fluid.make_incompressible(StaggeredGrid(0.0, PERIODIC, x=256, y=256), (), Solve("CG"))


@pytest.mark.parametrize("bits", [32, 64])
def test_matrices_keep_float64(bits: int) -> None:
    """PhiML hands out native values in the precision that is current, whatever they are stored in."""
    third = np.full((2, 2), 1 / 3) + np.eye(2)
    with math.precision(64):
        matrix = wrap(third, channel("x"), dual("x"))
    with math.precision(bits):
        np.testing.assert_array_equal(_compat.matrix_to_scipy(matrix).toarray(), third)


# --- products with masks ---


def test_upstream_safe_mul_has_a_gradient_of_its_own() -> None:
    """A graph would lose it."""
    x = wrap(torch.ones(3, requires_grad=True), spatial("x"))
    assert isinstance(math.safe_mul(x, x).native("x").grad_fn, torch.autograd.function.BackwardCFunction)
    with _compat.hooked_backend(lambda t: False, {}):
        assert not isinstance(math.safe_mul(x, x).native("x").grad_fn, torch.autograd.function.BackwardCFunction)


@pytest.mark.parametrize("velocity", [False, True])
def test_captured_masks_have_the_gradient_of_phiflow(velocity: bool) -> None:
    def step(u: Field, w: Any) -> Field:
        return fluid.apply_boundary_conditions(
            u * u, Obstacle(Sphere(x=3, y=2.5, radius=1.5), velocity=w if velocity else 0)
        )

    u, w = StaggeredGrid(Noise(batch(b=2)), 0, x=6, y=5), torch.tensor([0.5, -1.0])
    block = ph.capture(step, u, wrap(w, channel(vector="x,y")), check=velocity)
    leaves = [t.requires_grad_() for t in block.flatten(u, wrap(w, channel(vector="x,y")))]
    found = torch.autograd.grad(sum((t**2).sum() for t in block.native(*leaves)), leaves, allow_unused=True)
    inputs = [t.detach().clone().requires_grad_() for t in leaves]
    faces = {n: wrap(t, batch("b"), spatial("x"), spatial("y")) for n, t in zip("xy", inputs)}
    after = step(u.with_values(math.stack(faces, dual("vector"))), wrap(inputs[2], channel(vector="x,y")))
    loss = sum((after.values[{"~vector": n}].native("b,x,y") ** 2).sum() for n in "xy")
    expected = torch.autograd.grad(loss, inputs, allow_unused=True)
    assert (found[2] is None) == (not velocity)
    for a, b in zip(found, expected):
        assert (a is None) == (b is None) and (a is None or a.abs().max() > 0.1)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# --- other defects that the package works around ---


def test_upstream_boundary_dicts_are_no_json() -> None:
    with pytest.raises(TypeError):
        json.dumps(extrapolation.ConstantExtrapolation(math.wrap(1.0)).to_dict())


def test_upstream_staggered_native_with_batch_fails() -> None:
    u = StaggeredGrid(Noise(batch(b=2)), PERIODIC, x=4, y=5)
    with pytest.raises(Exception, match="dimensions|vector"):
        u.values.native("b,x,y,vector")


# --- boundaries as dicts ---

BOUNDARIES: dict[str, Any] = {
    **{
        name: getattr(extrapolation, name)
        for name in ("PERIODIC", "ZERO_GRADIENT", "SYMMETRIC", "ANTISYMMETRIC", "REFLECT")
    },
    "none": extrapolation.NONE,
    "zero": extrapolation.ZERO,
    "one": extrapolation.ONE,
    "number": extrapolation.ConstantExtrapolation(-2.5),
    "torch number": extrapolation.ConstantExtrapolation(math.wrap(torch.tensor(0.5))),
    "vector": extrapolation.ConstantExtrapolation(vec(y=1.0, x=0.25)),
    "sides": extrapolation.as_extrapolation({"x-": vec(x=0.5, y=1.0), "x+": ZERO_GRADIENT, "y": PERIODIC}),
    "by direction": extrapolation.combine_by_direction(extrapolation.ZERO, ZERO_GRADIENT),
    "nested": extrapolation.as_extrapolation(
        {"x": extrapolation.combine_by_direction(extrapolation.ONE, ZERO_GRADIENT), "y-": 0, "y+": vec(x=1.0, y=2.0)}
    ),
}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_boundaries_survive_json(name: str) -> None:
    boundary = BOUNDARIES[name]
    text = json.dumps(_compat.boundary_to_dict(boundary))
    back = _compat.boundary_from_dict(json.loads(text))
    assert type(back) is type(boundary)
    assert back == boundary
    assert json.dumps(_compat.boundary_to_dict(back)) == text


@pytest.mark.parametrize("name", ["PERIODIC", "ZERO_GRADIENT", "SYMMETRIC", "number", "sides", "by direction"])
def test_restored_boundaries_pad_like_the_original(name: str) -> None:
    boundary = BOUNDARIES[name]
    back = _compat.boundary_from_dict(json.loads(json.dumps(_compat.boundary_to_dict(boundary))))
    u = StaggeredGrid(Noise(), boundary, x=4, y=5)
    v = u.with_boundary(back)
    for d in "xy":
        math.assert_close(
            diffuse.explicit(u, 0.1, 0.5).vector[d].values, diffuse.explicit(v, 0.1, 0.5).vector[d].values
        )


def test_upstream_table_of_boundaries_lacks_antireflect() -> None:
    assert extrapolation.from_dict(extrapolation.ANTIREFLECT.to_dict()) == extrapolation.ANTISYMMETRIC
    assert _compat.boundary_from_dict(_compat.boundary_to_dict(extrapolation.ANTIREFLECT)) == extrapolation.ANTIREFLECT


def test_different_boundaries_have_different_dicts() -> None:
    texts = {name: json.dumps(_compat.boundary_to_dict(b)) for name, b in BOUNDARIES.items()}
    assert len(set(texts.values())) == len(texts)


def test_unsupported_boundaries_are_named() -> None:
    for value, message in (
        (math.wrap([1.0, 2.0], batch("b")), "shape"),
        (math.wrap(torch.ones((), requires_grad=True)), "trainable"),
    ):
        with pytest.raises(ValueError, match=message):
            _compat.boundary_to_dict(extrapolation.ConstantExtrapolation(value))
    mask = math.wrap([True, False], spatial("x"))
    with pytest.raises(ValueError, match="not supported"):
        _compat.boundary_to_dict(extrapolation.where(mask, PERIODIC, extrapolation.ZERO))


# --- private names of torch ---


def test_forward_mode_is_seen() -> None:
    seen = []

    def f(x: torch.Tensor) -> torch.Tensor:
        seen.append((_compat.functorch_active(), _compat.forward_mode_active()))
        return x * x

    x = torch.ones(2)
    f(x)
    torch.func.jvp(f, (x,), (x,))
    torch.func.vmap(f)(x)
    torch.func.vjp(f, x)
    torch.func.jacfwd(f)(x)
    torch.func.jacrev(torch.func.jacfwd(f))(x)
    with torch.autograd.forward_ad.dual_level():
        f(torch.autograd.forward_ad.make_dual(x, x))
    f(x)
    assert seen == [
        (False, False),
        (True, True),
        (True, False),
        (True, False),
        (True, True),
        (True, True),
        (False, True),
        (False, False),
    ]


def test_outside_transformations_computes_with_plain_tensors() -> None:
    inside: list[torch.Tensor] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        with _compat.outside_transformations():
            assert not _compat.functorch_active() and not _compat.forward_mode_active()
            a = torch.full((2,), 3.0, requires_grad=True)
            (g,) = torch.autograd.grad((a**2).sum(), a)
            inside.append(g)
        assert _compat.functorch_active()
        return x * 2

    x = torch.ones(2)
    value, tangent = torch.func.jvp(f, (x,), (x,))
    assert torch.equal(tangent, 2 * x)
    assert torch.equal(torch.func.jacrev(f)(x), 2 * torch.eye(2))
    assert all(torch.equal(g, torch.full((2,), 6.0)) for g in inside) and len(inside) == 2


def test_tensors_are_taken_to_a_device() -> None:
    """`meta` stands for a GPU; on their own, tensors on two devices cannot be added."""
    there, here = math.wrap(torch.ones(3, device="meta"), spatial("x")), math.wrap(torch.ones(3), spatial("x"))
    with pytest.raises(RuntimeError, match="device"):
        there + here
    with _compat.tensors_on(torch.device("meta")):
        for result in (there + here, here * there, math.maximum(here, there), math.stack([there, here], batch("b"))):
            assert result.native(result.shape).device.type == "meta"
    assert (here + here).native("x").device.type == "cpu"


def test_hooks_come_and_go() -> None:
    special = torch.ones(1)
    with pytest.raises(KeyError):
        with _compat.hooked_backend(lambda t: t is special, {"cos": lambda x: "hooked"}):
            assert not _compat.TORCH.is_available(special)
            assert _compat.TORCH.is_available(torch.ones(1))
            assert _compat.TORCH.cos(special) == "hooked"
            raise KeyError
    assert _compat.TORCH.is_available(special)
    assert torch.equal(_compat.TORCH.cos(special), special.cos())
    assert not {"is_available", "cos"} & set(vars(_compat.TORCH))


def test_assembled_field_equals_constructed_field() -> None:
    u = StaggeredGrid(Noise(batch(b=2)), INFLOW, x=4, y=5)
    v = _compat.assemble_field(u.geometry, u.values, u.boundary)
    assert v.shape == u.shape and v.sampled_at == u.sampled_at and v.boundary == u.boundary and v.is_staggered
    assert set(vars(v)) == set(vars(u))
    math.assert_close(
        diffuse.explicit(u, 0.1, 0.1).vector["x"].values, diffuse.explicit(v, 0.1, 0.1).vector["x"].values
    )


def test_sparse_tensors_are_recognised() -> None:
    from phi.torch.flow import instance

    indices = math.wrap([[0], [1]], instance("e"), channel(sparse_idx="x"))
    assert _compat.is_sparse(math.sparse_tensor(indices, math.wrap([1.0, 2.0], instance("e")), spatial(x=4)))
    assert not _compat.is_sparse(math.wrap([1.0, 2.0], spatial("x")))
