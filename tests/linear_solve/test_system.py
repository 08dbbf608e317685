"""Systems out of PhiFlow matrices: order of the unknowns, symmetry, null vectors, precision."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from cases.solves import box_matrix, noise, scalar, system, system_in, with_obstacle
from phi.torch.flow import CenteredGrid, channel, diffuse, dual, math, wrap

import phi_hybrid as ph
from phi_hybrid._compat import MatrixStandIn
from phi_hybrid.linear_solve import in_order
from phi_hybrid.linear_solve.system import system_of

WALLS = box_matrix(("walls", "walls"), (6, 5))


@pytest.mark.parametrize("columns", ["xyz", "zxy"])
def test_unknowns_in_another_order_than_equations(columns: str) -> None:
    """Σ over x' y' z' of M[x y z, x' y' z']·u[x' y' z'] = b[x y z], with the columns stored in any order."""
    sizes = {"x": 2, "y": 3, "z": 4}
    matrix = noise(24, 24).numpy() + 10 * np.eye(24)
    rhs = noise(2, 24)
    expected = np.linalg.solve(matrix, rhs.numpy().T).T.reshape(2, 2, 3, 4)
    axes = [3 + "xyz".index(n) for n in columns]
    stored = matrix.reshape(2, 3, 4, 2, 3, 4).transpose(0, 1, 2, *axes).copy()
    phi_matrix = wrap(stored, channel("x,y,z"), dual(",".join(columns)))
    problem, order = system_of(MatrixStandIn(phi_matrix, False))
    assert problem.shape == (2, 3, 4) and (order is None) == (columns == "xyz")
    np.testing.assert_array_equal(problem.matrix.toarray(), matrix)
    solution = torch.as_tensor(np.linalg.solve(problem.matrix.toarray(), rhs.numpy().T).T.copy())
    found = in_order(solution, order).reshape(2, *(sizes[n] for n in columns))
    np.testing.assert_allclose(found.numpy().transpose(0, *(1 + columns.index(n) for n in "xyz")), expected)


def test_float32_states_have_the_matrix_of_float64_states() -> None:
    matrices = []
    for bits, dtype in ((32, torch.float32), (64, torch.float64)):
        u = scalar("closed", dtype=dtype)
        with math.precision(bits):
            matrices.append(system_in(lambda: diffuse.implicit(u, 0.3, 0.7)).matrix.toarray())  # noqa: B023
    np.testing.assert_array_equal(*matrices)
    assert matrices[0].dtype == np.float64


def test_symmetry() -> None:
    assert system(WALLS).is_symmetric
    assert system(WALLS * (1 + 1e-15)).is_symmetric
    assert not system(np.diag(np.linspace(1, 1 + 1e-6, 30)) @ WALLS).is_symmetric


@pytest.mark.parametrize(
    ("matrix", "count"),
    [
        (WALLS, 1),
        (box_matrix(("walls", "values"), (6, 5)), 0),
        (with_obstacle(WALLS, [12]), 1),
        (with_obstacle(WALLS, [10, 11, 12, 13, 14]), 2),
        (with_obstacle(WALLS, [12], cuts=False), 0),
        (WALLS - 1e-8 * np.eye(30), 0),
        (np.diag(np.linspace(1.0, 2.0, 30)) @ WALLS, 1),
        (np.zeros((3, 3)), 3),
    ],
    ids=["walls", "values", "obstacle", "two parts", "value inside", "mass", "unsymmetric", "zero"],
)
def test_null_vectors(matrix: np.ndarray, count: int) -> None:
    found = system(matrix).null_vectors
    expected = scipy.linalg.null_space(matrix, rcond=1e-12)
    assert found.shape == expected.shape == (len(matrix), count)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-12)  # the same space


def test_norm_is_the_largest_row_sum() -> None:
    matrix = noise(5, 5).numpy()
    assert system(matrix).norm == pytest.approx(np.linalg.norm(matrix, np.inf))


def test_equal_matrices_have_equal_keys() -> None:
    def key(u: CenteredGrid, viscosity: float) -> bytes:
        return system_in(lambda: diffuse.implicit(u, viscosity, 0.1)).key

    with math.precision(64):
        assert key(scalar("closed"), 0.5) == key(scalar("closed", seed=3, b=5), 0.5)
        others = [key(scalar("closed"), 0.25), key(scalar("open"), 0.5), key(scalar("closed", "x"), 0.5)]
        assert len({key(scalar("closed"), 0.5), *others}) == 4


def test_the_same_matrix_on_another_grid_is_another_system() -> None:
    matrix, keys = noise(6, 6).numpy(), set()
    for x, y in ((2, 3), (3, 2), (6, 1)):
        stored = wrap(matrix.reshape(x, y, x, y), channel("x,y"), dual("x,y"))
        keys.add(system_of(MatrixStandIn(stored, False))[0].key)
    assert len(keys) == 3


def test_matrices_that_are_not_square_are_refused() -> None:
    matrix = wrap(noise(5, 4).numpy(), channel("x"), dual("x"))
    with pytest.raises(ph.CaptureError, match="5 equations .* for 4 unknowns .*only square systems"):
        system_of(MatrixStandIn(matrix, False))
