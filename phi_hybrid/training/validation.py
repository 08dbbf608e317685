"""How far rollouts of a solver are from held-out trajectories, in the numbers that a training keeps and steers by."""

from __future__ import annotations

from phi_hybrid.data import Mixture, Trajectories, sets_of
from phi_hybrid.evaluation import trajectory_errors
from phi_hybrid.steps import Step


def validation_errors(solver: Step, data: Trajectories | Mixture) -> dict[str, float]:
    """Mean absolute error of all states, `mae`; of a mixture the mean over its sets, beside `mae NAME` of each set.

    Args:
        solver: rolled out in full from the first states.
        data: held-out trajectories `(trajectory, time, …)`.
    """
    errors = {
        name: float(trajectory_errors(solver, part, part.steps)[0].mean()) for name, part in sets_of(data).items()
    }
    mean = {"mae": sum(errors.values()) / len(errors)}
    return mean | {f"mae {name}": error for name, error in errors.items()} if isinstance(data, Mixture) else mean
