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


class SolveError(ArithmeticError):
    """A linear solve missed its tolerance, or was given a right-hand side that has no solution.

    Attributes:
        residual: largest ‖b − A·x‖₂ / ‖b‖₂ over the batch, NaN if b was not finite.
        iterations: of an iterative solver, 0 for direct ones.
        step: number of the solver step within a rollout, from 1, or of the training update, from 0; else `None`.
        trajectory: what a rollout had computed until then, `None` where there is nothing to keep.
    """

    def __init__(self, message: str, residual: float = float("nan"), iterations: int = 0) -> None:
        super().__init__(message)
        self.residual = residual
        self.iterations = iterations
        self.step: int | None = None
        self.trajectory: Any = None

    def at(self, step: int, where: str, trajectory: Any = None) -> SolveError:
        """The same error, with the place where it occurred."""
        error = SolveError(f"{where}: {self}", self.residual, self.iterations)
        error.step, error.trajectory = step, trajectory
        return error
