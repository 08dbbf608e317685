"""Plain PhiFlow code inside `with linear_solves():`, and captured code, against dense solves of the same equations."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import SmallNet
from cases.solve_steps import box, flow, moving, pushed, several, smoothed, squared
from cases.solves import (
    BOUNDARIES,
    CELLS,
    METHODS,
    SIZE,
    Projection,
    axis_matrix,
    components,
    diffuse_implicitly,
    divergence,
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
from phi_hybrid.steps import PlainStep

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


AROUND = ("one", "two", "none", "moving", "none", "two")
"""Obstacles, one for each kind of boundary."""


@functools.cache
def dense(kind: str, obstacle: str) -> Projection:
    return project(velocity(kind, cells=CELLS), obstacles(obstacle))


@pytest.mark.parametrize(("kind", "obstacle"), [*zip(BOUNDARIES, AROUND), *zip(BOUNDARIES, AROUND[1:])])
def test_projection_equals_a_dense_solve(kind: str, obstacle: str) -> None:
    methods = [name for name in METHODS if name != "fast" or obstacle == "none"]
    assert_projection(velocity(kind, cells=CELLS), dense(kind, obstacle), methods, obstacles(obstacle))


FLOAT32 = [*zip(BOUNDARIES, AROUND, [None] * 5), ("closed", "one", ConjugateGradient())]


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


@pytest.mark.parametrize(("kind", "obstacle"), [("periodic", "one"), ("inflow", "moving"), ("mixed", "none")])
def test_projection_in_3d(kind: str, obstacle: str) -> None:
    v, bodies = velocity(kind, "xyz"), obstacles(obstacle, "xyz")
    assert_projection(v, project(v, bodies), ["factored", "iterative"], bodies)


@pytest.mark.parametrize("batches", [{"z": 3}, {"b": 2, "time": 3}], ids=str)
def test_batch_dims(batches: dict[str, int]) -> None:
    v = velocity("inflow", **batches)
    expected = project(v, obstacles("one")).velocity
    u, _ = projected(v, obstacles("one"))
    found = [c.flatten(0, len(batches) - 1) for c in components(u, tuple(batches))]
    assert relative_error(stacked(found), stacked(expected)) < 1e-9


@pytest.mark.parametrize(("kind", "obstacle"), [("periodic", "none"), ("inflow", "none"), ("closed", "one")])
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


@pytest.mark.parametrize(("kind", "x", "y"), [("periodic", 6, 4), ("periodic", 5, 7), ("closed", 6, 5)])
def test_centred_projection(kind: str, x: int, y: int) -> None:
    """Wide stencils do not see alternating signs along axes of even length."""
    v = velocity(kind, cells={"x": x, "y": y}, staggered=False)
    u, _ = projected(v)
    assert error_of(u, project(v).velocity) < 1e-9
    u, _ = projected(v, method=SparseFactorization())
    assert error_of(u, project(v).velocity) < 1e-9


def test_centred_projection_with_open_sides() -> None:
    """The pressure is not unique, but any solution will do."""
    v = velocity("open", staggered=False)
    expected = project(v)
    _, p = projected(v)
    assert relative_error(components(p)[0].flatten(1) @ expected.matrix.T, expected.rhs) < 1e-10


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
    *((kind, placement, "xy") for kind, placement in product(BOUNDARIES, ("scalar", "staggered"))),
    *zip(BOUNDARIES[:3], ["centred"] * 3, ("x", "xy", "xyz")),  # vectors at inflows are for staggered grids
    ("mixed", "scalar", "x"),
    ("periodic", "staggered", "x"),  # with open sides: see test_compat.py
    ("inflow", "scalar", "xyz"),
    ("mixed", "staggered", "xyz"),
]


@pytest.mark.parametrize(("kind", "placement", "names"), DIFFUSION)
def test_implicit_diffusion_equals_a_dense_solve(kind: str, placement: str, names: str) -> None:
    u = scalar(kind, names) if placement == "scalar" else velocity(kind, names, staggered=placement == "staggered")
    with math.precision(64), ph.linear_solve.linear_solves():
        found = diffuse.implicit(u, 0.3, 0.7)
    assert found.boundary == u.boundary
    assert error_of(found, diffuse_implicitly(u, 0.3, 0.7)) < 1e-9


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


def test_other_backends_are_left_alone() -> None:
    matrix, y = noise(5, 5).numpy() + 5 * np.eye(5), noise(3, 5).numpy()
    with math.NUMPY, math.precision(64), ph.linear_solve.linear_solves(FastDiagonalization()):  # which would not apply
        rhs = wrap(y, batch("b"), channel("x"))
        x = math.solve_linear(wrap(matrix, channel("x"), dual("x")), rhs, Solve("scipy-direct", x0=0 * rhs))
        assert x.default_backend.name == "numpy"
        assert relative_error(x.numpy("b,x"), np.linalg.solve(matrix, y.T).T) < 1e-12


def poisson(u: Tensor) -> Tensor:
    return math.laplace(u, padding=ZERO_GRADIENT)


@pytest.mark.parametrize("method", [None, ConjugateGradient()])
def test_unbalanced_right_hand_sides(method: Method | None) -> None:
    """Are refused where the user says that the matrix is regular; else PhiFlow finds out that it is not."""
    y = noise(2, 7)
    inverse = np.linalg.pinv(axis_matrix("walls", 7), rcond=1e-12)
    with math.precision(64), ph.linear_solve.linear_solves(method):
        rhs = wrap(y, batch("b"), spatial("x"))
        with pytest.raises(ph.SolveError, match="rank_deficiency=1"):
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
    with pytest.raises(ph.SolveError, match="1 iterations") as error:
        projected(v, body, Solve(rel_tol=1e-5, abs_tol=0.0), method=one)
    assert 1e-5 < error.value.residual < 1 and error.value.iterations == 1
    projected(v, body, Solve(rel_tol=2 * error.value.residual, abs_tol=0.0), method=one)
    projected(v, body, Solve(rel_tol=0.0, abs_tol=1e3), method=one)
    exact = project(v, body)
    for tolerance in (1e-6, 1e-13):
        _, p = projected(v, body, Solve(rel_tol=tolerance, abs_tol=0.0), method=ConjugateGradient())
        residual = components(p)[0].flatten(1).numpy() @ exact.matrix.T - exact.rhs
        assert (np.linalg.norm(residual, axis=1) <= tolerance * np.linalg.norm(exact.rhs, axis=1) + 1e-14).all()


# --- derivatives ---


@pytest.mark.parametrize(("kind", "obstacle"), [("inflow", "moving"), ("mixed", "moving"), ("closed", "none")])
def test_gradients_equal_those_of_phiflow(kind: str, obstacle: str) -> None:
    """Plain and captured; PhiFlow multiplies by the masks of obstacles with a custom gradient."""

    def step(v: Field) -> tuple[Field, Field]:
        return fluid.make_incompressible(v, obstacles(obstacle), TIGHT)

    def gradient(step: Callable, context: Any) -> list[torch.Tensor]:
        v = velocity(kind)
        leaves = [c.requires_grad_() for c in v.values._natives()]
        with math.precision(64):
            with context:
                u, p = step(v)
            loss = sum((c**3).sum() for c in components(u)) + (components(p)[0] ** 2).sum()
            return torch.autograd.grad(loss, leaves)

    expected = gradient(step, math.precision(64))
    assert max(float(g.abs().max()) for g in expected) > 0.1
    for function in (step, ph.capture(step, velocity(kind))):
        found = gradient(function, ph.linear_solve.linear_solves())
        assert relative_error(stacked(found), stacked(expected)) < 1e-9


def viscous(u: Field, nu: Tensor) -> Field:
    """With a second system, whose matrix is a constant."""
    return diffuse.implicit(diffuse.implicit(u, nu, 0.7, TIGHT), 0.1, 0.7, TIGHT)


@pytest.mark.parametrize(("how", "placement"), [("with block", "scalar"), ("plain step", "staggered")])
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


def test_tangents_with_respect_to_the_matrix() -> None:
    u, nu = scalar("open"), torch.tensor(0.3, dtype=torch.float64)
    with math.precision(64), ph.linear_solve.linear_solves():
        with torch.autograd.forward_ad.dual_level():
            after = viscous(u, wrap(torch.autograd.forward_ad.make_dual(nu, torch.ones_like(nu))))
            found = torch.autograd.forward_ad.unpack_dual(components(after)[0]).tangent
        ends = [components(viscous(u, wrap(nu + h)))[0] for h in (1e-5, -1e-5)]
    assert relative_error(found, (ends[0] - ends[1]) / 2e-5) < 1e-7


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


def test_matrices_that_differ_along_the_batch() -> None:
    u = scalar("open")
    with math.precision(64), ph.linear_solve.linear_solves():
        found = diffuse.implicit(u, wrap(torch.tensor([0.1, 0.3], dtype=torch.float64), batch("b")), 0.7, TIGHT)
    for number, nu in enumerate((0.1, 0.3)):
        expected = diffuse_implicitly(u.b[number : number + 1], nu, 0.7)
        assert relative_error(components(found)[0][number], expected[0][0]) < 1e-9


# --- errors and what is left behind ---

HOOKED = ("attach_gradient_solve", "native_matrix", "compute_preconditioner", "_linear_solve_forward")


def test_states_that_are_not_finite() -> None:
    before = {name: getattr(_optimize, name) for name in HOOKED}
    tracing = _functional.matrix_and_bias_from_tracer, _functional.LinearFunction.sparse_matrix_and_bias
    v = velocity("open", b=3)
    components(v, ("b",))[0][1, 2, 3] = float("nan")
    with pytest.raises(ph.SolveError, match=r"NaN or infinite values of 90") as error:
        projected(v)
    assert np.isnan(error.value.residual) and error.value.iterations == 0 and error.value.step is None
    assert before == {name: getattr(_optimize, name) for name in HOOKED}
    assert tracing == (_functional.matrix_and_bias_from_tracer, _functional.LinearFunction.sparse_matrix_and_bias)
    assert "linear_solve" not in vars(TORCH)


def test_inner_blocks_prevail_and_end() -> None:
    v, body = velocity("closed"), obstacles("one")
    with math.precision(64), ph.linear_solve.linear_solves(FastDiagonalization()):
        with ph.linear_solve.linear_solves(SparseFactorization()):
            fluid.make_incompressible(v, body)
        with pytest.raises(ph.SolveError, match="FastDiagonalization"):
            fluid.make_incompressible(v, body)
    with math.precision(64), math.SolveTape() as seen:
        fluid.make_incompressible(v, body, TIGHT)
    assert len(seen) == 1  # by PhiFlow


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


# --- captured steps ---


def solves_of(block: ph.PhysicsBlock) -> list[LinearSolve]:
    return [m for m in block.modules() if isinstance(m, LinearSolve)]


@pytest.mark.parametrize(("kind", "method"), [("closed", "factored"), ("inflow", "iterative")])
def test_block_equals_a_dense_solve(kind: str, method: str) -> None:
    v = velocity(kind, seed=7)
    with math.precision(64):
        expected = project(v + 0.1 * v * v, obstacles("moving")).velocity
    block = ph.capture(moving, velocity(kind), solver=METHODS[method])
    assert error_of(block(v), expected) < 1e-9
    assert [s.method for s in solves_of(block)] == [METHODS[method]] and len(block.known) == 1


def test_several_solves() -> None:
    """Components that differ in their matrix have a solver each, equal pressure equations share one."""
    v = velocity("closed")
    block = ph.capture(several, v)
    assert len(solves_of(block)) == 3
    with math.precision(64):
        u = v.with_values(_faces(diffuse_implicitly(v, 0.1, 0.2)))
        u = v.with_values(_faces(project(u).velocity))
        u = u + 0.1 * u * u
    assert relative_error(stacked(components(block(v))), stacked(project(u).velocity)) < 1e-9


def _faces(values: list[Any]) -> Tensor:
    values = {n: wrap(torch.as_tensor(v), batch("b"), *[spatial(d) for d in "xy"]) for n, v in zip("xy", values)}
    return math.stack(values, math.dual("vector"))


@pytest.mark.parametrize("captured", [True, False])
def test_unknowns_in_another_order_than_equations(captured: bool) -> None:
    matrix, rhs = noise(6, 6).numpy() + 6 * np.eye(6), noise(3, 6)
    stored = wrap(matrix.reshape(2, 3, 2, 3).transpose(0, 1, 3, 2).copy(), channel("x,y"), dual("y,x"))

    def step(y: Tensor) -> Tensor:
        return math.solve_linear(stored, y, Solve(x0=math.zeros(batch(b=3), channel(y=3, x=2))))

    y = wrap(rhs.reshape(3, 2, 3), batch("b"), channel("x,y"))
    with math.precision(64), ph.linear_solve.linear_solves():
        found = (ph.capture(step, y) if captured else step)(y).native("b,x,y").reshape(3, 6)
    assert relative_error(found, np.linalg.solve(matrix, rhs.numpy().T).T) < 1e-13


def test_new_signatures_have_solvers_of_their_own() -> None:
    block = ph.PhysicsBlock(box, check=False)
    cases = [
        velocity("open"),
        velocity("closed", b=2, time=2),
        velocity("closed", "xyz"),
        velocity("closed", dtype=torch.float32),
    ]
    for v in cases:
        names = v.shape.batch.names
        with math.precision(64):
            expected = project(v + 0.1 * v * v).velocity
        found = components(block(v), names)
        assert found[0].dtype == components(v, names)[0].dtype
        error = relative_error(stacked(found), stacked(expected))
        assert error < (1e-5 if found[0].dtype == torch.float32 else 1e-9)
    assert len(block.known) == len(cases)


def test_constant_systems_are_solved_once() -> None:
    """A solve that does not depend on the state is part of the constants."""
    fixed, u = scalar("open"), scalar("open", seed=5)
    block = ph.capture(lambda u: u + diffuse.implicit(fixed, 0.3, 0.7), u)
    assert not any(n.op == "call_module" and "linear_solve" in n.target for n in block.known[0].module.graph.nodes)
    expected = components(u)[0] + torch.as_tensor(diffuse_implicitly(fixed, 0.3, 0.7)[0])
    assert relative_error(components(block(u))[0], expected) < 1e-9


# --- solves that fail in steps, rollouts, training ---


@pytest.mark.parametrize("captured", [True, False])
def test_steps_that_fail(captured: bool) -> None:
    u = line(1.0, 2.0)
    step = ph.capture(smoothed, u) if captured else PlainStep(smoothed)
    with pytest.raises(ph.SolveError, match="8 NaN or infinite values of 16"):
        step(u * math.wrap(torch.tensor([1.0, float("nan")]), batch("b")))
    step(u)
    with pytest.raises(ph.SolveError, match="1 iterations"):
        ph.capture(flow, velocity("inflow"), solver=ConjugateGradient(max_iterations=1))


def line(*scales: float) -> Field:
    """A random centred scalar per scale, `(b, x)`."""
    values = torch.tensor(scales)[:, None] * noise(1, 8, dtype=torch.float32).abs().clamp(0.5, 2.0)
    return CenteredGrid(wrap(values, batch("b"), spatial("x")), PERIODIC, bounds=Box(x=2.0))


@pytest.mark.parametrize("captured", [True, False])
def test_rollouts_keep_what_was_computed(captured: bool) -> None:
    u, push = line(1.0, 2.0), wrap(torch.tensor([0.1, 0.1, float("nan"), 0.1, 0.1]), batch("time"))
    step = ph.capture(pushed) if captured else pushed
    with pytest.raises(ph.SolveError, match="step 3 of 5") as error:
        ph.rollout(step, u, 5, push)
    assert error.value.step == 3 and np.isnan(error.value.residual)
    expected = ph.rollout(step, u, 2, push)
    math.assert_close(error.value.trajectory.values, expected.values, abs_tolerance=0, rel_tolerance=0)
    assert error.value.trajectory.shape.get_size("time") == 3


@pytest.mark.parametrize("captured", [True, False])
def test_evaluation_goes_on_with_the_other_trajectories(captured: bool) -> None:
    """Two of four trajectories fail, in steps 4 and 3."""
    scales = (1.0, 1e3, 0.5, 1e5)
    data = ph.Trajectories.generate(ph.capture(smoothed), line(*scales), 6, progress=False)
    step = ph.capture(squared) if captured else squared
    found = ph.evaluate({"squared": step}, data)
    assert torch.isfinite(found.mae["squared"]).sum(1).tolist() == [6, 3, 6, 2]
    alone = ph.evaluate({"squared": step}, data[[0, 2]])
    torch.testing.assert_close(found.mae["squared"][[0, 2]], alone.mae["squared"], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.nrmse["squared"][[0, 2]], alone.nrmse["squared"], rtol=1e-6, atol=0)
    assert found.summary()["squared"]["blow_up"] == 0.5
    first = ph.evaluate({"squared": step}, data[[1]])
    torch.testing.assert_close(found.mae["squared"][1, :3], first.mae["squared"][0, :3], rtol=1e-6, atol=0)


class Reckless(torch.optim.SGD):
    """Moves the weights far away before it asks for the loss of its second update, as line searches do."""

    def step(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:
        self.updates = getattr(self, "updates", 0) + 1
        if self.updates == 2:
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.fill_(1e30)
        return super().step(closure)


def test_training_restores_the_weights() -> None:
    data = ph.Trajectories.generate(ph.capture(squared), line(1.0, 0.5), 3, progress=False)
    solver = ph.HybridSolver(ph.capture(squared), SmallNet(1, 1, 1))
    optimizer = Reckless(solver.parameters(), 1e-3)
    trainer = ph.Trainer(solver, data, ph.Unrolled(2), optimizer=optimizer, batch_size=2, progress=False)
    trainer.fit(1)
    weights = [*solver.parameters(), *solver.buffers()]
    before = copy.deepcopy(weights)
    with pytest.raises(ph.SolveError, match="update 1") as error:
        trainer.fit(5)
    assert error.value.step == 1 and trainer.update == 1
    assert all(torch.equal(a, b) for a, b in zip(weights, before))
    assert any(bool(p.any()) for p in solver.parameters())


@pytest.mark.parametrize(("every", "stored"), [(1, 4), (2, 2)])
def test_reference_solvers_that_fail(every: int, stored: int, tmp_path: Path) -> None:
    with pytest.raises(ph.DataError, match=f"step {stored}") as error:
        ph.Trajectories.generate(
            ph.capture(squared), line(1.0, 1e3), 9, every=every, path=tmp_path / "data.h5", progress=False
        )
    assert isinstance(error.value.__cause__, ph.SolveError)
    assert list(tmp_path.iterdir()) == []


def test_rows_and_columns_of_other_names() -> None:
    """As PhiML calls them where it leaves empty rows out: `(rows, ~cols)`."""
    dense, b = noise(3, 3) + 3 * torch.eye(3, dtype=torch.float64), noise(2, 3)
    matrix = wrap(dense, channel("rows"), dual("cols"))

    def solved(b: Tensor) -> Tensor:
        return math.solve_linear(matrix, b, Solve("CG", 1e-9, 1e-9, x0=math.zeros(channel(cols=3))))

    rhs = wrap(b, batch("b"), channel("rows"))
    with math.precision(64):
        found = ph.capture(solved, rhs)(rhs).native("b,cols")
    torch.testing.assert_close(found, torch.linalg.solve(dense, b.T).T, rtol=1e-9, atol=1e-9)


def test_obstacles_on_a_centred_grid_leave_rows_empty() -> None:
    u = CenteredGrid(wrap(noise(4, 1), spatial("x"), channel(vector="x")), ZERO_GRADIENT, Box(x=(-1, 1)))
    bodies = [Box(x=(-1, -0.2)), Box(x=(-0.7, 0.5))]

    def projected(u: Field) -> Field:
        return fluid.make_incompressible(u, bodies, Solve("CG", 1e-5))[0]

    with ph.linear_solve.linear_solves(), math.precision(64):
        expected, found = (step(u).values.native("x,vector") for step in (projected, ph.capture(projected)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
