"""Plain PhiFlow code inside `with linear_solves():`, against dense solves of the same equations."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from cases.solves import (
    BOUNDARIES,
    CELLS,
    METHODS,
    OBSTACLES,
    SIZE,
    Projection,
    axis_matrix,
    components,
    diffuse_implicitly,
    divergence,
    fluid_cells,
    noise,
    obstacles,
    part_of,
    project,
    relative_error,
    scalar,
    stacked,
    velocity,
)
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Field,
    Obstacle,
    Solve,
    Tensor,
    batch,
    channel,
    diffuse,
    dual,
    fluid,
    math,
    spatial,
    vec,
    wrap,
)
from phiml.backend.torch import TORCH
from phiml.math import _functional, _optimize

import phi_hybrid as ph
from phi_hybrid.linear_solve import (
    ConjugateGradient,
    FastDiagonalization,
    LinearSolve,
    Method,
    Solves,
    SparseFactorization,
    solves,
)
from phi_hybrid.steps.plain import PlainStep

TIGHT = Solve("CG", 1e-13, 1e-13, max_iterations=2000)


def projected(v: Field, *args: Any, method: Method | None = None, **kwargs: Any) -> tuple[Field, Field]:
    with math.precision(v.values.dtype.precision), ph.linear_solve.linear_solves(method):
        return fluid.make_incompressible(v, *args, **kwargs)


def error_of(u: Field, expected: list[Any]) -> float:
    return relative_error(stacked(components(u)), stacked(expected))


def assert_projection(v: Field, expected: Projection, methods: Sequence[str], *args: Any, **kwargs: Any) -> None:
    """Velocity by the chosen method, and the pressure by all methods for the right-hand side of the dense solution."""
    kept = Solves()
    with math.precision(64), kept.active():
        u, p = fluid.make_incompressible(v, *args, **kwargs)
        pressure = p.values.numpy([v.shape.batch, v.resolution])
    assert u.boundary == v.boundary
    assert error_of(u, expected.velocity) < 1e-9
    assert relative_error(pressure, expected.pressure) < 1e-9
    (solver,) = kept._known.values()
    for name in methods:
        found = LinearSolve(solver.system, METHODS[name], 1e-5, 1e-5)(torch.as_tensor(expected.rhs.copy()))
        assert relative_error(found, expected.pressure) < 1e-9, name


def allowed_divergence(v: Field) -> float:
    """What float32 can tell: 1e-5·max(1, 2n/128)·max|v|/dx for n cells along the longest side."""
    fastest = max(float(c.abs().max()) for c in components(v))
    spacing = min(SIZE[n] / v.resolution.get_size(n) for n in v.resolution.names)
    return 1e-5 * max(1.0, 2 * max(v.resolution.sizes) / 128) * fastest / spacing


# --- projection ---


@functools.cache
def dense(kind: str, obstacle: str) -> Projection:
    return project(velocity(kind, cells=CELLS), obstacles(obstacle))


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("kind", BOUNDARIES)
def test_projection_equals_a_dense_solve(kind: str, obstacle: str) -> None:
    methods = [name for name in METHODS if name != "fast" or obstacle == "none"]
    assert_projection(velocity(kind, cells=CELLS), dense(kind, obstacle), methods, obstacles(obstacle))


FLOAT32 = [
    *product(BOUNDARIES, OBSTACLES, [None]),
    *product(("closed", "inflow"), ("one", "two"), [ConjugateGradient()]),
]


@pytest.mark.parametrize(("kind", "obstacle", "method"), FLOAT32)
def test_float32_projection(kind: str, obstacle: str, method: Method | None) -> None:
    """As close to the solution, and as free of divergence, as float32 can tell."""
    v, expected = velocity(kind, cells=CELLS, dtype=torch.float32), dense(kind, obstacle)
    u, _ = projected(v, obstacles(obstacle), method=method)
    assert components(u)[0].dtype == torch.float32
    assert error_of(u, expected.velocity) < 1e-5
    if (kind, obstacle) != ("inflow", "moving"):  # where PhiFlow takes the inflow twice
        remaining = divergence(components(u), kind, expected.fluid) - expected.leftover
        assert np.abs(remaining).max() < allowed_divergence(v)


@pytest.mark.parametrize(("kind", "obstacle"), [("periodic", "none"), ("closed", "one"), ("inflow", "two")])
def test_float32_projection_at_higher_resolution(kind: str, obstacle: str) -> None:
    cells, bodies = {"x": 60, "y": 96}, obstacles(obstacle)
    v, exact = (velocity(kind, cells=cells, dtype=d) for d in (torch.float32, torch.float64))
    (u, _), (expected, _) = projected(v, bodies), projected(exact, bodies)
    assert error_of(u, components(expected)) < 1e-5
    mask = fluid_cells(exact, bodies).values.numpy("x,y") > 0
    leftover = divergence(components(expected), kind, mask)
    assert np.abs(leftover - leftover.mean(1, keepdims=True)).max() < 1e-9
    assert kind == "closed" or np.abs(leftover).max() < 1e-9
    assert np.abs(divergence(components(u), kind, mask) - leftover).max() < allowed_divergence(v)


@pytest.mark.parametrize(
    ("kind", "obstacle"),
    [("periodic", "one"), ("closed", "two"), ("open", "none"), ("inflow", "moving"), ("mixed", "none")],
)
def test_projection_in_3d(kind: str, obstacle: str) -> None:
    v, bodies = velocity(kind, "xyz"), obstacles(obstacle, "xyz")
    assert_projection(v, project(v, bodies), ["factored", "iterative"], bodies)


@pytest.mark.parametrize("batches", [{"z": 3}, {"b": 2, "time": 3}, {"time": 1, "case": 2}], ids=str)
def test_batch_dims(batches: dict[str, int]) -> None:
    v = velocity("inflow", **batches)
    expected = project(v, obstacles("one")).velocity
    u, _ = projected(v, obstacles("one"))
    found = [c.flatten(0, len(batches) - 1) for c in components(u, tuple(batches))]
    assert relative_error(stacked(found), stacked(expected)) < 1e-9


def test_no_batch_dim() -> None:
    v = velocity("closed")
    expected = project(v).velocity
    u, _ = projected(v.b[1])
    assert relative_error(stacked(components(u, ())), stacked(c[1] for c in expected)) < 1e-9


@pytest.mark.parametrize(("kind", "obstacle"), [*product(BOUNDARIES, ["none"]), ("closed", "one")])
def test_projection_of_active_cells(kind: str, obstacle: str) -> None:
    """The pressure vanishes elsewhere, so that the matrix is not symmetric."""
    v, bodies = velocity(kind, cells=CELLS), obstacles(obstacle)
    expected = project(v, bodies, part_of(v))
    assert np.abs(expected.matrix - expected.matrix.T).max() > 0.1
    assert_projection(v, expected, ["factored", "iterative"], bodies, active=part_of(v))


def test_nan_far_from_active_cells() -> None:
    v = velocity("closed", cells=CELLS)
    with math.precision(64):
        far = {
            n: (v.points[{"~vector": n}].vector["x"] > 1.7) & (v.points[{"~vector": n}].vector["y"] > 0.9) for n in "xy"
        }
        holes = {n: math.where(far[n], float("nan"), v.values[{"~vector": n}]) for n in "xy"}
        damaged = v.with_values(math.stack(holes, dual("vector")))
    assert any(c.isnan().any() for c in components(damaged))
    _, p = projected(damaged, active=part_of(v))
    assert relative_error(components(p)[0].flatten(1), project(v, (), part_of(v)).pressure) < 1e-9


@pytest.mark.parametrize("cells", [{"x": 6, "y": 5}, {"x": 6, "y": 4}, {"x": 5, "y": 7}], ids=str)
@pytest.mark.parametrize("kind", ["periodic", "closed"])
def test_centred_projection(kind: str, cells: dict[str, int]) -> None:
    """Wide stencils do not see alternating signs along axes of even length."""
    v = velocity(kind, cells=cells, staggered=False)
    u, _ = projected(v)
    assert error_of(u, project(v).velocity) < 1e-9
    u, _ = projected(v, method=SparseFactorization())
    assert error_of(u, project(v).velocity) < 1e-9


@pytest.mark.parametrize("cells", [{"x": 6, "y": 5}, {"x": 5, "y": 7}], ids=str)
def test_centred_projection_with_open_sides(cells: dict[str, int]) -> None:
    """The pressure is not unique, but any solution will do."""
    v = velocity("open", cells=cells, staggered=False)
    expected = project(v)
    _, p = projected(v)
    assert relative_error(components(p)[0].flatten(1) @ expected.matrix.T, expected.rhs) < 1e-10


@pytest.mark.parametrize("kind", ["periodic", "closed"])
def test_centred_projection_on_a_line(kind: str) -> None:
    v = velocity(kind, "x", {"x": 9}, staggered=False)
    u, _ = projected(v)
    assert error_of(u, project(v).velocity) < 1e-9


def test_a_wall_that_divides_the_box() -> None:
    """Each part loses a mean of its own."""
    wall = [Obstacle(Box(x=(0.9, 1.1), y=(-1.0, 3.0)))]
    v = velocity("closed", cells=CELLS)
    expected = project(v, wall)
    assert np.linalg.matrix_rank(expected.matrix) == len(expected.matrix) - 2
    for method in (None, ConjugateGradient()):
        u, _ = projected(v, wall, method=method)
        assert error_of(u, expected.velocity) < 1e-9


def test_65536_cells() -> None:
    """Row and column indices of the dense matrix would not fit into 32 bits."""
    v = velocity("periodic", cells={"x": 256, "y": 256}, dtype=torch.float32, b=1)
    u, _ = projected(v)
    everywhere = np.ones((256, 256), dtype=bool)
    assert np.abs(divergence(components(u), "periodic", everywhere)).max() < allowed_divergence(v)
    assert np.abs(divergence(components(v), "periodic", everywhere)).max() > 100.0


# --- implicit diffusion and other systems ---


DIFFUSION = [
    (kind, placement, names)
    for kind, placement, names in product(BOUNDARIES, ("scalar", "centred", "staggered"), ("x", "xy", "xyz"))
    if (kind, placement) != ("inflow", "centred")  # vectors at boundaries are for staggered grids
    and not (kind in ("open", "inflow") and (placement, names) == ("staggered", "x"))  # see test_compat.py
]


@pytest.mark.parametrize(("kind", "placement", "names"), DIFFUSION)
def test_implicit_diffusion_equals_a_dense_solve(kind: str, placement: str, names: str) -> None:
    u = scalar(kind, names) if placement == "scalar" else velocity(kind, names, staggered=placement == "staggered")
    with math.precision(64), ph.linear_solve.linear_solves():
        found = diffuse.implicit(u, 0.3, 0.7)
    assert found.boundary == u.boundary
    assert error_of(found, diffuse_implicitly(u, 0.3, 0.7)) < 1e-9


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("kind", BOUNDARIES)
def test_methods_agree_on_implicit_diffusion(kind: str, method: Method) -> None:
    with math.precision(64), ph.linear_solve.linear_solves(method):
        found = diffuse.implicit(scalar(kind), 0.3, 0.7)
    assert error_of(found, diffuse_implicitly(scalar(kind), 0.3, 0.7)) < 1e-9


@pytest.mark.parametrize("viscosity", ["vector", "field"])
def test_viscosity_that_varies(viscosity: str) -> None:
    u = scalar("open")
    with math.precision(64):
        wave = CenteredGrid(lambda x: 0.2 + 0.1 * math.sin(x.vector["x"]), ZERO_GRADIENT, u.bounds, u.resolution)
        nu = {"vector": vec(x=0.1, y=0.3), "field": wave}[viscosity]
        with ph.linear_solve.linear_solves():
            found = diffuse.implicit(u, nu, 0.7)
    assert error_of(found, diffuse_implicitly(u, nu, 0.7)) < 1e-9


def test_long_diffusion_is_no_singular_system() -> None:
    """1 is small against ν·dt/dx², but the mean stays."""
    with math.precision(64), ph.linear_solve.linear_solves():
        u = 1.0 + scalar("open")
        found = diffuse.implicit(u, 1.0, 1e6)
    mean = components(u)[0].mean((1, 2), keepdim=True)
    torch.testing.assert_close(components(found)[0], mean.expand(2, 6, 5), rtol=0, atol=1e-5)


def helmholtz(u: Tensor, mass: float, strength: float = 1.0) -> Tensor:
    return mass * u - strength * math.laplace(u, padding=PERIODIC)


@pytest.mark.parametrize("compiled", [False, True])
def test_functions_with_arguments(compiled: bool) -> None:
    y = noise(3, 8)
    matrix = (2.0 + 2 * 0.5) * np.eye(8) - 0.5 * (np.roll(np.eye(8), 1, 0) + np.roll(np.eye(8), -1, 0))
    function = math.jit_compile_linear(helmholtz) if compiled else helmholtz
    with math.precision(64), ph.linear_solve.linear_solves():
        rhs = wrap(y, batch("b"), spatial("x"))
        x = math.solve_linear(function, rhs, Solve(x0=0 * rhs), 2.0, strength=0.5).native("b,x")
    assert relative_error(x, np.linalg.solve(matrix, y.numpy().T).T) < 1e-12


def test_matrices() -> None:
    matrix, y = noise(5, 5) + 5 * torch.eye(5), noise(3, 5)
    expected = torch.linalg.solve(matrix, y.T).T
    with math.precision(64), ph.linear_solve.linear_solves():
        rhs = wrap(y, batch("b"), channel("x"))
        x = math.solve_linear(wrap(matrix, channel("x"), dual("x")), rhs, Solve(x0=rhs))
        native = math.solve_linear(matrix, y[0], Solve(x0=y[0]))
        assert relative_error(x.native("b,x"), expected) < 1e-13
    assert relative_error(native, expected[0]) < 1e-13


def test_other_backends_are_left_alone() -> None:
    matrix, y = noise(5, 5).numpy() + 5 * np.eye(5), noise(3, 5).numpy()
    with math.NUMPY, math.precision(64), ph.linear_solve.linear_solves(FastDiagonalization()):  # which would not apply
        rhs = wrap(y, batch("b"), channel("x"))
        x = math.solve_linear(wrap(matrix, channel("x"), dual("x")), rhs, Solve("scipy-direct", x0=0 * rhs))
        assert x.default_backend.name == "numpy"
        assert relative_error(x.numpy("b,x"), np.linalg.solve(matrix, y.T).T) < 1e-12


def poisson(u: Tensor) -> Tensor:
    return math.laplace(u, padding=ZERO_GRADIENT)


def test_singular_systems_of_other_backends_are_left_alone() -> None:
    y = noise(2, 7).numpy()
    with math.NUMPY, math.precision(64), ph.linear_solve.linear_solves():
        rhs = wrap(y - y.mean(1, keepdims=True), batch("b"), spatial("x"))
        solve = Solve("scipy-direct", x0=0 * rhs, rank_deficiency=1)
        x = math.solve_linear(math.jit_compile_linear(poisson), rhs, solve).numpy("b,x")
    assert relative_error(x, y @ np.linalg.pinv(axis_matrix("walls", 7), rcond=1e-12)) < 1e-12


def test_preprocessing_of_the_right_hand_side() -> None:
    with math.precision(64), ph.linear_solve.linear_solves():
        rhs = wrap(noise(2, 8), batch("b"), spatial("x"))
        x = math.solve_linear(helmholtz, rhs, Solve(x0=0 * rhs), 2.0)
        doubled = math.solve_linear(helmholtz, rhs, Solve(x0=0 * rhs).with_preprocessing(lambda y: 2 * y), 2.0)
    assert relative_error(doubled.native("b,x"), 2 * x.native("b,x")) < 1e-13


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_unbalanced_right_hand_sides(method: Method) -> None:
    """Are refused where the user says that the matrix is regular; else PhiFlow finds out that it is not."""
    y = noise(2, 7)
    inverse = np.linalg.pinv(axis_matrix("walls", 7), rcond=1e-12)
    with math.precision(64), ph.linear_solve.linear_solves(method):
        rhs = wrap(y, batch("b"), spatial("x"))
        with pytest.raises(ph.SolveError, match="has no solution.*rank_deficiency=1"):
            math.solve_linear(poisson, rhs, Solve(x0=0 * rhs, rank_deficiency=0))
        for known in (1, None):
            x = math.solve_linear(poisson, rhs, Solve(x0=0 * rhs, rank_deficiency=known)).native("b,x")
            assert relative_error(x, y.numpy() @ inverse) < 1e-10
        balanced = rhs - math.mean(rhs, "x")
        x = math.solve_linear(poisson, balanced, Solve(x0=0 * rhs, rank_deficiency=0)).native("b,x")
    assert relative_error(x, y.numpy() @ inverse) < 1e-10


def test_tolerances_of_the_solve() -> None:
    """Honoured or exceeded: a single iteration is enough for a loose one, and not for a tight one."""
    v, body = velocity("closed", cells=CELLS), obstacles("one")
    one = ConjugateGradient(max_iterations=1)
    with pytest.raises(ph.SolveError, match="missed its tolerance") as error:
        projected(v, body, Solve(rel_tol=1e-5, abs_tol=0.0), method=one)
    assert 1e-5 < error.value.residual < 1 and error.value.iterations == 1
    projected(v, body, Solve(rel_tol=2 * error.value.residual, abs_tol=0.0), method=one)
    projected(v, body, Solve(rel_tol=0.0, abs_tol=1e3), method=one)
    exact = project(v, body)
    for tolerance in (1e-6, 1e-13):
        _, p = projected(v, body, Solve(rel_tol=tolerance, abs_tol=0.0), method=ConjugateGradient())
        residual = components(p)[0].flatten(1).numpy() @ exact.matrix.T - exact.rhs
        assert (np.linalg.norm(residual, axis=1) <= tolerance * np.linalg.norm(exact.rhs, axis=1) + 1e-14).all()


def test_initial_guesses_do_not_matter() -> None:
    v = velocity("open")
    with math.precision(64):
        guess = CenteredGrid(1.0, 0, v.bounds, v.resolution)
    u, _ = projected(v, (), Solve("CG", x0=guess))
    assert error_of(u, project(v).velocity) < 1e-9


# --- derivatives ---


@pytest.mark.parametrize(("kind", "obstacle"), [*product(BOUNDARIES, ["moving"]), ("closed", "none")])
def test_gradients_equal_those_of_phiflow(kind: str, obstacle: str) -> None:
    def gradient(context: Any) -> list[torch.Tensor]:
        v = velocity(kind)
        leaves = [c.requires_grad_() for c in v.values._natives()]
        with math.precision(64):
            with context:
                u, p = fluid.make_incompressible(v, obstacles(obstacle), TIGHT)
            loss = sum((c**3).sum() for c in components(u)) + (components(p)[0] ** 2).sum()
            return torch.autograd.grad(loss, leaves)

    found, expected = gradient(ph.linear_solve.linear_solves()), gradient(math.precision(64))
    assert max(float(g.abs().max()) for g in expected) > 0.1
    assert relative_error(stacked(found), stacked(expected)) < 1e-9


def viscous(u: Field, nu: Tensor) -> Field:
    """With a second system, whose matrix is a constant."""
    return diffuse.implicit(diffuse.implicit(u, nu, 0.7, TIGHT), 0.1, 0.7, TIGHT)


@pytest.mark.parametrize("placement", ["scalar", "staggered"])
@pytest.mark.parametrize("how", ["with block", "plain step"])
def test_gradients_with_respect_to_the_matrix(how: str, placement: str) -> None:
    """A viscosity may be trained in code that is not captured."""
    u = scalar("open") if placement == "scalar" else velocity("closed")
    step = PlainStep(viscous) if how == "plain step" else viscous

    def energy(nu: torch.Tensor) -> torch.Tensor:
        return sum((c**2).sum() for c in components(step(u, wrap(nu))))

    nu = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    with math.precision(64), ph.linear_solve.linear_solves():
        (found,) = torch.autograd.grad(energy(nu), nu)
        with torch.no_grad():
            by_differences = (energy(nu + 1e-5) - energy(nu - 1e-5)) / 2e-5
    assert abs(by_differences) > 0.1
    assert found.item() == pytest.approx(by_differences.item(), rel=1e-7)


def test_tangents_with_respect_to_the_matrix_are_not_lost() -> None:
    u, nu = scalar("open"), torch.tensor(0.3, dtype=torch.float64)
    with math.precision(64), torch.autograd.forward_ad.dual_level(), ph.linear_solve.linear_solves():
        with pytest.raises(NotImplementedError):
            viscous(u, wrap(torch.autograd.forward_ad.make_dual(nu, torch.ones_like(nu))))


def test_backward_after_the_block_and_inside_another() -> None:
    gradients = []
    for inside in (False, True):
        v = velocity("closed")
        leaves = [c.requires_grad_() for c in v.values._natives()]
        u, _ = projected(v, obstacles("one"))
        loss = sum((c**3).sum() for c in components(u))
        with math.precision(64), ph.linear_solve.linear_solves(FastDiagonalization()) if inside else math.precision(64):
            gradients.append(stacked(torch.autograd.grad(loss, leaves)))
    assert np.array_equal(*gradients) and np.abs(gradients[0]).max() > 0.1


def test_matrices_that_differ_along_the_batch_stay_with_phiflow() -> None:
    u = scalar("open")
    with math.precision(64), ph.linear_solve.linear_solves():
        found = diffuse.implicit(u, wrap(torch.tensor([0.1, 0.3], dtype=torch.float64), batch("b")), 0.7, TIGHT)
    for number, nu in enumerate((0.1, 0.3)):
        expected = diffuse_implicitly(u.b[number : number + 1], nu, 0.7)
        assert relative_error(components(found)[0][number], expected[0][0]) < 1e-9


# --- errors and what is left behind ---

HOOKED = ("attach_gradient_solve", "native_matrix", "compute_preconditioner", "_linear_solve_forward")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_states_that_are_not_finite(bad: float) -> None:
    before = {name: getattr(_optimize, name) for name in HOOKED}
    tracing = _functional.matrix_and_bias_from_tracer, _functional.LinearFunction.sparse_matrix_and_bias
    v = velocity("open", b=3)
    components(v, ("b",))[0][1, 2, 3] = bad
    with pytest.raises(ph.SolveError, match=r"holds \d+ NaN or infinite values of 90.*reduce the time step") as error:
        projected(v)
    assert np.isnan(error.value.residual) and error.value.iterations == 0 and error.value.step is None
    assert before == {name: getattr(_optimize, name) for name in HOOKED}
    assert tracing == (_functional.matrix_and_bias_from_tracer, _functional.LinearFunction.sparse_matrix_and_bias)
    assert "linear_solve" not in vars(TORCH)


def test_a_method_that_does_not_apply() -> None:
    with pytest.raises(ph.SolveError, match="FastDiagonalization.* does not apply"):
        projected(velocity("closed"), obstacles("one"), method=FastDiagonalization())


def test_outside_of_the_block_phiflow_solves() -> None:
    v = velocity("closed")
    with math.precision(64):
        with ph.linear_solve.linear_solves(FastDiagonalization()):
            pass
        with math.SolveTape() as solves_seen:
            fluid.make_incompressible(v, obstacles("one"), TIGHT)
    assert len(solves_seen) == 1


def test_inner_blocks_prevail() -> None:
    v, body = velocity("closed"), obstacles("one")
    with math.precision(64), ph.linear_solve.linear_solves(FastDiagonalization()):
        with ph.linear_solve.linear_solves(SparseFactorization()):
            fluid.make_incompressible(v, body)
        with pytest.raises(ph.SolveError):
            fluid.make_incompressible(v, body)


# --- solvers are kept ---


def test_equal_systems_share_a_solver() -> None:
    kept = Solves()

    def count(v: Field, *args: Any) -> int:
        with math.precision(v.values.dtype.precision), kept.active():
            fluid.make_incompressible(v, *args)
        return len(kept._known)

    assert [count(velocity("closed", seed=n, b=1 + n)) for n in range(3)] == [1, 1, 1]
    assert count(velocity("open")) == 2
    assert count(velocity("closed"), obstacles("one")) == 3
    assert count(velocity("closed"), (), Solve(rel_tol=1e-9)) == 4
    assert count(velocity("closed", dtype=torch.float32)) == 5  # PhiFlow's default tolerances depend on the precision
    assert count(velocity("closed", seed=7)) == 5
    assert pickle.loads(pickle.dumps(kept))._known == {}


def test_the_oldest_solvers_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solves, "KEPT", 2)
    kept, u = Solves(), scalar("open")
    with math.precision(64), kept.active():
        for nu in (0.1, 0.2, 0.3, 0.1):
            assert error_of(diffuse.implicit(u, nu, 0.7), diffuse_implicitly(u, nu, 0.7)) < 1e-9
            assert len(kept._known) <= 2
