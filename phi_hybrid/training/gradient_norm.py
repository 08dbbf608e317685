"""Gradients that are far longer than usual."""

from __future__ import annotations


class GradientNormAverage:
    """Moving average of the norm of the gradient, and whether a gradient is too far above it to be followed.

    Args:
        skip: largest multiple of the average; no limit if `None`.
        memory: weight of the average against a new norm.
        first: number of norms seen before any is judged.
    """

    def __init__(self, skip: float | None, memory: float = 0.98, first: int = 20) -> None:
        self.skip = skip
        self.memory = memory
        self.first = first
        self.average = 0.0
        self.seen = 0

    def exceeded_by(self, norm: float) -> bool:
        judged = self.skip is not None and self.seen >= self.first and self.average > 0  # all norms exceed 0
        return judged and norm > self.skip * self.average

    def see(self, norm: float) -> None:
        """Takes a norm into the average; excessive ones by the limit only, so that a lasting change is followed in the end."""
        if self.exceeded_by(norm):
            norm = self.skip * self.average
        memory = min(self.memory, self.seen / (self.seen + 1))  # the plain mean of the first ones
        self.average = memory * self.average + (1 - memory) * norm
        self.seen += 1

    def state(self) -> dict[str, float]:
        """What `load` takes."""
        return {"average": self.average, "seen": self.seen}

    def load(self, state: dict[str, float]) -> None:
        self.average, self.seen = state["average"], int(state["seen"])
