"""Solves with matrices that vary: values, derivatives by the matrix, kept solvers, errors, copies, against dense matrices."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases.patterns import SHAPE, dense_solve, diffusion_matrix, module_of
from cases.solves import axis_matrix, box_matrix, noise, relative_error
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import phi_hybrid as ph
from phi_hybrid.linear_solve import ConjugateGradient, VaryingSolve, solve_varying, varying
from phi_hybrid.linear_solve.pattern_methods import PatternMethod

SIZE, BLOCKS, BATCH = 12, 2, 3
LAPLACIAN = box_matrix(("walls", "walls"), SHAPE)


def random_matrices(*seeds: int, keep: float = 0.4) -> list[np.ndarray]:
    """Regular ones, not symmetric, of one pattern."""
    mask = np.random.default_rng(0).random((SIZE, SIZE)) < keep
    return [mask * np.random.default_rng(s).standard_normal((SIZE, SIZE)) + 4 * np.eye(SIZE) for s in seeds]


def both(solve: VaryingSolve, transposed: bool = False) -> tuple[Callable, Callable]:
    return (lambda v, b: solve(v, b, transposed)), (lambda v, b: dense_solve(solve, v, b, transposed))


RHS = noise(BLOCKS, BATCH, SIZE)

# --- values ---


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_values(transposed: bool, dtype: torch.dtype, bound: float) -> None:
    solve, values = module_of(*random_matrices(1, 2))
    rhs = RHS.to(dtype)
    x = solve(values, rhs, transposed)
    assert x.dtype == dtype and x.is_contiguous()
    assert relative_error(x, dense_solve(solve, values, rhs.double(), transposed)) < bound


# --- derivatives ---


@pytest.mark.parametrize("transposed", [False, True])
def test_jacobians(transposed: bool) -> None:
    solve, values = module_of(*random_matrices(1, 2))
    own, dense = both(solve, transposed)
    for argument in (0, 1):
        expected = jacrev(dense, argument)(values, RHS)
        assert expected.abs().max() > 0.05
        for jacobian in (jacrev(own, argument), jacfwd(own, argument), jacrev(own, argument, chunk_size=1)):
            assert relative_error(jacobian(values, RHS), expected) < 1e-12


@pytest.mark.parametrize("transposed", [False, True])
def test_second_derivatives(transposed: bool) -> None:
    solve, values = module_of(*random_matrices(1, 2, keep=0.1))
    rhs = RHS[:, :1]
    own, dense = ((lambda v, b, f=f: (f(v, b) ** 3).sum()) for f in both(solve, transposed))
    expected = hessian(dense, (0, 1))(values, rhs)
    for curvature in (hessian(own, (0, 1)), jacrev(jacrev(own, (0, 1)), (0, 1)), jacrev(jacfwd(own, (0, 1)), (0, 1))):
        found = curvature(values, rhs)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            assert relative_error(found[i][j], expected[i][j]) < 1e-11


def test_reverse_mode_of_autograd() -> None:
    """First and second derivatives against differences."""
    solve, values = module_of(*random_matrices(1, 2, keep=0.1))
    inputs = values.requires_grad_(), RHS[:, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(solve, inputs) and torch.autograd.gradgradcheck(solve, inputs)
    arguments = solve.rows, solve.columns, solve.number, True
    assert torch.autograd.gradcheck(lambda v, b: solve_varying(v, b, *arguments), inputs)


@pytest.mark.parametrize("lanes", [(0, None), (None, 0), (0, 0), (1, 2)])
def test_vmap_is_the_loop(lanes: tuple) -> None:
    solve, values = module_of(*random_matrices(1, 2))
    values = values if lanes[0] is None else torch.stack([values, 1.5 * values, 2 * values + 0.1], lanes[0])
    rhs = RHS if lanes[1] is None else torch.stack([RHS, RHS**2, RHS**3], lanes[1])

    def lane(i: int) -> tuple:
        return tuple(t if d is None else t.select(d, i) for t, d in zip((values, rhs), lanes))

    functions = {
        "value": solve,
        "gradient": grad(lambda v, b: (solve(v, b) ** 2).sum(), (0, 1)),
        "tangent": lambda v, b: jvp(solve, (v, b), (v.cos(), b.cos()))[1],
    }
    for f in functions.values():
        expected = torch.utils._pytree.tree_map(lambda *t: torch.stack(t), *(f(*lane(i)) for i in range(3)))
        torch.testing.assert_close(vmap(f, in_dims=lanes)(values, rhs), expected, rtol=1e-12, atol=1e-12)


def test_tangents_of_dual_numbers() -> None:
    solve, values = module_of(*random_matrices(1))
    rhs, (dv, db) = RHS[:1], (noise(*values.shape, seed=3), noise(1, BATCH, SIZE, seed=4))
    expected = jvp(lambda v, b: dense_solve(solve, v, b), (values, rhs), (dv, db))[1]
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        x = solve(*(torch.autograd.forward_ad.make_dual(*pair) for pair in ((values, dv), (rhs, db))))
        assert relative_error(torch.autograd.forward_ad.unpack_dual(x).tangent, expected) < 1e-12


# --- singular matrices ---


def graph_laplacian(solve: VaryingSolve, coefficient: torch.Tensor) -> torch.Tensor:
    """Values of −∇·(c·∇) between walls on the pattern, from one c for each off-diagonal place above the diagonal."""
    above = solve.rows < solve.columns
    values = torch.zeros(len(solve.rows), dtype=torch.float64)
    values[above] = -coefficient
    dense = torch.zeros(SIZE, SIZE, dtype=torch.float64).index_put((solve.rows, solve.columns), values)
    dense = dense + dense.T
    dense = dense - dense.sum(1).diag()
    return dense[solve.rows, solve.columns][None]


@pytest.mark.parametrize("method", [None, ConjugateGradient(rel_tol=1e-13)], ids=str)
def test_gradients_of_singular_systems(method: object) -> None:
    """By coefficients that keep constants in the null space, against differences of the pseudo-inverse."""
    solve, _ = module_of(LAPLACIAN, tolerates=True, method=method)
    rhs, weight = RHS[:1] + 0.7, noise(1, BATCH, SIZE, seed=5)  # with a part that is left out
    coefficient = 1 + 0.5 * noise((solve.rows < solve.columns).sum(), seed=6).abs()

    def by_pinv(c: torch.Tensor) -> torch.Tensor:
        places = solve.rows, solve.columns
        dense = torch.zeros(SIZE, SIZE, dtype=torch.float64).index_put(places, graph_laplacian(solve, c)[0])
        return (weight * (rhs @ torch.linalg.pinv(dense, hermitian=True, rtol=1e-10))).sum()

    (found,) = torch.autograd.grad(
        (weight * solve(graph_laplacian(solve, c := coefficient.requires_grad_()), rhs)).sum(), c
    )
    with torch.no_grad():
        steps = 1e-5 * torch.eye(len(coefficient), dtype=torch.float64)
        expected = torch.stack([(by_pinv(coefficient + h) - by_pinv(coefficient - h)) / 2e-5 for h in steps])
    assert expected.abs().max() > 0.1 and relative_error(found, expected) < 1e-8


@pytest.mark.parametrize("tolerates", [None, True])
def test_what_has_no_solution_is_left_out_unless_the_matrix_is_declared_regular(tolerates: bool | None) -> None:
    solve, values = module_of(LAPLACIAN, 2 * LAPLACIAN, tolerates=tolerates)
    expected = np.stack([RHS[i] @ np.linalg.pinv(LAPLACIAN, rcond=1e-12) / (i + 1) for i in (0, 1)])
    assert relative_error(solve(values, RHS), expected) < 1e-12
    strict, _ = module_of(LAPLACIAN, 2 * LAPLACIAN, tolerates=False)
    with pytest.raises(ph.SolveError, match=r"matrix 0 of 2.*rank_deficiency=1"):
        strict(values, RHS)
    balanced = RHS - RHS.mean(-1, keepdim=True)
    assert relative_error(strict(values, balanced), expected) < 1e-12


def test_parts_that_come_apart() -> None:
    """A coupling that vanishes makes two singular parts of one."""
    whole, parted = axis_matrix("walls", 6), np.kron(np.eye(2), axis_matrix("walls", 3))
    solve, values = module_of(whole, parted, shape=(6,), tolerates=True)
    rhs = noise(2, 1, 6)
    expected = np.stack([rhs[i] @ np.linalg.pinv(m, rcond=1e-12) for i, m in enumerate((whole, parted))])
    assert relative_error(solve(values, rhs), expected) < 1e-12


# --- kept solvers ---


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list:
    seen, build = [], PatternMethod.build
    monkeypatch.setattr(PatternMethod, "build", lambda self, *args: (seen.append(args), build(self, *args))[1])
    return seen


def test_factored_anew_only_when_values_change(builds: list) -> None:
    solve, values = module_of(*random_matrices(1, 2))
    v, b = values.clone().requires_grad_(), RHS.clone().requires_grad_()
    x = solve(v, b)
    torch.autograd.grad((x**2).sum(), (v, b))
    solve(values.clone(), RHS + 1.0)
    assert len(builds) == 2  # one of each matrix
    other = torch.stack([values[0], values[1] + 0.1])
    assert relative_error(solve(other, RHS), dense_solve(solve, other, RHS)) < 1e-12
    assert len(builds) == 3
    solve(values, RHS)
    assert len(builds) == 3  # not forgotten


def test_values_written_to_afterwards(builds: list) -> None:
    """In both precisions, for each of which a solver is built."""
    solve, values = module_of(*random_matrices(1))
    expected = dense_solve(solve, values, RHS[:1])
    changed = values.clone()
    solve(changed, RHS[:1])
    changed += 1.0
    assert relative_error(solve(values, RHS[:1].float()), expected) < 1e-6
    assert relative_error(solve(changed, RHS[:1]), dense_solve(solve, changed, RHS[:1])) < 1e-12
    assert len(builds) == 3


def test_solvers_are_forgotten_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varying, "KEPT_ENTRIES", 0)
    solve, values = module_of(*random_matrices(1, 2))
    for scale in (1.0, 2.0, 3.0):
        solve(scale * values, RHS)
    assert len(solve._solvers) == 4  # of the last two calls
    gc.collect()
    before = len(varying._alive)
    del solve
    gc.collect()
    assert len(varying._alive) == before - 1


def test_derivatives_outlive_the_module() -> None:
    solve, values = module_of(*random_matrices(1, 2))
    dense = dense_solve(solve, reference := values.clone().requires_grad_(), RHS)
    (expected,) = torch.autograd.grad((dense**2).sum(), reference)
    x = solve(values.requires_grad_(), RHS)
    del solve
    gc.collect()
    (found,) = torch.autograd.grad((x**2).sum(), values)
    assert relative_error(found, expected) < 1e-12


# --- errors, copies, compilers ---


@pytest.mark.parametrize("where", ["matrix", "right-hand side"])
def test_numbers_that_are_not_finite(where: str) -> None:
    solve, values = module_of(*random_matrices(1, 2))
    values, rhs = values.clone(), RHS.clone()
    (values if where == "matrix" else rhs)[1, 0] = float("nan")
    with pytest.raises(
        ph.SolveError, match="the matrix of a linear solve" if where == "matrix" else "matrix 1 of 2.*right"
    ):
        solve(values, rhs)


def test_singular_matrices_whose_null_space_is_not_known() -> None:
    matrix = random_matrices(1)[0]
    matrix[3] = matrix[4]
    solve, values = module_of(matrix)
    with pytest.raises(ph.SolveError, match="missed its tolerance"):
        solve(values, RHS[:1])


def test_missed_tolerance() -> None:
    solve, values = module_of(diffusion_matrix(8, 3.0, True), shape=(8, 8), method=ConjugateGradient(max_iterations=1))
    with pytest.raises(ph.SolveError, match="missed its tolerance") as error:
        solve(values, noise(1, 1, 64))
    assert error.value.iterations == 1 and error.value.residual > 1e-5


def test_copies_and_pickles() -> None:
    solve, values = module_of(*random_matrices(1, 2))
    expected = solve(values, RHS)
    stream = io.BytesIO()
    torch.save(solve, stream)
    stream.seek(0)
    for other in (copy.deepcopy(solve), pickle.loads(pickle.dumps(solve)), torch.load(stream, weights_only=False)):
        assert other.number != solve.number and not other._solvers and not other.state_dict()
        assert torch.equal(other(values, RHS), expected)


def test_operator_of_compiled_graphs() -> None:
    """Schema, fake tensors and reverse mode, by torch's own checks."""
    solve, values = module_of(*random_matrices(1, 2))
    for transposed in (False, True):
        inputs = values.clone().requires_grad_(), RHS.clone().requires_grad_()
        torch.library.opcheck(solve_varying, (*inputs, solve.rows, solve.columns, solve.number, transposed))
