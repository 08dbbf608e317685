"""How much each step of an unrolled window counts in a loss."""

from __future__ import annotations

from dataclasses import dataclass

from phi_hybrid.bridge.checks import require, require_count, require_number
from phi_hybrid.errors import StateError


@dataclass(frozen=True)
class EveryStep:
    """All steps count the same."""

    def weights(self, steps: int) -> list[float]:
        """Weight of every step."""
        return [1.0] * steps


@dataclass(frozen=True)
class LastStep:
    """Only the last step counts."""

    def weights(self, steps: int) -> list[float]:
        """Weight of every step."""
        return [0.0] * (steps - 1) + [1.0]


@dataclass(frozen=True)
class Steps:
    """Chosen steps count, and all of these the same.

    Args:
        *numbers: numbers of the steps, from 1, e.g. `Steps(1, 4)`.
    """

    numbers: tuple[int, ...]

    def __init__(self, *numbers: int) -> None:
        require(bool(numbers), "numbers", numbers, "numbers of steps from 1, e.g. Steps(1, 4)")
        for number in numbers:
            require_count("numbers", number)
        object.__setattr__(self, "numbers", numbers)

    def __repr__(self) -> str:
        return f"Steps({', '.join(map(str, self.numbers))})"

    def weights(self, steps: int) -> list[float]:
        """Weight of every step."""
        if max(self.numbers) > steps:
            raise StateError(f"{self}: the loss sees {steps} steps; use 1 … {steps}")
        return [float(n in self.numbers) for n in range(1, steps + 1)]


@dataclass(frozen=True)
class Geometric:
    """Step n counts ratioⁿ: below 1 early steps matter most, above 1 late ones.

    Args:
        ratio: positive number, e.g. 0.9.
    """

    ratio: float

    def __post_init__(self) -> None:
        require_number("ratio", self.ratio, above=0)

    def weights(self, steps: int) -> list[float]:
        """Weight of every step."""
        return [self.ratio**n for n in range(steps)]


At = EveryStep | LastStep | Steps | Geometric
