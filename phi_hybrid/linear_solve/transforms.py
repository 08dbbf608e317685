"""Transforms of one axis that diagonalise its one-dimensional operator T = Q·diag(λ)·Q⁻¹."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import scipy.sparse
import torch

LARGEST_DENSE = 512
"""Up to this many cells a product with the dense matrix of eigenvectors is faster than a fast transform."""
LARGEST_EIGENPROBLEM = 2048
LARGEST_CONDITION = 1e4
"""Of the eigenvectors of an unsymmetric operator; rounding errors grow by its square."""


class Transform(Protocol):
    """Transform of the last axis of real float64 tensors."""

    eigenvalues: torch.Tensor
    is_periodic: bool

    def analyse(self, x: torch.Tensor) -> torch.Tensor:
        """Q⁻¹·x."""
        ...

    def synthesise(self, x: torch.Tensor) -> torch.Tensor:
        """Q·x."""
        ...


class Dense:
    """Any T with real eigenvalues: eigenvectors by LAPACK, transforms by matrix products."""

    is_periodic = False

    def __init__(self, eigenvalues: torch.Tensor, vectors: torch.Tensor, inverse: torch.Tensor) -> None:
        self.eigenvalues, self.vectors, self.inverse = eigenvalues, vectors, inverse

    def analyse(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.inverse.T

    def synthesise(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.vectors.T

    def transpose(self) -> Dense:
        """Diagonalises Tᵀ."""
        return Dense(self.eigenvalues, self.inverse.T, self.vectors.T)


class Fourier:
    """Periodic axis: the discrete Fourier transform, real and imaginary parts packed into n real numbers."""

    is_periodic = True

    def __init__(self, size: int, column: np.ndarray, device: torch.device) -> None:
        self.size = size
        self.spectrum = torch.tensor(np.fft.fft(column).real, device=device)  # in the order of an FFT, not packed
        self.eigenvalues = torch.cat([self.spectrum[: size // 2 + 1], self.spectrum[1 : (size + 1) // 2]])

    def analyse(self, x: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft(x)
        return torch.cat([spectrum.real, spectrum.imag[..., 1 : (self.size + 1) // 2]], -1)

    def synthesise(self, x: torch.Tensor) -> torch.Tensor:
        modes = self.size // 2 + 1
        imaginary = torch.nn.functional.pad(x[..., modes:], (1, 1 - self.size % 2))
        return torch.fft.irfft(torch.complex(x[..., :modes], imaginary), self.size)


class Cosine:
    """Vanishing normal derivative on both sides: DCT-II, by one complex FFT of the reordered values (Makhoul 1980)."""

    is_periodic = False

    def __init__(self, size: int, diagonal: float, neighbour: float, device: torch.device) -> None:
        k = torch.arange(size, dtype=torch.float64, device=device)
        self.eigenvalues = diagonal + 2 * neighbour * torch.cos(math.pi * k / size)
        scale = ((2 - (k == 0).double()) / size).sqrt()
        self.weights = scale * torch.exp(-0.5j * math.pi * k / size)
        order = torch.arange(size, device=device)
        self.order = torch.cat([order[::2], order[1::2].flip(0)])
        self.inverse_order = self.order.argsort()

    def analyse(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weights * torch.fft.fft(x[..., self.order])).real

    def synthesise(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[-1]
        return (size * torch.fft.ifft(self.weights.conj() * x)).real[..., self.inverse_order]


class Sine:
    """Vanishing value one cell outside on both sides: DST-I, by the FFT of the odd continuation."""

    is_periodic = False

    def __init__(self, size: int, diagonal: float, neighbour: float, device: torch.device) -> None:
        k = torch.arange(1, size + 1, dtype=torch.float64, device=device)
        self.size = size
        self.eigenvalues = diagonal + 2 * neighbour * torch.cos(math.pi * k / (size + 1))

    def analyse(self, x: torch.Tensor) -> torch.Tensor:
        extended = torch.nn.functional.pad(x, (1, self.size + 1))
        return -math.sqrt(2 / (self.size + 1)) * torch.fft.rfft(extended).imag[..., 1:-1]

    synthesise = analyse


def transform_of(axis: scipy.sparse.csr_matrix, device: torch.device) -> Transform | None:
    """The transform that diagonalises a symmetric matrix of one axis, `None` if it is too large and of no known kind."""
    size = axis.shape[0]
    if size > LARGEST_DENSE:
        fast = _fast_transform(axis, device)
        if fast is not None or size > LARGEST_EIGENPROBLEM:
            return fast
    eigenvalues, vectors = np.linalg.eigh(axis.toarray())
    return _dense(eigenvalues, vectors, vectors.T, device)


def unsymmetric_transform_of(axis: scipy.sparse.csr_matrix, device: torch.device) -> Dense | None:
    """The transform of any matrix of one axis, `None` if that is too large or no well-conditioned real one exists."""
    if axis.shape[0] > LARGEST_EIGENPROBLEM:
        return None
    eigenvalues, vectors = np.linalg.eig(axis.toarray())
    if np.iscomplexobj(eigenvalues) or np.linalg.cond(vectors) > LARGEST_CONDITION:
        return None
    return _dense(eigenvalues, vectors, np.linalg.inv(vectors), device)


def _dense(eigenvalues: np.ndarray, vectors: np.ndarray, inverse: np.ndarray, device: torch.device) -> Dense:
    return Dense(*(torch.tensor(np.ascontiguousarray(a), device=device) for a in (eigenvalues, vectors, inverse)))


def fourier_transform_of(axis: scipy.sparse.csr_matrix, device: torch.device) -> Fourier | None:
    """The Fourier transform if this axis is periodic, else `None`."""
    size = axis.shape[0]
    column = axis[:, [0]].toarray().ravel()
    entries = axis.tocoo()
    complete = entries.nnz == size * np.sum(column != 0)
    circulant = _close(entries.data, column[(entries.row - entries.col) % size])
    return Fourier(size, column, device) if complete and circulant else None


def _fast_transform(axis: scipy.sparse.csr_matrix, device: torch.device) -> Transform | None:
    size = axis.shape[0]
    fourier = fourier_transform_of(axis, device)
    if fourier is not None:
        return fourier
    diagonal, neighbour = axis.diagonal(), axis.diagonal(1)
    tridiagonal = axis.nnz == np.count_nonzero(diagonal) + 2 * np.count_nonzero(neighbour)
    if not (tridiagonal and _close(neighbour, neighbour[0]) and _close(diagonal[1:-1], diagonal[1])):
        return None
    if _close(diagonal[[0, -1]], diagonal[1] + neighbour[0]):
        return Cosine(size, diagonal[1], neighbour[0], device)
    if _close(diagonal[[0, -1]], diagonal[1]):
        return Sine(size, diagonal[1], neighbour[0], device)
    return None


def _close(a: np.ndarray, b: np.ndarray | float) -> bool:
    return bool(np.allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(a).max(initial=0.0)))
