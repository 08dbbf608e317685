"""The solve as a differentiable operation: every derivative against the dense inverse, errors, copies."""

from __future__ import annotations

import copy
import gc
import io
import pickle

import numpy as np
import pytest
import torch
from cases.solves import METHODS, axis_matrix, box_matrix, noise, relative_error, sum_over_axes, system, with_obstacle

import phi_hybrid as ph
from phi_hybrid.linear_solve import ConjugateGradient, LinearSolve, Method, linear_solve, operator

SHAPE = (4, 3)
SIZE = 12
BOX = box_matrix(("outlet", "walls"), SHAPE)
MATRICES = {
    "fast": sum_over_axes([np.diag([1.0, 2.0, 3.0, 4.0]) @ axis_matrix("outlet", 4), axis_matrix("walls", 3)]),
    "factored": np.diag(np.linspace(1.0, 2.0, SIZE)) @ with_obstacle(BOX, [7]),
    "iterative": with_obstacle(BOX, [7], cuts=False),
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
    assert np.abs(MATRICES[name] - MATRICES[name].T).max() > 0.1
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
def test_gradients_of_first_and_second_order(name: str) -> None:
    solve, rhs = module_of(name), noise(2, SIZE).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: solve(b) ** 2, rhs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda b: solve(b) ** 3, rhs)


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


@pytest.mark.parametrize("name", METHODS)
def test_tangents(name: str) -> None:
    solve, b, v = module_of(name), noise(2, SIZE), noise(2, SIZE, seed=1)
    expected = v @ inverse(MATRICES[name]).T
    assert expected.abs().max() > 0.1
    value, tangent = torch.func.jvp(solve, (b,), (v,))
    torch.testing.assert_close(value, solve(b))
    assert relative_error(tangent, expected) < 1e-10
    with torch.autograd.forward_ad.dual_level():
        x = solve(torch.autograd.forward_ad.make_dual(b, v))
        assert relative_error(torch.autograd.forward_ad.unpack_dual(x).tangent, expected) < 1e-10


def test_transformations_without_gradient_recording() -> None:
    """Which evaluation does throughout."""
    solve, b, v = module_of("factored"), noise(2, SIZE), noise(2, SIZE, seed=1)
    expected = inverse(MATRICES["factored"]).T
    with torch.no_grad():
        assert relative_error(solve(b.requires_grad_()), b @ expected) < 1e-12 and not solve(b).requires_grad
        value, tangent = torch.func.jvp(solve, (b.detach(),), (v,))
        assert relative_error(tangent, v @ expected) < 1e-12 and relative_error(value, b @ expected) < 1e-12
        lanes = torch.func.vmap(solve)(torch.stack([b, v]))
        assert relative_error(lanes, torch.stack([b, v]) @ expected) < 1e-12
        with torch.autograd.forward_ad.dual_level():
            x = solve(torch.autograd.forward_ad.make_dual(b.detach(), v))
            assert relative_error(torch.autograd.forward_ad.unpack_dual(x).tangent, v @ expected) < 1e-12
        gradient = torch.func.grad(lambda b: solve(b).sum())(b.detach())
        assert relative_error(gradient, torch.ones(2, SIZE).double() @ expected.T) < 1e-12


@pytest.mark.parametrize("lane", [0, 1, 2])
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
        torch.library.opcheck(linear_solve, arguments)
        assert torch.autograd.gradcheck(lambda b: linear_solve(b, solve.number, transposed), arguments[:1])  # noqa: B023
    used = inverse(MATRICES["factored"].T)
    assert relative_error(linear_solve(noise(2, SIZE), solve.number, True), noise(2, SIZE) @ used.T) < 1e-12


# --- errors ---


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", METHODS)
def test_right_hand_sides_that_are_not_finite(name: str, bad: float) -> None:
    rhs = noise(3, SIZE)
    rhs[1, 4:6] = bad
    with pytest.raises(ph.SolveError, match="holds 2 NaN or infinite values of 36") as error:
        module_of(name)(rhs)
    assert np.isnan(error.value.residual) and error.value.iterations == 0


def test_cotangents_and_tangents_that_are_not_finite() -> None:
    solve, b = module_of("fast"), noise(1, SIZE).requires_grad_()
    bad = torch.full((1, SIZE), float("nan")).double()
    with pytest.raises(ph.SolveError, match="NaN"):
        torch.autograd.grad(solve(b), b, bad)
    with pytest.raises(ph.SolveError, match="NaN"):
        torch.func.jvp(solve, (b.detach(),), (bad,))


def test_missed_tolerance() -> None:
    matrix = with_obstacle(BOX, [7])
    rhs = torch.cat([torch.zeros(1, SIZE), noise(2, SIZE, dtype=torch.float32)]).double()
    rhs[1] = torch.as_tensor(matrix) @ torch.ones(SIZE).double()
    solve = module(matrix, ConjugateGradient(max_iterations=1))
    with pytest.raises(ph.SolveError, match="missed its tolerance in batch entry 2.*SparseFactorization") as error:
        solve(rhs)
    x = solve._solver_for(rhs).solve(rhs, False).x
    residual = (rhs - x @ torch.as_tensor(matrix).T).norm(dim=1) / rhs.norm(dim=1)
    assert error.value.residual == pytest.approx(residual[2].item(), rel=1e-6) and error.value.iterations == 1
    assert f"{residual[2].item():.2e}" in str(error.value) and "relative 1.0e-05" in str(error.value)


@pytest.mark.parametrize(("relative", "absolute"), [(0.9, 0.0), (0.0, 1e3)])
def test_loose_tolerances_of_the_step_are_allowed(relative: float, absolute: float) -> None:
    problem = system(with_obstacle(BOX, [7]), SHAPE)
    strict = LinearSolve(problem, ConjugateGradient(max_iterations=1), 1e-5, 1e-5)
    loose = LinearSolve(problem, ConjugateGradient(max_iterations=1), relative, absolute)
    with pytest.raises(ph.SolveError):
        strict(noise(2, SIZE))
    loose(noise(2, SIZE))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-7), (torch.float64, 1e-11)])
def test_iterations_go_on_beyond_loose_tolerances(dtype: torch.dtype, bound: float) -> None:
    problem, rhs = system(with_obstacle(BOX, [7]), SHAPE), noise(2, SIZE, dtype=dtype)
    solver = LinearSolve(problem, METHODS["iterative"], 1e-2, 0.0)._solver_for(rhs)
    assert bool((solver.solve(rhs.double(), False).residual <= bound * rhs.double().norm(dim=1)).all())
    tight = LinearSolve(problem, METHODS["iterative"], 1e-13, 0.0)._solver_for(rhs)
    assert bool((tight.solve(rhs.double(), False).residual <= 1e-13 * rhs.double().norm(dim=1)).all())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_unbalanced_right_hand_sides(method: Method) -> None:
    rhs = noise(3, SIZE)
    balanced = rhs - rhs.mean(1, keepdim=True)
    rhs[:2] = balanced[:2]
    solve = module(SINGULAR, method)
    with pytest.raises(ph.SolveError, match=r"batch entry 2 has no solution.*rank_deficiency=1") as error:
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


def test_a_method_that_does_not_apply() -> None:
    with pytest.raises(ph.SolveError, match="FastDiagonalization.*does not apply"):
        module(MATRICES["factored"], METHODS["fast"])(noise(1, SIZE))


# --- copies ---


def copies(solve: LinearSolve) -> list[LinearSolve]:
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


def test_precisions_have_solvers_of_their_own() -> None:
    solve = module_of("iterative")
    for dtype in (torch.float32, torch.float64, torch.float32):
        solve(noise(1, SIZE, dtype=dtype))
    tolerances = [s.tolerance for s in solve._solvers.values()]
    assert tolerances == [1e-7, 1e-11]
