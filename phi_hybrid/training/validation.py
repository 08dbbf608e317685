"""How far rollouts of a solver are from held-out trajectories, in the numbers that a training keeps and steers by."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from phi_hybrid.data import Mixture, Trajectories, sets_of
from phi_hybrid.evaluation import trajectory_errors
from phi_hybrid.hybrid import HybridSolver
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


def warn_if_worse(
    solver: HybridSolver, data: Trajectories | Mixture, validation: Mapping[str, Sequence[float]]
) -> None:
    """Warns of a solver whose last validation error is above that of its physics alone; points to the caller's caller.

    Args:
        solver: that was trained.
        data: held-out trajectories `(trajectory, time, …)`, on which the physics is rolled out.
        validation: `{'update', 'mae': […]}` of the solver on these.
    """
    error, physics = validation["mae"][-1], validation_errors(solver.physics, data)["mae"]
    if error > physics:
        warnings.warn(
            f"after {validation['update'][-1]} updates the validation error is {error:.4g}, above the {physics:.4g} of the "
            f"physics without {type(solver.network).__name__}, which makes the solver worse. Unroll more steps, Unrolled(4), "
            "from a network whose last layer is zero; train for longer, or on more trajectories; take the best weights of "
            "all, BestWeights()",
            stacklevel=3,
        )
