"""Transforms of one axis against SciPy's transforms and dense eigenvalue problems."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import scipy.sparse
import torch
from cases.solves import AXES, CPU, axis_matrix, noise

from phi_hybrid.linear_solve import transforms
from phi_hybrid.linear_solve.transforms import (
    Cosine,
    Dense,
    Fourier,
    Sine,
    Transform,
    fourier_transform_of,
    transform_of,
    unsymmetric_transform_of,
)

FAST = {"periodic": Fourier, "walls": Cosine, "values": Sine}


def csr(matrix: np.ndarray) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix(matrix)


def matrices_of(transform: Transform, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Q⁻¹ and Q, from unit vectors."""
    unit = torch.eye(size, dtype=torch.float64)
    return transform.analyse(unit).numpy().T, transform.synthesise(unit).numpy().T


def assert_diagonalises(transform: Transform, matrix: np.ndarray) -> None:
    inverse, vectors = matrices_of(transform, len(matrix))
    scale = np.abs(matrix).max()
    np.testing.assert_allclose(inverse @ vectors, np.eye(len(matrix)), atol=1e-12)
    np.testing.assert_allclose(vectors @ np.diag(transform.eigenvalues.numpy()) @ inverse, matrix, atol=1e-12 * scale)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast transforms from the first cell on."""
    monkeypatch.setattr(transforms, "LARGEST_DENSE", 0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", AXES)
def test_fast_transforms_diagonalise(kind: str, size: int, fast: None) -> None:
    matrix = axis_matrix(kind, size, 0.3) - 0.25 * np.eye(size)
    transform = transform_of(csr(matrix), CPU)
    assert size < 3 or type(transform) is FAST.get(kind, Dense)
    assert_diagonalises(transform, matrix)


@pytest.mark.parametrize("size", [4, 7])
def test_fast_transforms_equal_those_of_scipy(size: int) -> None:
    x = noise(2, 3, size)
    for transform, kind, forward, backward in (
        (Cosine(size, -2.0, 1.0, CPU), 2, scipy.fft.dct, scipy.fft.idct),
        (Sine(size, -2.0, 1.0, CPU), 1, scipy.fft.dst, scipy.fft.idst),
    ):
        np.testing.assert_allclose(transform.analyse(x), forward(x.numpy(), type=kind, norm="ortho"), atol=1e-13)
        np.testing.assert_allclose(transform.synthesise(x), backward(x.numpy(), type=kind, norm="ortho"), atol=1e-13)
    fourier = Fourier(size, axis_matrix("periodic", size)[:, 0], CPU)
    spectrum = np.fft.rfft(x.numpy())
    packed = np.concatenate([spectrum.real, spectrum.imag[..., 1 : (size + 1) // 2]], -1)
    np.testing.assert_allclose(fourier.analyse(x), packed, atol=1e-13)
    np.testing.assert_allclose(fourier.spectrum, 2 * np.cos(2 * np.pi * np.arange(size) / size) - 2, atol=1e-14)


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("kind", AXES)
def test_small_axes_are_dense_unless_periodic(kind: str, size: int) -> None:
    matrix = axis_matrix(kind, size, 0.3)
    transform = transform_of(csr(matrix), CPU)
    assert isinstance(transform, Dense)
    assert_diagonalises(transform, matrix)


def test_axes_of_no_known_kind(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense up to the largest eigenvalue problem, refused beyond."""
    uneven = axis_matrix("values", 9)
    uneven[4, 4] -= 0.5
    for matrix in (axis_matrix("outlet", 9), uneven, axis_matrix("values", 9) @ axis_matrix("values", 9)):
        transform = transform_of(csr(matrix), CPU)
        assert isinstance(transform, Dense)
        assert_diagonalises(transform, matrix)
    monkeypatch.setattr(transforms, "LARGEST_EIGENPROBLEM", 8)
    assert transform_of(csr(uneven), CPU) is None
    assert unsymmetric_transform_of(csr(uneven), CPU) is None
    assert isinstance(transform_of(csr(axis_matrix("walls", 9)), CPU), Cosine)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_periodic_axes_are_recognised(size: int) -> None:
    matrix = axis_matrix("periodic", size)
    assert isinstance(fourier_transform_of(csr(matrix), CPU), Fourier)
    wide = np.linalg.matrix_power(axis_matrix("periodic", 8), 2)
    assert_diagonalises(fourier_transform_of(csr(wide), CPU), wide)


def test_other_axes_are_not_periodic() -> None:
    cut, heavy = axis_matrix("periodic", 8), axis_matrix("periodic", 8)
    cut[0, -1] = cut[-1, 0] = 0
    heavy[3, 3] *= 1.01
    for matrix in (cut, heavy, axis_matrix("walls", 8)):
        assert fourier_transform_of(csr(matrix), CPU) is None


def test_unsymmetric_axes() -> None:
    """D·T has the real eigenvalues of D½·T·D½ for positive D, but other right than left eigenvectors."""
    weights = np.linspace(1.0, 2.0, 7)
    matrix = np.diag(weights) @ axis_matrix("outlet", 7)
    transform = unsymmetric_transform_of(csr(matrix), CPU)
    assert_diagonalises(transform, matrix)
    assert_diagonalises(transform.transpose(), matrix.T)
    np.testing.assert_allclose(
        np.sort(transform.eigenvalues.numpy()),
        np.linalg.eigvalsh(np.diag(weights**0.5) @ axis_matrix("outlet", 7) @ np.diag(weights**0.5)),
        atol=1e-12,
    )


def test_axes_without_real_well_conditioned_eigenvectors_are_refused() -> None:
    rotation = np.array([[1.0, -2.0], [2.0, 1.0]])
    nearly_defective = np.array([[1.0, 1.0], [1e-10, 1.0]])
    assert unsymmetric_transform_of(csr(rotation), CPU) is None
    assert unsymmetric_transform_of(csr(nearly_defective), CPU) is None
