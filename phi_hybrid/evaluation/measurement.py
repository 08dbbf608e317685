"""Rollouts of solvers beside reference trajectories, measured at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from phi_hybrid.bridge.checks import require, require_count, require_instance
from phi_hybrid.bridge.dims import MEMBER
from phi_hybrid.bridge.layout import flatten, without
from phi_hybrid.data import Batch, Mixture, Trajectories, require_data
from phi_hybrid.errors import SolveError, StateError
from phi_hybrid.evaluation.metrics import MAE, NRMSE, Frame, Metric, as_metric, defaults
from phi_hybrid.evaluation.result import Evaluation
from phi_hybrid.hybrid.ensemble import Ensemble
from phi_hybrid.linear_solve import checked_solves
from phi_hybrid.steps.bound import Repeatable, Tensors, bind
from phi_hybrid.steps.face import Step
from phi_hybrid.steps.plain import as_step
from phi_hybrid.steps.time_loop import evaluation_mode

_NONE: Mapping[str, Metric] = MappingProxyType({})


def evaluate(
    solvers: Mapping[str, Callable[..., Any]],
    data: Trajectories,
    steps: int | None = None,
    *,
    metrics: Mapping[str, Metric] = _NONE,
    batch_size: int = 8,
) -> Evaluation:
    """Rolls every solver out from the first states of `data` and compares each step with the reference.

    Measured are always `mae`, `nrmse`, `correlation` and `cosine` of the whole state; where it has several parts, whose
    units mix in these, also `mae` and `nrmse` of every part: `evaluation["mae smoke"]`, or `["mae 0"]` of a tuple.

    An `Ensemble` is measured by the mean of its members, each of which follows its own trajectory; it fails with the
    first of them. No states are kept, only a number per metric, trajectory and step: memory does not grow with the
    number of rollouts, nor with that of the steps. Load large data with `Trajectories.load(path, lazy=True)`.

    Args:
        solvers: name → step, e.g. `{'source': physics, 'hybrid': solver}`; inputs come from the data.
        data: held-out trajectories on the grid of the solvers, `(trajectory, time, x, y, vector)`.
        steps: number of steps, all that the data has by default.
        metrics: name → further metric, e.g. `{'energy': ph.metrics.Drift(ph.quantities.energy)}`, or of one part
            `{'smoke correlates': ph.metrics.Part('smoke', ph.metrics.Correlation())}`.
        batch_size: largest number of trajectories that are rolled out at once, 8 by default.

    Raises:
        StateError: if `steps` is out of range, the data do not fit a solver, a metric has the name of another or does
            not return one number per trajectory.
    """
    named = isinstance(solvers, Mapping) and bool(solvers)
    named = named and all(isinstance(name, str) for name in solvers)
    require(named, "solvers", solvers, "a mapping from names to steps, e.g. {'hybrid': solver}")
    solvers = {name: as_step(solver, f"solvers[{name!r}]") for name, solver in solvers.items()}
    way_out = "one set: {name: ph.evaluate(solvers, part) for name, part in data.sets.items()}"
    require(not isinstance(data, Mixture), "data", data, way_out)
    require_data("data", data)
    steps = data.steps if steps is None else steps
    require_count("steps", steps)
    require(steps <= data.steps, "steps", steps, f"1 … {data.steps}, the steps of the data")
    require_count("batch_size", batch_size)
    chosen = _all_metrics(data, metrics)
    found = {name: measure(solver, data, steps, chosen, batch_size) for name, solver in solvers.items()}
    values = {metric: {name: numbers[metric] for name, (numbers, _) in found.items()} for metric in chosen}
    return Evaluation(values, {name: lifetime for name, (_, lifetime) in found.items()})


def _all_metrics(data: Trajectories, metrics: Mapping[str, Any]) -> dict[str, Metric]:
    """The default metrics and those that are asked for."""
    require_instance("metrics", metrics, Mapping, "a mapping from names to metrics, e.g. {'error': ph.metrics.MAE()}")
    known = defaults(data.state_layout)
    taken = sorted({*known, "blow_up"} & set(metrics))
    if taken:
        raise StateError(f"metrics {taken} are measured anyway; give yours other names")
    return known | {name: as_metric(metric, f"metrics[{name!r}]") for name, metric in metrics.items()}


def trajectory_errors(solver: Callable[..., Any], data: Trajectories, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """MAE and nRMSE of the whole state, each `(trajectory, step)`, of one solver; all trajectories at once."""
    numbers, _ = measure(solver, data, steps, {"mae": MAE(), "nrmse": NRMSE()}, len(data))
    return numbers["mae"], numbers["nrmse"]


@torch.no_grad()
def measure(
    solver: Callable, data: Trajectories, steps: int, metrics: Mapping[str, Metric], batch_size: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Rolls one solver out in evaluation mode.

    Returns:
        Metric → `(trajectory, step)`, and the number of steps before the first failure, `(trajectory,)`.
    """
    solver, count = as_step(solver), len(data)
    numbers = {name: torch.empty(count, steps, dtype=torch.float64) for name in metrics}
    lifetime = torch.empty(count, dtype=torch.long)
    size = math.ceil(count / math.ceil(count / batch_size))
    with evaluation_mode(solver):
        for start in range(0, count, size):
            first = min(start, count - size)  # chunks of one size share a captured graph; the last may overlap
            chunk = slice(first, first + size)
            part = {name: values[chunk] for name, values in numbers.items()}
            lifetime[chunk] = _measure_chunk(solver, data, chunk, metrics, part)
    return numbers, lifetime


def _measure_chunk(
    solver: Step,
    data: Trajectories,
    chunk: slice,
    metrics: Mapping[str, Metric],
    numbers: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Fills in the numbers of a few trajectories; returns how many steps each of them went without failure."""
    device, steps = _device_of(solver), next(iter(numbers.values())).shape[1]
    first, has_members = data.cut(chunk, 0, 1).to(device), isinstance(solver, Ensemble)
    bound = _bind_members(solver, first) if has_members else first.bind(solver)
    reference = data.cut(chunk, 0, steps)
    inputs, state = reference.step_inputs, bound.state
    failed = torch.zeros(len(state[0]), dtype=torch.bool, device=device)
    lifetime = torch.zeros(len(failed), dtype=torch.long)
    for n in range(steps):
        state, failed = _step(bound, state, _moved(inputs.at(n), device), failed)
        lifetime += ~failed.cpu()
        target = _moved([t[:, n] for t in reference.targets], device)
        # Metrics see no failed state: a solve in one of them would fail, too.
        found = tuple(t.mean(1) for t in state) if has_members else state
        own, true = (Frame(tensors, bound.layout) for tensors in (_replaced(found, target, failed), target))
        for name, metric in metrics.items():
            value = _one_per_trajectory(metric(own, true), name, failed)
            numbers[name][:, n] = value.masked_fill(failed | ~torch.isfinite(value), metric.failure)
    return lifetime


def _bind_members(ensemble: Ensemble, batch: Batch) -> Repeatable:
    """Binds an ensemble to the first states; its states are `(trajectory, member, …)` here, trajectories first.

    Raises:
        StateError: if the members add batch dims of their own.
    """
    bound, leaves = bind(ensemble, batch.initial, batch.layout, batch.step_inputs), len(batch.initial)
    if without(bound.layout, MEMBER) != batch.layout:
        batch.bind(ensemble.members[0])  # has the message

    def step(*tensors: torch.Tensor) -> Tensors:
        state = (t.transpose(0, 1).contiguous() for t in tensors[:leaves])
        return tuple(t.transpose(0, 1) for t in bound.step(*state, *tensors[leaves:]))

    swapped = tuple(t.transpose(0, 1) for t in bound.state)  # canonical: 'member' stands before 'trajectory'
    return Repeatable(step, swapped, batch.layout)


def _step(bound: Repeatable, state: Tensors, inputs: Tensors, failed: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """One step of all trajectories. Those that have failed go on from their first state, out of the way."""

    def advanced(others: torch.Tensor) -> Tensors:
        with checked_solves():
            return bound.step(*_replaced(state, bound.state, others), *inputs)

    try:
        new = advanced(failed)
    except SolveError:
        failed = failed.clone()
        for entry in (~failed).nonzero().flatten().tolist():
            others = torch.ones_like(failed)
            others[entry] = False
            try:
                advanced(others)
            except SolveError:
                failed[entry] = True
        new = advanced(failed)
    for tensor in new:
        failed = failed | ~torch.isfinite(tensor).reshape(len(failed), -1).all(1)
    return new, failed


def _replaced(state: Tensors, by: Tensors, chosen: torch.Tensor) -> Tensors:
    """Takes the chosen trajectories from another state."""
    if not chosen.any():
        return state
    return tuple(torch.where(chosen.view(-1, *[1] * (s.ndim - 1)), b, s) for s, b in zip(state, by))


def _one_per_trajectory(value: Any, metric: str, failed: torch.Tensor) -> torch.Tensor:
    """The result of a metric, float64 `(trajectory,)`, checked."""
    tensors = (value,) if isinstance(value, torch.Tensor) else flatten(value)[0]
    shapes = [tuple(t.shape) for t in tensors]
    if shapes != [tuple(failed.shape)]:
        raise StateError(
            f"metric {metric!r} returned shape {shapes[0] if len(shapes) == 1 else shapes}, but should return one "
            f"number per trajectory, {tuple(failed.shape)}: reduce all other axes, e.g. "
            "(own.rows - reference.rows).abs().amax(1)"
        )
    if tensors[0].is_complex():
        raise StateError(
            f"metric {metric!r} returned {tensors[0].dtype}, but should return real numbers, e.g. the modulus, math.abs(…)"
        )
    return tensors[0].to(failed.device, torch.float64)


def _moved(tensors: Any, device: torch.device) -> Tensors:
    return tuple(t.to(device).contiguous() for t in tensors)


def _device_of(module: Any) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))
