"""Places of the entries of matrices that vary."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases.solves import box_matrix
from phi.torch.flow import batch, spatial

from phi_hybrid.linear_solve.pattern import Pattern, PatternSystem, gathered, pattern_of

SHAPE = (3, 4)
BOX = box_matrix(("walls", "periodic"), SHAPE)


def pattern_like(matrix: np.ndarray, shape: tuple[int, ...] = SHAPE) -> tuple[Pattern, np.ndarray]:
    rows, columns = np.nonzero(matrix)
    return Pattern(rows, columns, shape), matrix[rows, columns]


def test_matrices_without_their_zeros() -> None:
    """What one leaves out is there in the next."""
    pattern, values = pattern_like(BOX)
    holes = np.where(np.arange(len(values)) % 3 == 0, 0.0, values)
    for v in (holes, values):
        matrix = pattern.matrix(v)
        assert matrix.nnz == np.count_nonzero(v)
        expected = np.zeros_like(BOX)
        expected[pattern.rows, pattern.columns] = v
        assert np.array_equal(matrix.toarray(), expected)
    assert np.array_equal(pattern.matrix(values).toarray(), BOX)


def test_mirrored_places() -> None:
    pattern, _ = pattern_like(np.triu(np.ones((4, 4)), -1), (4,))
    places = {p: i for i, p in enumerate(zip(pattern.rows.tolist(), pattern.columns.tolist()))}
    expected = [places.get((c, r), len(places)) for r, c in places]
    assert pattern.mirrored.tolist() == expected and len(places) in expected


@pytest.mark.parametrize("change", [0.0, 1e-14, 1e-9])
def test_symmetry(change: float) -> None:
    pattern, values = pattern_like(BOX)
    values[pattern.rows < pattern.columns] *= 1 + change
    system = PatternSystem(pattern.matrix(values), SHAPE, True, pattern, values)
    assert system.is_symmetric == (change < 1e-12)
    lower, lower_values = pattern_like(np.tril(BOX))
    assert not PatternSystem(lower.matrix(lower_values), SHAPE, True, lower, lower_values).is_symmetric


def test_extremes_along_axes() -> None:
    """Of all entries with the same two positions on an axis."""
    pattern, _ = pattern_like(BOX)
    values = np.random.default_rng(0).standard_normal(len(pattern.rows))
    tensor = np.full((*SHAPE, *SHAPE), np.nan)
    tensor[(*np.unravel_index(pattern.rows, SHAPE), *np.unravel_index(pattern.columns, SHAPE))] = values
    lines = np.einsum("ikjk->kij", tensor), np.einsum("ikil->ikl", tensor)
    for axis, along in zip(pattern.axes, lines):
        low, high = axis.extremes(values)
        assert len(low) == {3: 4, 4: 8}[axis.size]
        for i, j, smallest, largest in zip(axis.rows, axis.columns, low, high):
            assert i != j and (smallest, largest) == (along[:, i, j].min(), along[:, i, j].max())


def test_couplings_across_axes() -> None:
    matrix = BOX.copy()
    matrix[0, 5] = 1.0
    assert pattern_like(BOX)[0].axes is not None and pattern_like(matrix)[0].axes is None


def test_entries_of_several_blocks() -> None:
    """In any order, some of them twice, some in one block only."""
    generator = np.random.default_rng(0)
    block, row, column = generator.integers(0, 2, 40), generator.integers(0, 6, 40), generator.integers(0, 6, 40)
    values = torch.tensor(generator.standard_normal(40), requires_grad=True)
    entries = SimpleNamespace(
        values=values, block=block, row=row, column=column, blocks=batch(b=2), unknowns=spatial(x=2, y=3)
    )
    pattern, slots = pattern_of(entries)
    found = gathered(entries, pattern, slots)
    expected = np.zeros((2, 6, 6))
    np.add.at(expected, (block, row, column), values.detach().numpy())
    for matrix, own in zip(expected, found.detach().numpy()):
        np.testing.assert_allclose(pattern.matrix(own).toarray(), matrix, atol=1e-15)
    assert pattern.shape == (2, 3) and len(set(zip(row, column))) == len(pattern.rows)
    weight = torch.arange(found.numel(), dtype=torch.float64).reshape(found.shape)
    (gradient,) = torch.autograd.grad((weight * found).sum(), values)
    assert torch.equal(gradient, weight.flatten()[torch.from_numpy(slots)])


def test_keys() -> None:
    pattern, _ = pattern_like(BOX)
    same, other, reshaped = (
        pattern_like(2 * BOX)[0],
        pattern_like(BOX + np.eye(12, k=5))[0],
        pattern_like(BOX, (12,))[0],
    )
    assert pattern.key == same.key and len({pattern.key, other.key, reshaped.key}) == 3
