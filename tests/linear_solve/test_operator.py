"""The solve as a differentiable operation, alone and in captured steps: derivatives, choice of the method, errors, copies."""

from __future__ import annotations

import copy
import functools
import gc
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases.solve_steps import box, flow, moving, part
from cases.solves import (
    CPU,
    METHODS,
    SMALL,
    axis_matrix,
    box_matrix,
    components,
    noise,
    obstacles,
    relative_error,
    sum_over_axes,
    system,
    system_in,
    velocity,
    with_obstacle,
)
from phi.torch.flow import Field, Tensor, channel, fluid, math, wrap

import phi_hybrid as ph
from phi_hybrid.linear_solve import (
    CapacitanceMatrix,
    ConjugateGradient,
    FastDiagonalization,
    LinearSolve,
    Method,
    SparseFactorization,
    capacitance,
    factorization,
    operator,
    solve_numbered,
)
from phi_hybrid.linear_solve.capacitance import CapacitanceSolver
from phi_hybrid.linear_solve.conjugate_gradient import KrylovSolver
from phi_hybrid.linear_solve.factorization import FactoredSolver
from phi_hybrid.linear_solve.fast_diagonalization import ExactSolver
from phi_hybrid.linear_solve.operator import build_solver, methods_for
from phi_hybrid.linear_solve.system import System

CUDA = torch.device("cuda")
SHAPE = (4, 3)
SIZE = 12
BOX = box_matrix(("outlet", "walls"), SHAPE)
MATRICES = {
    "fast": sum_over_axes([np.diag([1.0, 2.0, 3.0, 4.0]) @ axis_matrix("outlet", 4), axis_matrix("walls", 3)]),
    "factored": np.diag(np.linspace(1.0, 2.0, SIZE)) @ with_obstacle(BOX, [7]),
    "iterative": with_obstacle(BOX, [7], cuts=False),
    "capacitance": with_obstacle(BOX, [7]),
}
"""One unsymmetric matrix for each method: a transposed solve is another one."""
SINGULAR = box_matrix(("walls", "periodic"), SHAPE)


def module(
    matrix: np.ndarray, method: Method | None = None, tolerates: bool = False, tolerance: float = 1e-5
) -> LinearSolve:
    return LinearSolve(system(matrix, SHAPE, tolerates), method, tolerance, 0.0)


def module_of(name: str) -> LinearSolve:
    return module(MATRICES[name], METHODS[name])


def inverse(matrix: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.linalg.pinv(matrix, rcond=1e-12))


# --- values ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_values(name: str, dtype: torch.dtype) -> None:
    assert name == "capacitance" or np.abs(MATRICES[name] - MATRICES[name].T).max() > 0.1
    rhs = noise(3, SIZE, dtype=dtype)
    x = module_of(name)(rhs)
    assert x.dtype == dtype and x.is_contiguous()
    error = relative_error(x, rhs.double() @ inverse(MATRICES[name]).T)
    assert error < {torch.float32: 1e-6, torch.float64: 1e-10}[dtype]


def test_strides_and_empty_batches() -> None:
    solve, rhs = module_of("fast"), noise(SIZE, 3)
    torch.testing.assert_close(solve(rhs.T), solve(rhs.T.contiguous()))
    assert solve(rhs.T[:0]).shape == (0, SIZE)


# --- derivatives ---


@pytest.mark.parametrize("name", METHODS)
def test_jacobians_are_the_inverse(name: str) -> None:
    solve, expected = module_of(name), inverse(MATRICES[name])

    def f(b: torch.Tensor) -> torch.Tensor:
        return solve(b[None])[0]

    b = noise(SIZE)
    for jacobian in (torch.func.jacrev(f), torch.func.jacfwd(f), torch.func.jacrev(f, chunk_size=1)):
        assert relative_error(jacobian(b), expected) < 1e-10
    curvature = torch.func.hessian(lambda b: (f(b) ** 2).sum())(b)
    assert relative_error(curvature, 2 * expected.T @ expected) < 1e-10
    curvature = torch.func.jacrev(torch.func.jacfwd(lambda b: (f(b) ** 2).sum()))(b)
    assert relative_error(curvature, 2 * expected.T @ expected) < 1e-10


@pytest.mark.parametrize("recording", [True, False])
@pytest.mark.parametrize("name", ["fast", "factored"])
def test_transformations_with_and_without_gradient_recording(name: str, recording: bool) -> None:
    solve, b, v = module_of(name), noise(2, SIZE), noise(2, SIZE, seed=1)
    expected = inverse(MATRICES[name]).T
    with torch.set_grad_enabled(recording):
        assert solve(b.clone().requires_grad_()).requires_grad == recording
        value, tangent = torch.func.jvp(solve, (b,), (v,))
        assert relative_error(tangent, v @ expected) < 1e-12 and relative_error(value, b @ expected) < 1e-12
        lanes = torch.func.vmap(solve)(torch.stack([b, v]))
        assert relative_error(lanes, torch.stack([b, v]) @ expected) < 1e-12
        with torch.autograd.forward_ad.dual_level():
            x = solve(torch.autograd.forward_ad.make_dual(b, v))
            assert relative_error(torch.autograd.forward_ad.unpack_dual(x).tangent, v @ expected) < 1e-12
        gradient = torch.func.grad(lambda b: solve(b).sum())(b)
        assert relative_error(gradient, torch.ones(2, SIZE).double() @ expected.T) < 1e-12


@pytest.mark.parametrize("lane", [0, 2])
def test_vmap_is_the_loop(lane: int) -> None:
    solve, lanes = module_of("iterative"), noise(4, 2, SIZE)
    expected = torch.stack([solve(b) for b in lanes])
    found = torch.func.vmap(solve, in_dims=lane)(lanes.movedim(0, lane))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    twice = torch.func.vmap(torch.func.vmap(solve))(lanes.reshape(2, 2, 2, SIZE))
    torch.testing.assert_close(twice.flatten(0, 1), expected, rtol=0, atol=1e-10)
    pushed = torch.func.vmap(lambda b, v: torch.func.jvp(solve, (b,), (v,))[1])(lanes, lanes)
    torch.testing.assert_close(pushed, expected, rtol=0, atol=1e-10)
    gradient = torch.func.vmap(torch.func.grad(lambda b: (solve(b) ** 2).sum()))(lanes)
    loop = torch.stack([torch.func.grad(lambda b: (solve(b) ** 2).sum())(b) for b in lanes])
    torch.testing.assert_close(gradient, loop, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_constants_of_singular_systems_have_no_gradient(method: Method) -> None:
    """Neither does the solution have a constant part, nor does a constant part of b change it."""
    solve = module(SINGULAR, method, tolerates=True)
    b = noise(2, SIZE).requires_grad_()
    x = solve(b)
    np.testing.assert_allclose(x.detach().sum(1).numpy(), 0, atol=1e-12)
    (gradient,) = torch.autograd.grad(x, b, torch.ones_like(x), retain_graph=True)
    np.testing.assert_allclose(gradient.numpy(), 0, atol=1e-12)
    (gradient,) = torch.autograd.grad((x**2).sum(), b)
    np.testing.assert_allclose(gradient.sum(1).numpy(), 0, atol=1e-12)
    assert gradient.abs().max() > 0.1
    with torch.no_grad():
        torch.testing.assert_close(solve(b + 3.0), x, rtol=0, atol=1e-10)


def test_derivatives_outlive_the_module() -> None:
    solve, b = module_of("factored"), noise(2, SIZE).requires_grad_()
    x = solve(b)
    del solve
    gc.collect()
    (gradient,) = torch.autograd.grad((x**2).sum() / 2, b, create_graph=True)
    del x
    gc.collect()
    (curvature,) = torch.autograd.grad(gradient.sum(), b)
    expected = inverse(MATRICES["factored"])
    assert relative_error(gradient.detach(), b.detach() @ expected.T @ expected) < 1e-10
    assert relative_error(curvature, torch.ones(2, SIZE).double() @ expected.T @ expected) < 1e-10


def test_modules_are_forgotten_when_nobody_needs_them() -> None:
    gc.collect()
    before = len(operator._alive)
    solve = module_of("fast")
    solve(noise(1, SIZE))
    assert len(operator._alive) == before + 1
    del solve
    gc.collect()
    assert len(operator._alive) == before


def test_operator_of_compiled_graphs() -> None:
    """Schema, fake tensors and reverse mode, by torch's own checks."""
    solve = module_of("factored")
    for transposed in (False, True):
        arguments = (noise(2, SIZE).requires_grad_(), solve.number, transposed)
        torch.library.opcheck(solve_numbered, arguments)
        assert torch.autograd.gradcheck(lambda b: solve_numbered(b, solve.number, transposed), arguments[:1])  # noqa: B023
    used = inverse(MATRICES["factored"].T)
    assert relative_error(solve_numbered(noise(2, SIZE), solve.number, True), noise(2, SIZE) @ used.T) < 1e-12


# --- errors ---


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(bad: float) -> None:
    """In right-hand sides, cotangents and tangents."""
    solve, rhs = module_of("fast"), noise(3, SIZE)
    holes = rhs.clone()
    holes[1, 4:6] = bad
    for solved in (
        lambda: solve(holes),
        lambda: torch.autograd.grad(solve(leaf := rhs.clone().requires_grad_()), leaf, holes),
        lambda: torch.func.jvp(solve, (rhs,), (holes,)),
    ):
        with pytest.raises(ph.SolveError, match="2 NaN or infinite values of 36") as error:
            solved()
        assert np.isnan(error.value.residual) and error.value.iterations == 0


def test_missed_tolerance() -> None:
    matrix = with_obstacle(BOX, [7])
    rhs = torch.cat([torch.zeros(1, SIZE), noise(2, SIZE, dtype=torch.float32)]).double()
    rhs[1] = torch.as_tensor(matrix) @ torch.ones(SIZE).double()
    solve = module(matrix, ConjugateGradient(max_iterations=1))
    with pytest.raises(ph.SolveError, match="batch entry 2.*SparseFactorization") as error:
        solve(rhs)
    x = solve.solver_for(rhs).solve(rhs, False).x
    residual = (rhs - x @ torch.as_tensor(matrix).T).norm(dim=1) / rhs.norm(dim=1)
    assert error.value.residual == pytest.approx(residual[2].item(), rel=1e-6) and error.value.iterations == 1
    assert f"{residual[2].item():.2e}" in str(error.value) and "relative 1.0e-05" in str(error.value)


@pytest.mark.parametrize(("rel_tol", "single", "double"), [(1e-2, 1e-7, 1e-11), (1e-13, 1e-13, 1e-13)])
def test_iterations_go_on_beyond_loose_tolerances(rel_tol: float, single: float, double: float) -> None:
    """With a solver for each precision."""
    solve = LinearSolve(system(with_obstacle(BOX, [7]), SHAPE), METHODS["iterative"], rel_tol, 0.0)
    for dtype, bound in ((torch.float32, single), (torch.float64, double), (torch.float32, single)):
        rhs = noise(2, SIZE, dtype=dtype)
        solution = solve.solver_for(rhs).solve(rhs.double(), False)
        assert bool((solution.residual <= bound * rhs.double().norm(dim=1)).all())
    assert len(solve._solvers) == 2


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_unbalanced_right_hand_sides(method: Method) -> None:
    rhs = noise(3, SIZE)
    balanced = rhs - rhs.mean(1, keepdim=True)
    rhs[:2] = balanced[:2]
    solve = module(SINGULAR, method)
    with pytest.raises(ph.SolveError, match=r"batch entry 2.*rank_deficiency=1") as error:
        solve(rhs)
    mean = (rhs[2].mean().abs() * SIZE**0.5 / rhs[2].norm()).item()
    assert error.value.residual == pytest.approx(mean, rel=1e-9)
    expected = balanced @ inverse(SINGULAR)
    assert relative_error(solve(balanced), expected) < 1e-10
    assert relative_error(module(SINGULAR, method, tolerates=True)(rhs), expected) < 1e-10


def test_imbalance_within_the_tolerance_is_rounding() -> None:
    balanced = noise(1, SIZE) - noise(1, SIZE).mean()
    slightly = balanced + 1e-6
    assert relative_error(module(SINGULAR)(slightly), balanced @ inverse(SINGULAR)) < 1e-12
    with pytest.raises(ph.SolveError):
        module(SINGULAR, tolerance=1e-8)(slightly)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_cotangents_need_no_balance(method: Method) -> None:
    """x = A⁺·b has no part in the null space of A, so that b̄ = A⁺ᵀ·x̄ whatever the part of x̄ there."""
    rhs = noise(2, SIZE)
    rhs = (rhs - rhs.mean(1, keepdim=True)).requires_grad_()
    cotangent = noise(2, SIZE) + 3.0
    (gradient,) = torch.autograd.grad(module(SINGULAR, method)(rhs), rhs, cotangent)
    assert relative_error(gradient, cotangent @ inverse(SINGULAR)) < 1e-10


# --- which method solves which system ---

CLOSED = box_matrix(("walls", "values"), (6, 5))
SHAPES = {1: (30,), 2: (6, 5), 3: (3, 5, 2)}


def with_block(dims: int) -> System:
    shape = SHAPES[dims]
    return system(with_obstacle(box_matrix(("outlet",) * dims, shape), [7]), shape)


@pytest.mark.parametrize("dims", [1, 3])
def test_boxes_are_diagonalised_on_every_device(dims: int) -> None:
    box = system(box_matrix(("walls",) * dims, SHAPES[dims]), SHAPES[dims])
    assert methods_for(box, CPU)[0] == methods_for(box, CUDA)[0] == FastDiagonalization()
    assert isinstance(build_solver(box, None, CPU, 1e-7), ExactSolver)


@pytest.mark.parametrize("dims", [2, 3])
def test_obstacles_are_factored_up_to_a_size_that_depends_on_the_dimension(
    dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they have too much surface for a capacitance matrix."""
    monkeypatch.setattr(capacitance, "LARGEST_SURFACE", 0)
    problem = with_block(dims)
    assert isinstance(build_solver(problem, None, CPU, 1e-7), FactoredSolver)
    monkeypatch.setitem(operator.LARGEST_FACTORIZATION, dims, 29)
    assert methods_for(problem, CPU) == methods_for(problem, CUDA)
    assert isinstance(build_solver(problem, None, CPU, 1e-7), KrylovSolver)
    monkeypatch.setitem(operator.LARGEST_FACTORIZATION, dims, 30)
    assert isinstance(build_solver(problem, None, CPU, 1e-7), FactoredSolver)


def test_obstacles_take_a_capacitance_matrix_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    for dims in (2, 3):
        assert isinstance(build_solver(with_block(dims), None, CPU, 1e-7), CapacitanceSolver)
    monkeypatch.setattr(operator, "SMALLEST_FACTORIZATION", 6)
    assert isinstance(build_solver(with_block(2), None, CPU, 1e-7), FactoredSolver)
    assert isinstance(build_solver(with_block(3), None, CPU, 1e-7), CapacitanceSolver)
    assert CapacitanceMatrix() in methods_for(with_block(2), CUDA)


def test_large_matrices_that_only_factors_solve_are_factored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(operator.LARGEST_FACTORIZATION, 2, 0)
    unsymmetric = with_obstacle(CLOSED, [7])
    unsymmetric[0] *= 2.0
    assert isinstance(build_solver(system(unsymmetric, (6, 5)), None, CPU, 1e-7), FactoredSolver)


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        (FastDiagonalization(), with_block(2)),
        (CapacitanceMatrix(), system(CLOSED + 0.1 * box_matrix(("values",), (30,)).cumsum(0), (6, 5))),
        (ConjugateGradient(), system(CLOSED + 0.1 * box_matrix(("values",), (30,)).cumsum(0), (6, 5))),
        (SparseFactorization(), system(box_matrix(("walls",), (4,)) @ np.diag([1.0, 2.0, 3.0, 4.0]))),
    ],
    ids=METHODS,
)
def test_overrides_that_do_not_apply(method: Method, problem: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factorization, "LARGEST_PSEUDO_INVERSE", 0)
    with pytest.raises(ph.SolveError, match=rf"{type(method).__name__}\(.*{type(method).__name__}.*solver=None"):
        build_solver(problem, method, CPU, 1e-7)


def test_no_method_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factorization, "LARGEST_PSEUDO_INVERSE", 0)
    nilpotent = system(np.array([[0.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(ph.SolveError, match=r" 2 unknowns .*\(not symmetric\)") as e:
        build_solver(nilpotent, None, CPU, 1e-7)
    assert "solver=None" not in str(e.value)


@pytest.mark.parametrize(
    ("names", "kind", "expected"),
    [
        ("xy", "none", ExactSolver),
        ("xy", "one", CapacitanceSolver),
        ("xyz", "one", CapacitanceSolver),
    ],
)
def test_projections(names: str, kind: str, expected: type) -> None:
    v = velocity("closed", names, SMALL)
    with math.precision(64):
        problem = system_in(lambda: fluid.make_incompressible(v, obstacles(kind, names)))
    assert type(build_solver(problem, None, CPU, 1e-7)) is expected


# --- copies ---


def copies(solve: torch.nn.Module) -> list[Any]:
    buffer = io.BytesIO()
    torch.save(solve, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    return [copy.deepcopy(solve), pickle.loads(pickle.dumps(solve)), loaded]


@pytest.mark.parametrize("name", METHODS)
def test_copies_build_their_own_solver_when_first_used(name: str) -> None:
    solve, rhs = module_of(name), noise(2, SIZE)
    x = solve(rhs)
    others = copies(solve)
    while others:
        other = others.pop()
        assert other.number != solve.number and not other._solvers and solve._solvers
        assert torch.equal(other(rhs), x)
        assert next(iter(other._solvers.values())) is not next(iter(solve._solvers.values()))
        number = other.number
        b = rhs.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(other(b).sum(), b), torch.autograd.grad(solve(b).sum(), b))
        del other
        assert number not in operator._alive and torch.equal(solve(rhs), x)


# --- captured steps ---


def flat_function(block: ph.PhysicsBlock, u: Field) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
    """The native face as a function of one vector, with a point at which to differentiate it."""
    leaves = block.flatten(u)
    sizes = [t.numel() for t in leaves]

    def f(x: torch.Tensor) -> torch.Tensor:
        parts = [p.reshape(t.shape) for p, t in zip(x.split(sizes), leaves)]
        return torch.cat([y.reshape(-1) for y in block.native(*parts)])

    return f, torch.cat([t.reshape(-1) for t in leaves])


CASES = {
    "periodic": (box, "periodic", "fast"),
    "closed": (moving, "closed", "factored"),
    "wake": (flow, "inflow", "iterative"),
    "part of a box": (part, "closed", "factored"),
}


@functools.cache
def case(name: str) -> tuple[ph.PhysicsBlock, Field]:
    step, kind, method = CASES[name]
    u = velocity(kind, b=1)
    return ph.capture(step, u, check=False, solver=METHODS[method]), u


@pytest.mark.parametrize("name", CASES)
def test_jacobians_of_captured_steps(name: str) -> None:
    f, x = flat_function(*case(name))
    reverse, forward = torch.func.jacrev(f)(x), torch.func.jacfwd(f)(x)
    columns = [(f(x + 1e-6 * e) - f(x - 1e-6 * e)) / 2e-6 for e in torch.eye(len(x), dtype=x.dtype)]
    expected = torch.stack(columns, 1)
    assert (expected.abs() > 1e-4).any(0).float().mean() > 0.8  # all inputs outside of obstacles matter
    torch.testing.assert_close(reverse, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(forward, reverse, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_of_captured_steps(name: str) -> None:
    f, x = flat_function(*case(name))

    def energy(x: torch.Tensor) -> torch.Tensor:
        return (f(x) ** 3).sum() / 3

    v = noise(len(x), seed=1)
    gradient = torch.func.grad(energy)
    by_differences = (gradient(x + 1e-6 * v) - gradient(x - 1e-6 * v)) / 2e-6
    assert by_differences.abs().max() > 0.1
    pushed_forward = torch.func.jvp(gradient, (x,), (v,))[1]
    torch.testing.assert_close(pushed_forward, by_differences, rtol=1e-6, atol=1e-6)
    pulled_back = torch.func.vjp(gradient, x)[1](v)[0]
    torch.testing.assert_close(pulled_back, by_differences, rtol=1e-6, atol=1e-6)


def test_velocity_of_an_obstacle_as_an_input() -> None:
    """The matrix does not depend on it; its gradient is that of finite differences."""

    def step(u: Field, w: Tensor) -> Field:
        (body,) = obstacles("one")
        return fluid.make_incompressible(u, math.copy_with(body, velocity=w))[0]

    u, w = velocity("closed"), noise(2, seed=3)
    block = ph.capture(step, u, wrap(w, channel(vector="x,y")))
    leaves = block.flatten(u, wrap(w, channel(vector="x,y")))
    assert torch.autograd.gradcheck(lambda w: block.native(*leaves[:2], w), w.clone().requires_grad_())


@pytest.mark.slow
def test_compiled_steps() -> None:
    v = velocity("inflow", dtype=torch.float32)
    plain, own = ph.capture(flow, v), ph.capture(flow, v, compile=True)
    outside = torch.compile(plain.native)
    leaves = [t.requires_grad_() for t in plain.flatten(v)]
    expected = plain.native(*leaves)
    gradient = torch.autograd.grad(sum((c**2).sum() for c in expected), leaves)
    for f in (own.native, outside):
        found = f(*leaves)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        found = torch.autograd.grad(sum((c**2).sum() for c in found), leaves)
        torch.testing.assert_close(found, gradient, rtol=0, atol=1e-4)
    x, v = tuple(t.detach() for t in leaves), tuple(torch.ones_like(t) for t in leaves)
    tangents = torch.func.jvp(own.native, x, v)[1]
    assert tangents[0].abs().max() > 0.1
    torch.testing.assert_close(tangents, torch.func.jvp(plain.native, x, v)[1], rtol=0, atol=1e-4)


def solves_of(block: ph.PhysicsBlock) -> list[LinearSolve]:
    return [m for m in block.modules() if isinstance(m, LinearSolve)]


def test_copies_of_captured_steps_solve_by_themselves() -> None:
    v = velocity("closed")
    block = ph.capture(box, v, check=False, solver=METHODS["factored"])
    expected = components(block(v))
    others, (original,) = copies(block), solves_of(block)
    del block
    for other in others:
        (own,) = solves_of(other)
        assert own.number != original.number and not own._solvers
        assert all(torch.equal(a, b) for a, b in zip(components(other(v)), expected))
        assert own._solvers and len(other.known) == 1
    assert len({id(next(iter(s._solvers.values()))) for other in others for s in solves_of(other)}) == 3
