"""The choice of an engine by what it would cost."""

from __future__ import annotations

from dataclasses import dataclass

from phi_hybrid.errors import StateError
from phi_hybrid.optim.engines import GIB, Engine, Gram, ParameterGram, available
from phi_hybrid.optim.filters import Filter, Smooth
from phi_hybrid.optim.golub_kahan import GolubKahan
from phi_hybrid.optim.jacobian import Jacobian
from phi_hybrid.optim.structured import Structured


@dataclass(frozen=True)
class Automatic:
    """The exact engine that is estimated to be fastest within a budget; without one, the matrix-free one.

    Args:
        budget: bytes of memory that an update may take besides the graph.
        exact: engines to choose from.
        matrix_free: for filters without jumps, if none of those fits.
    """

    budget: int = 4 * GIB
    exact: tuple[Engine, ...] = (Structured(), Gram(), ParameterGram())
    matrix_free: GolubKahan = GolubKahan()

    def chosen(self, jacobian: Jacobian, filter: Filter) -> Engine:
        """The engine for Jacobians like this one.

        Raises:
            StateError: if none fits.
        """
        usable = [e for e in self.exact if not isinstance(e, Structured) or e.applies(jacobian)]
        costs = {engine: engine.cost(jacobian) for engine in usable}
        fitting = [engine for engine in usable if costs[engine].bytes <= self.budget]
        if fitting:
            return min(fitting, key=lambda engine: costs[engine].seconds)
        smooth = isinstance(filter, Smooth)
        if smooth and self.matrix_free.cost(jacobian).bytes <= self.budget:
            return self.matrix_free
        needs = ", ".join(f"{type(e).__name__} {costs[e].bytes / GIB:.1f} GiB" for e in usable)
        advice = "" if smooth else "a filter without jumps, rcond=Smooth(1e-3), for which no matrix is needed; "
        raise StateError(
            f"an update with {jacobian.rows} outputs and {jacobian.columns} parameters needs {needs}, more than the budget "
            f"of {self.budget / GIB:.1f} GiB; use {advice}a smaller batch, fewer outputs, or engine=Automatic(budget=…)"
        )


def engine_for(engine: Engine | Automatic, jacobian: Jacobian, filter: Filter) -> Engine:
    """The engine itself, or the one that `Automatic` takes.

    Raises:
        StateError: if it needs more memory than there is, or does not suit the module.
    """
    if isinstance(engine, Automatic):
        return engine.chosen(jacobian, filter)
    if isinstance(engine, Structured) and (reason := engine.mismatch(jacobian)):
        raise StateError(f"Structured() cannot be used: {reason}. Use engine=Gram()")
    needed, there = engine.cost(jacobian).bytes, available(jacobian.outputs.device)
    if needed > there:
        raise StateError(
            f"{type(engine).__name__} needs {needed / GIB:.1f} GiB for {jacobian.rows} outputs and {jacobian.columns} "
            f"parameters, this machine has {there / GIB:.1f} GiB; use engine=Automatic(), a smaller batch or fewer outputs"
        )
    return engine
