"""Eigenvectors of large symmetric matrices, in little memory, and what they cost."""

from __future__ import annotations

import scipy.linalg
import torch

from phi_hybrid.errors import NonFiniteError

_SMALL = 1024


def eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending eigenvalues and eigenvectors of the lower triangle of a matrix in double precision, which is overwritten.

    Large ones on the CPU go to LAPACK's `dsyevr`, which works within the matrix and one array for the vectors; torch's
    `dsyevd` takes three more.

    Raises:
        NonFiniteError: if the matrix has entries that are not finite.
    """
    if not torch.isfinite(matrix.sum()):
        raise NonFiniteError("the Jacobian of the outputs is not finite", 0)
    if len(matrix) <= _SMALL or matrix.device.type != "cpu":
        return torch.linalg.eigh(matrix)
    values, vectors = scipy.linalg.eigh(
        matrix.numpy().T,  # column by column; the lower triangle becomes the upper one
        lower=False,
        driver="evr",
        overwrite_a=True,
        check_finite=False,
    )
    return torch.from_numpy(values), torch.from_numpy(vectors)


def eigh_bytes(size: int, device: torch.device) -> int:
    """Memory for the matrix, its eigenvectors and workspace."""
    return 8 * size**2 * (2 if size > _SMALL and device.type == "cpu" else 5)


def eigh_flops(size: int) -> float:
    """Equivalent number of operations of a matrix product, as measured."""
    return 5.0 * size**3
