"""What a checkpoint belongs to: data, physics, coupling and settings, in a form that can be compared later."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from phi_hybrid.data import Batch, Mixture, Stream, Trajectories
from phi_hybrid.errors import SolveError
from phi_hybrid.hybrid import HybridSolver
from phi_hybrid.linear_solve import checked_solves
from phi_hybrid.steps import Step
from phi_hybrid.steps.bound import Tensors
from phi_hybrid.training.functions import description, text
from phi_hybrid.training.optimizers import Optimizers

BLOCKS, VALUES = 64, 2**14
"""Pieces of a tensor, evenly spread, and values in each, that stand for all of it."""
_CHANGING = {"last_epoch", "_last_lr", "_step_count", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i"}
"""What schedulers count while they are stepped."""
_MANNER = {"foreach", "fused", "capturable", "differentiable"}
"""How an optimizer computes, not what."""


def identity_of_data(data: Trajectories | Mixture | Stream) -> str:
    """Sizes, layouts, and a checksum of values spread over all tensors; of a mixture, those of all sets and the weights, of a
    stream its settings and those of its first trajectories."""
    if isinstance(data, Stream):
        return f"{data}, first {identity_of_data(data.first)}"
    if isinstance(data, Mixture):
        parts = [f"{name}: {identity_of_data(part)}" for name, part in data.sets.items()]
        return "; ".join(parts if data.weights is None else [*parts, f"weights {data.weights}"])
    checksum = zlib.crc32(repr((data.state_layout, data.input_layout)).encode())
    checksum = _checksum((*data.states, *data.inputs), checksum)
    return f"{len(data)} trajectories of {data.steps} steps, checksum {checksum:08x}"


def _checksum(tensors: Sequence[torch.Tensor], checksum: int = 0) -> int:
    """Of values spread over all tensors."""
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        for start in torch.linspace(0, max(0, len(flat) - VALUES), BLOCKS).long().unique().tolist():
            checksum = zlib.crc32(flat[start : start + VALUES].contiguous().cpu().numpy().tobytes(), checksum)
    return checksum


def identity_of_solver(solver: Step, batch: Batch) -> dict[str, Any]:
    """How network and physics are put together, and what the physics makes of a state: `(mean, rms)` of the change.

    Args:
        solver: whose weights play no part.
        batch: windows of the data, of which the first one is looked at.
    """
    if not isinstance(solver, HybridSolver):
        return {}
    parts = {
        "coupling": f"{text(solver.coupling)}, sees {solver.sees}, corrects {solver.corrects}",
        "what functions of the coupling do": f"{zlib.crc32(description(solver.coupling).encode()):08x}",
        "features": f"checksum {_checksum(solver.feature_tensors(torch.float64)):08x}",
        **_layers(solver.network),
    }
    try:
        with torch.no_grad(), checked_solves():
            bound = batch.bind(solver)
            after = bound.step.respond((*bound.state, *batch.step_inputs.at(0)), bound.step.no_output()).state
            projected = bound.step.projected(perturbed := tuple(map(_perturbed, after)))
    except SolveError:  # which must not keep a checkpoint from being written
        return parts
    return {**parts, "physics": _changes(bound.state, after), "projection": _changes(perturbed, projected)}


def _changes(before: Tensors, after: Tensors) -> list[list[float]]:
    """Mean and root mean square of the change in the first window, tensor by tensor."""
    changes = [a[0].double() - b[0].double() for a, b in zip(after, before) if a.shape == b.shape]
    return [[float(c.mean()), float(c.square().mean().sqrt())] for c in changes]


def _perturbed(tensor: torch.Tensor) -> torch.Tensor:
    """With noise of a tenth of its size, so that it is no longer what a projection leaves alone."""
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor)
    return tensor + 0.1 * tensor.square().mean().sqrt() * noise


def _layers(network: torch.nn.Module) -> dict[str, str]:
    """Number of layers of each class, e.g. `3 Conv2d, 2 ReLU`, and the settings of each: weights fit others, too."""
    layers = {name: part for name, part in network.named_modules() if next(part.children(), None) is None}
    counts = Counter(type(part).__name__ for part in layers.values())
    settings = {f"layer {name}": text(part) for name, part in layers.items()}
    return {"layers": ", ".join(f"{count} {name}" for name, count in sorted(counts.items())), **settings}


def identity_of_rates(optimizer: torch.optim.Optimizer, scheduler: Any) -> dict[str, Any]:
    """Settings that optimizer and scheduler were made with, e.g. `{"optimizer lr": 0.01, "scheduler T_max": 1000}`."""
    several = optimizer.optimizers if isinstance(optimizer, Optimizers) else [optimizer]
    made_with = [{name: value for name, value in one.defaults.items() if name not in _MANNER} for one in several]
    settings = _plain_entries("optimizer", made_with if len(several) > 1 else made_with[0])
    return settings if scheduler is None else settings | _plain_entries("scheduler", scheduler.state_dict())


def _plain_entries(name: str, value: Any) -> dict[str, Any]:
    """Numbers, texts and tuples of them in nested dicts and lists, but for those that change while a training goes on."""
    if isinstance(value, Counter):  # of the milestones of a schedule
        value = sorted(value.elements())
    if isinstance(value, (list, tuple)) and all(map(_is_plain, value)):
        return {name: tuple(value)}
    if isinstance(value, Mapping):
        parts = {f"{name} {key}": part for key, part in value.items() if key not in _CHANGING}
    elif isinstance(value, (list, tuple)):
        parts = {f"{name}[{number}]": part for number, part in enumerate(value)}
    else:
        return {name: value} if _is_plain(value) else {}
    return {n: v for key, part in parts.items() for n, v in _plain_entries(key, part).items()}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs, by name, now and then. Names that older files lack are passed over."""
    return {name: (value, then[name]) for name, value in now.items() if name in then and not _same(value, then[name])}


def _same(a: Any, b: Any) -> bool:
    """Equal; numbers of the physics up to rounding, which differs between devices and versions."""
    if isinstance(a, list) and isinstance(b, list):
        if len(a) == len(b) == 2 and all(isinstance(x, float) for x in (*a, *b)):
            return all(math.isclose(x, y, rel_tol=1e-5, abs_tol=1e-5 * abs(a[1]) + 1e-12) for x, y in zip(a, b))
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b
