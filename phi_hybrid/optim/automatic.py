"""The choice of an engine by what it would cost."""

from __future__ import annotations

from dataclasses import dataclass

from phi_hybrid.errors import StateError
from phi_hybrid.optim.engines import GIB, Dense, Engine, Gram, ParameterGram
from phi_hybrid.optim.filters import Filter
from phi_hybrid.optim.golub_kahan import GolubKahan
from phi_hybrid.optim.jacobian import Jacobian
from phi_hybrid.optim.structured import Structured


@dataclass(frozen=True)
class Automatic:
    """Choice of the exact engine that is estimated to be fastest within a budget; without one, of the matrix-free one.

    Args:
        budget: memory in bytes that an update may take besides the graph; 4 GiB by default.
        exact: engines to choose from.
        matrix_free: engine for filters without jumps, if none of those fits.
    """

    budget: int = 4 * GIB
    exact: tuple[Engine, ...] = (Structured(), Gram(), ParameterGram(), Dense())
    matrix_free: Engine = GolubKahan()

    def chosen(self, jacobian: Jacobian, filter: Filter) -> Engine:
        """The engine for Jacobians like this one.

        Raises:
            StateError: if none fits.
        """
        costs = {e: e.cost(jacobian) for e in self.exact if e.suits(jacobian, filter)}
        fitting = [engine for engine in costs if costs[engine].bytes <= self.budget]
        if fitting:
            return min(fitting, key=lambda engine: costs[engine].seconds)
        smooth = self.matrix_free.suits(jacobian, filter)
        if smooth and self.matrix_free.cost(jacobian).bytes <= self.budget:
            return self.matrix_free
        needs = ", ".join(f"{type(e).__name__} {cost.bytes / GIB:.1f} GiB" for e, cost in costs.items()) or "memory"
        advice = "" if smooth else "a filter without jumps, rcond=Smooth(1e-3), for which no matrix is needed; "
        raise StateError(
            f"an update with {jacobian.rows} outputs and {jacobian.columns} parameters needs {needs}, more than the budget "
            f"of {self.budget / GIB:.1f} GiB; use {advice}a smaller batch, fewer outputs, or engine=Automatic(budget=…)"
        )
