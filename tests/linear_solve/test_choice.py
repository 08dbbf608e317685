"""Which method is chosen for which matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases.solves import CPU, METHODS, SMALL, box_matrix, obstacles, system, system_in, velocity, with_obstacle
from phi.torch.flow import fluid, math

import phi_hybrid as ph
from phi_hybrid.linear_solve import ConjugateGradient, FastDiagonalization, Method, SparseFactorization
from phi_hybrid.linear_solve import operator as choice
from phi_hybrid.linear_solve.conjugate_gradient import KrylovSolver
from phi_hybrid.linear_solve.factorization import FactoredSolver
from phi_hybrid.linear_solve.fast_diagonalization import ExactSolver
from phi_hybrid.linear_solve.operator import build_solver, methods_for
from phi_hybrid.linear_solve.system import System

SOLVERS = {"fast": ExactSolver, "factored": FactoredSolver, "iterative": KrylovSolver}
BOX = box_matrix(("walls", "values"), (6, 5))
SHAPES = {1: (30,), 2: (6, 5), 3: (3, 5, 2)}


def with_block(dims: int) -> System:
    shape = SHAPES[dims]
    return system(with_obstacle(box_matrix(("outlet",) * dims, shape), [7]), shape)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_boxes_are_diagonalised_on_every_device(dims: int) -> None:
    box = system(box_matrix(("walls",) * dims, SHAPES[dims]), SHAPES[dims])
    assert methods_for(box, CPU)[0] == methods_for(box, torch.device("cuda"))[0] == FastDiagonalization()
    assert isinstance(build_solver(box, None, CPU, 1e-7), ExactSolver)


@pytest.mark.parametrize("dims", [2, 3])
def test_obstacles_are_factored_up_to_a_size_that_depends_on_the_dimension(
    dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = with_block(dims)
    assert isinstance(build_solver(problem, None, CPU, 1e-7), FactoredSolver)
    monkeypatch.setitem(choice.LARGEST_FACTORIZATION, dims, 29)
    assert methods_for(problem, CPU) == (FastDiagonalization(), ConjugateGradient(), SparseFactorization())
    assert isinstance(build_solver(problem, None, CPU, 1e-7), KrylovSolver)
    monkeypatch.setitem(choice.LARGEST_FACTORIZATION, dims, 30)
    assert isinstance(build_solver(problem, None, CPU, 1e-7), FactoredSolver)


def test_limits_fall_with_the_dimension() -> None:
    assert choice.LARGEST_FACTORIZATION[1] > choice.LARGEST_FACTORIZATION[2] > choice.LARGEST_FACTORIZATION[3]


def test_iterations_come_before_factors_on_other_devices() -> None:
    order = methods_for(with_block(2), torch.device("cuda"))
    assert order == (FastDiagonalization(), ConjugateGradient(), SparseFactorization())


def test_large_matrices_that_only_factors_solve_are_factored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choice.LARGEST_FACTORIZATION, 2, 0)
    unsymmetric = with_obstacle(BOX, [7])
    unsymmetric[0] *= 2.0
    assert isinstance(build_solver(system(unsymmetric, (6, 5)), None, CPU, 1e-7), FactoredSolver)


@pytest.mark.parametrize("name", METHODS)
def test_overrides_are_honoured(name: str) -> None:
    assert isinstance(build_solver(system(BOX, (6, 5)), METHODS[name], CPU, 1e-7), SOLVERS[name])


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        (FastDiagonalization(), with_block(2)),
        (ConjugateGradient(), system(BOX + 0.1 * box_matrix(("values",), (30,)).cumsum(0), (6, 5))),
        (SparseFactorization(), system(box_matrix(("walls",), (4,)) @ np.diag([1.0, 2.0, 3.0, 4.0]))),
    ],
    ids=METHODS,
)
def test_overrides_that_do_not_apply(method: Method, problem: System) -> None:
    with pytest.raises(ph.SolveError, match=rf"{type(method).__name__}\(.*\) does not apply .* Pass solver=None"):
        build_solver(problem, method, CPU, 1e-7)


def test_no_method_applies() -> None:
    nilpotent = system(np.array([[0.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(ph.SolveError, match=r"no method applies to this matrix of 2 unknowns .*\(not symmetric\)") as e:
        build_solver(nilpotent, None, CPU, 1e-7)
    assert "solver=None" not in str(e.value)


@pytest.mark.parametrize(
    ("names", "kind", "expected"),
    [
        ("xy", "none", ExactSolver),
        ("xyz", "none", ExactSolver),
        ("xy", "one", FactoredSolver),
        ("xyz", "one", KrylovSolver),
    ],
)
def test_projections(names: str, kind: str, expected: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choice.LARGEST_FACTORIZATION, 3, 100)
    v = velocity("closed", names, SMALL)
    with math.precision(64):
        problem = system_in(lambda: fluid.make_incompressible(v, obstacles(kind, names)))
    assert type(build_solver(problem, None, CPU, 1e-7)) is expected
