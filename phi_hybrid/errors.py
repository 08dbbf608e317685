"""The errors of phi_hybrid. Each names the value, what was expected and the way out."""

from __future__ import annotations

from typing import Any


class StateError(ValueError):
    """A state, an input or a batch does not fit: wrong shape, boundary, precision, device, or a missing input."""


class CaptureError(RuntimeError):
    """A PhiFlow step cannot be turned into a graph that gives the same numbers for other values."""


class NonFiniteError(ArithmeticError):
    """A state, a loss or a gradient became NaN or infinite.

    Attributes:
        step: number of the solver step, from 1 (0 for the initial state), or of the training update, from 0.
        trajectory: what had been computed until then, `None` where there is nothing to keep.
    """

    def __init__(self, message: str, step: int, trajectory: Any = None) -> None:
        super().__init__(message)
        self.step = step
        self.trajectory = trajectory


class DataError(ValueError):
    """A data file or data set is damaged, foreign, incomplete or holds non-finite values."""
