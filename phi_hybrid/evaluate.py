"""Errors of solvers against reference trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from phi_hybrid.capture import NativeFace
from phi_hybrid.data import Trajectories
from phi_hybrid.errors import SolveError, StateError
from phi_hybrid.unroll import Bound, Tensors, as_step, evaluation_mode


@dataclass(frozen=True)
class Evaluation:
    """Errors over time of several solvers, `(trajectory, step)`, step 0 being the state after the first step.

    `mae` is ⟨|u − u*|⟩ over space and components in units of the state, `nrmse` is ‖u − u*‖₂ / ‖u*‖₂. From the first
    non-finite state or failed linear solve on, errors of a trajectory are infinite: failure is not missing data.
    """

    mae: Mapping[str, torch.Tensor]
    nrmse: Mapping[str, torch.Tensor]

    def summary(self, horizons: tuple[int, ...] = ()) -> dict[str, dict[str, float]]:
        """Solver → metric → number: `mae` and `nrmse` over all steps, `mae_n` over the first n, `blow_up` (fraction of
        trajectories that became non-finite)."""
        return {name: self._summary_of(name, horizons) for name in self.mae}

    def curves(self) -> dict[str, torch.Tensor]:
        """MAE with the vanishing error of the first states in front, `(trajectory, time)`, for `plot.errors`."""
        return {name: torch.nn.functional.pad(mae, (1, 0)) for name, mae in self.mae.items()}

    def table(self, horizons: tuple[int, ...] = ()) -> str:
        """The summary as text, one row per solver."""
        summary = self.summary(horizons)
        metrics = list(next(iter(summary.values())))
        width = max(len(name) for name in summary) + 2
        rows = ["".ljust(width) + "".join(m.rjust(11) for m in metrics)]
        rows += [name.ljust(width) + "".join(f"{row[m]:11.4g}" for m in metrics) for name, row in summary.items()]
        return "\n".join(rows)

    def _summary_of(self, name: str, horizons: tuple[int, ...]) -> dict[str, float]:
        mae, nrmse = self.mae[name], self.nrmse[name]
        too_long = [h for h in horizons if not 1 <= h <= mae.shape[1]]
        if too_long:
            raise StateError(f"horizons {too_long}: the evaluation has {mae.shape[1]} steps; use 1 … {mae.shape[1]}")
        return {
            "mae": float(mae.mean()),
            **{f"mae_{h}": float(mae[:, :h].mean()) for h in horizons},
            "nrmse": float(nrmse.mean()),
            "blow_up": float((~torch.isfinite(mae[:, -1])).double().mean()),
        }


def evaluate(solvers: Mapping[str, Callable], data: Trajectories, steps: int | None = None) -> Evaluation:
    """Rolls every solver out from the first states of `data` and compares each step with the reference.

    Args:
        solvers: name → step, e.g. `{'source': physics, 'hybrid': solver}`; inputs come from the data.
        data: held-out trajectories on the grid of the solvers, `(trajectory, time, x, y, vector)`.
        steps: number of steps, all that the data has by default.

    Raises:
        StateError: if `steps` is out of range or the data do not fit a solver.
    """
    if not isinstance(solvers, Mapping) or not solvers:
        raise StateError(f"solvers = {solvers!r}: expected a mapping from names to steps, e.g. {{'hybrid': solver}}")
    steps = data.steps if steps is None else steps
    if not 1 <= steps <= data.steps:
        raise StateError(f"steps = {steps} but the data has trajectories of {data.steps} steps; use 1 … {data.steps}")
    errors = {name: trajectory_errors(solver, data, steps) for name, solver in solvers.items()}
    return Evaluation({n: e[0] for n, e in errors.items()}, {n: e[1] for n, e in errors.items()})


@torch.no_grad()
def trajectory_errors(solver: Callable, data: Trajectories, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """MAE and nRMSE, each `(trajectory, step)`, of one solver in evaluation mode."""
    solver = as_step(solver)
    with evaluation_mode(solver):
        return _trajectory_errors(solver, data, steps)


def _trajectory_errors(solver: NativeFace, data: Trajectories, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch = data.cut(slice(None), 0, steps).to(_device_of(solver))
    inputs = batch.step_inputs
    bound = batch.bind(solver)
    state, mae, nrmse = bound.state, [], []
    failed = torch.zeros(len(data), dtype=torch.bool, device=state[0].device)
    for n in range(steps):
        state, failed = _step(bound, state, inputs.at(n), failed)
        reference = torch.cat([t[:, n].flatten(1) for t in batch.targets], 1).double()
        error = torch.cat([s.flatten(1) for s in state], 1).double() - reference
        mae.append(error.abs().mean(1).masked_fill(failed, torch.inf))
        nrmse.append(error.norm(dim=1) / reference.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny))
        nrmse[-1].masked_fill_(failed, torch.inf)
    return _failed_is_infinite(torch.stack(mae, 1)), _failed_is_infinite(torch.stack(nrmse, 1))


def _step(bound: Bound, state: Tensors, inputs: Tensors, failed: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """One step of all trajectories. Those in which a solve has failed go on from their first state, out of the way."""
    try:
        return bound.step(*_replaced(state, bound.state, failed), *inputs), failed
    except SolveError:
        failed = failed.clone()
        for entry in (~failed).nonzero().flatten().tolist():
            others = torch.ones_like(failed)
            others[entry] = False
            try:
                bound.step(*_replaced(state, bound.state, others), *inputs)
            except SolveError:
                failed[entry] = True
        return bound.step(*_replaced(state, bound.state, failed), *inputs), failed


def _replaced(state: Tensors, by: Tensors, chosen: torch.Tensor) -> Tensors:
    """Takes the chosen trajectories from another state."""
    if not chosen.any():
        return state
    return tuple(torch.where(chosen.view(-1, *[1] * (s.ndim - 1)), b, s) for s, b in zip(state, by))


def _failed_is_infinite(errors: torch.Tensor) -> torch.Tensor:
    failed = (~torch.isfinite(errors)).cumsum(1) > 0
    return torch.where(failed, torch.inf, errors).cpu()


def _device_of(module: Any) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))
