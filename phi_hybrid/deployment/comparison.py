"""Whether a file and a solver in memory compute the same, and what differs if not."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from phi_hybrid.deployment.program import Program
from phi_hybrid.deployment.saving import own_buffers, results_of, versions
from phi_hybrid.errors import DataError, StateError
from phi_hybrid.steps import Step
from phi_hybrid.steps.face import Tensors

ROUNDING = {torch.float32: 1e-4, torch.complex64: 1e-4, torch.float64: 1e-8, torch.complex128: 1e-8}
"""Of one step, relative to the largest value: another machine, or another version of torch, adds in another order."""


@dataclass(frozen=True)
class Saved:
    """What a file holds.

    Attributes:
        program: the step as data.
        state: its state dict.
        buffers: tensors that it keeps besides: features.
        settings: coupling, choices, kinds of features.
        versions: of the packages it was saved with.
        example: state and inputs, a single batch entry.
        result: what the step made of them.
        physics: what the physics alone made of them.
    """

    program: Program
    state: Mapping[str, Any]
    buffers: Mapping[str, torch.Tensor]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    example: Tensors
    result: Tensors
    physics: Tensors


def require_alike(step: Step, saved: Saved) -> None:
    """Raises DataError if a loaded step computes other numbers than it did where it was saved."""
    with torch.no_grad():
        results = step.native_for(saved.program.layout, saved.example)(*saved.example)
    if difference := _difference(results, saved.result):
        known, here = saved.versions, versions()
        changed = [
            f"{name} {known.get(name)} there, {own} here" for name, own in here.items() if known.get(name) != own
        ]
        raise DataError(
            f"computes other numbers here than where it was saved ({difference}; {', '.join(changed) or 'same versions'})"
        )


def fill(step: Step, saved: Saved) -> None:
    """Gives weights, scales, features and boundaries of a file to a step made of the same code; all of them or none.

    Raises:
        StateError: naming the differences.
    """
    found = [*_different_settings(step, saved), *_different_tensors(step, saved)]
    if not found:
        found = _different_results(copy.deepcopy(step), saved)
    if found:
        raise StateError(
            f"the file does not fit this solver, which is left as it was: {'; '.join(found)}. Make it of the code that was "
            "saved, or take the step as it is in the file: ph.load(path)"
        )
    _apply(step, saved)


def _different_settings(step: Step, saved: Saved) -> list[str]:
    own = step.settings()
    names = dict.fromkeys([*saved.settings, *own])
    return [
        f"{name} is {saved.settings.get(name)!r} in the file, {own.get(name)!r} here"
        for name in names
        if saved.settings.get(name) != own.get(name)
    ]


def _different_tensors(step: Step, saved: Saved) -> list[str]:
    """Weights and features that are missing or of other shapes. Scales get their size from the file."""
    own = {**step.state_dict(keep_vars=True), **own_buffers(step)}
    given = {**saved.state, **saved.buffers}
    scales = set(dict(step.named_buffers(recurse=False)))
    found = [f"{name} is {'not here' if name in given else 'not in the file'}" for name in own.keys() ^ given.keys()]
    for name in own.keys() & given.keys():
        pair = own[name], given[name]
        if all(isinstance(t, torch.Tensor) for t in pair) and (name not in scales or name in saved.buffers):
            shapes = [tuple(t.shape) for t in pair]
            if shapes[0] != shapes[1]:
                found.append(f"{name} has the shape {shapes[1]} in the file, {shapes[0]} here")
    return sorted(found)


def _apply(step: Step, saved: Saved) -> None:
    state = {name: t.clone() if isinstance(t, torch.Tensor) else t for name, t in saved.state.items()}
    step.load_state_dict(state)
    with torch.no_grad():
        for name, buffer in own_buffers(step).items():
            buffer.copy_(saved.buffers[name])


def _different_results(trial: Step, saved: Saved) -> list[str]:
    """What a copy of the step makes of the example once it has all that is in the file."""
    try:
        _apply(trial, saved)
        results = results_of(trial, saved.program.layout, saved.example)
    except Exception as error:  # whatever the user's code makes of weights and states of unknown origin
        return [f"with its weights the step fails for the example ({type(error).__name__}: {error})"]
    if difference := _difference(results.get("physics", ()), saved.physics):
        return [f"the physics makes another state of the example ({difference})"]
    if difference := _difference(results["result"], saved.result):
        return [f"network, coupling or projection make another state of the example ({difference})"]
    return []


def _difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> str:
    """What tells two states apart beyond rounding, in words; empty if nothing does."""
    if [(t.shape, t.dtype) for t in found] != [(t.shape, t.dtype) for t in expected]:
        return f"shapes {[tuple(t.shape) for t in found]}, {[tuple(t.shape) for t in expected]} in the file"
    for number, (a, b) in enumerate(zip(found, expected)):
        b = b.to(a.device)
        if torch.equal(a, b):
            continue
        size, distance = float(b.abs().max()), float((a - b).abs().max())
        if not distance <= ROUNDING.get(a.dtype, 0.0) * size:
            return f"tensor {number} differs by {distance:.1e}, largest value {size:.1e}"
    return ""
