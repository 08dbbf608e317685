"""States of others as reference data: PhiFlow states with a dim `time`, or native tensors beside an example state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from phi import math

from phi_hybrid.bridge.checks import require, require_instance
from phi_hybrid.bridge.dims import TIME, TRAJECTORY
from phi_hybrid.bridge.layout import (
    Axis,
    Layout,
    TreeLayout,
    batch_names,
    batch_sizes,
    describe_leaves,
    flatten,
    precision_of,
    repeat,
    stack,
    tuple_of,
    with_batch,
    without,
)
from phi_hybrid.errors import StateError

Tensors = tuple[torch.Tensor, ...]


# --- native tensors ---


def states_from_tensors(states: Any, like: Any) -> tuple[Tensors, Layout]:
    """Native states `(trajectory, time, …)` and their layout, which is that of `like`; see `Trajectories.from_tensors`."""
    examples, layout = flatten(like)
    _require_batch_dims(layout, "like")
    layout = without(layout, TIME, TRAJECTORY)
    given = [states] if isinstance(states, (torch.Tensor, np.ndarray)) else states
    kinds = "torch tensors or NumPy arrays (trajectory, time, …), one for each tensor of `like`"
    require_instance("states", given, (tuple, list), kinds)
    for number, values in enumerate(given):
        require_instance(f"states[{number}]", values, (torch.Tensor, np.ndarray), kinds)
    if len(given) != len(layout.leaves):
        raise StateError(
            f"{len(given)} tensors of states given, but `like` has {len(layout.leaves)}: {describe_leaves(layout)}; give "
            "them in the order of bridge.flatten(like)[0]"
        )
    tensors = tuple(map(_native, given))
    for number, (tensor, example, axes) in enumerate(zip(tensors, examples, layout.leaves)):
        _require_like(number, tensor, example, axes, tuple(tensors[0].shape[:2]))
    _require_frames(tensors[0].shape[1] if tensors else 0)
    _require_alike(tensors)
    return tensors, layout


def _native(values: torch.Tensor | np.ndarray) -> torch.Tensor:
    """The values as a torch tensor without gradients; memory is shared where torch can."""
    if isinstance(values, torch.Tensor):
        if values.layout != torch.strided or values.is_meta:
            kind = "meta" if values.is_meta else str(values.layout)
            raise StateError(
                f"a {kind} tensor among the states; pass one that holds all its values, e.g. tensor.to_dense()"
            )
        return values.detach()
    if np.ma.isMaskedArray(values):
        raise StateError(
            "a masked array among the states; fill it, values.filled(0.0), if masked values are of no account"
        )
    if values.dtype.kind not in "fciub":
        raise StateError(f"an array of {values.dtype} among the states; pass numbers")
    native = values.dtype.newbyteorder("=")  # HDF5 files of other machines
    return torch.from_numpy(np.require(values, native, ["C", "W"]))


def _require_like(
    number: int, tensor: torch.Tensor, example: torch.Tensor, axes: tuple[Axis, ...], batch: tuple[int, ...]
) -> None:
    sizes = tuple(a.size for a in axes)
    if tensor.ndim < 2 or tuple(tensor.shape[2:]) != sizes or tuple(tensor.shape[:2]) != batch or 0 in tensor.shape:
        expected = ", ".join(["trajectory, time", *map(str, axes)])
        first = f", with (trajectory, time) = {batch} as in the first tensor" if number else ""
        raise StateError(
            f"states[{number}] has shape {tuple(tensor.shape)}, expected ({expected}){first}; the axes after "
            "(trajectory, time) are those of bridge.flatten(like): permute the tensor, or give a `like` on its grid"
        )
    kinds = [(t.is_floating_point(), t.is_complex(), None if _has_precision(t) else t.dtype) for t in (tensor, example)]
    if kinds[0] != kinds[1] or tensor.dtype in (torch.float16, torch.bfloat16):
        raise StateError(
            f"states[{number}] holds {tensor.dtype}, but `like` {example.dtype} there; convert one of them, e.g. "
            "tensor.float() or tensor.double()"
        )


# --- PhiFlow states ---


def states_from_fields(states: Any) -> tuple[Tensors, Layout]:
    """Native states `(trajectory, time, …)` and the layout of one; see `Trajectories.from_fields`."""
    if isinstance(states, list) and not _has_time(states):
        tensors, layout = _stacked(states)
    else:
        tensors, layout = flatten(states)
        _require_batch_dims(layout, "states")
        if TIME not in batch_names(layout):
            raise StateError(
                f"the states {describe_leaves(layout)} have no batch dim '{TIME}'; stack them along it, as iterate and "
                "rollout do, or pass a list of states, one for each time"
            )
    full = with_batch(layout, TIME, TRAJECTORY)
    sizes = {TRAJECTORY: 1} | batch_sizes(tensors, layout)
    _require_frames(sizes[TIME])
    _require_alike(tensors)
    tensors = repeat([t.detach() for t in tensors], layout, full, sizes)
    # canonical: 'time' stands before 'trajectory'
    return tuple(t.transpose(0, 1).contiguous() for t in tensors), without(layout, TIME, TRAJECTORY)


def _has_time(states: list) -> bool:
    """Whether a list is one state with a dim `time`, not one state for each time."""
    return bool(states) and TIME in batch_names(flatten(states[0])[1])


def _stacked(states: list) -> tuple[Tensors, Layout]:
    """A state with a dim `time` from one state for each time; all get the batch dims that any of them has."""
    _require_frames(len(states))
    frames = [flatten(state) for state in states]
    first = without(frames[0][1], TRAJECTORY)
    for number, (_, layout) in enumerate(frames):
        _require_batch_dims(layout, f"states[{number}]")
        if TIME in batch_names(layout):
            raise StateError(
                f"states[{number}] has a batch dim '{TIME}', but states[0] has none: pass a list of states without it, "
                "one for each time, or one state with it"
            )
        if (own := without(layout, TRAJECTORY)) != first:
            raise StateError(
                f"states[{number}] is of another kind than states[0]: {own.difference(first)}; all states of a "
                "trajectory have one grid and one boundary, e.g. with u.with_boundary(…)"
            )
    if all(layout == frames[0][1] for _, layout in frames):
        wide = frames[0][1]
    else:  # an initial state without 'trajectory', before inputs that have it
        wide = with_batch(first, TRAJECTORY)
    sizes = [batch_sizes(*frame).get(TRAJECTORY, 1) for frame in frames]
    if len(unequal := {s for s in sizes if s > 1}) > 1:
        raise StateError(f"the states have {sorted(unequal)} entries along '{TRAJECTORY}'; give each the same number")
    together = [repeat(tensors, layout, wide, {TRAJECTORY: max(sizes)}) for tensors, layout in frames]
    for number, tensors in enumerate(together):
        if [t.dtype for t in tensors] != [t.dtype for t in together[0]]:
            raise StateError(
                f"states[{number}] holds {[t.dtype for t in tensors]}, states[0] {[t.dtype for t in together[0]]}; make "
                "all states in one precision, e.g. within math.precision(64)"
            )
    return stack(together, wide, TIME)


# --- inputs ---


def leading_inputs(
    inputs: Sequence[Any], keywords: Mapping[str, Any], trajectories: int, steps: int
) -> tuple[Tensors, TreeLayout]:
    """Native inputs `(trajectory, …)` or `(trajectory, time, …)`, and their layout; see `Trajectories.with_inputs`."""
    tensors, layout = flatten((*inputs, *keywords.values()))
    layout = tuple_of(*layout.children, keywords=tuple(keywords))
    expected = {TIME: steps, TRAJECTORY: trajectories}
    leading = []
    for tensor, axes in zip(tensors, layout.leaves):
        batch = {a.name: size for a, size in zip(axes, tensor.shape) if a.kind == "batch"}
        if wrong := {name: size for name, size in batch.items() if expected.get(name) != size}:
            raise StateError(
                f"an input has batch dims {wrong}, but this data has {TRAJECTORY} = {trajectories} and {TIME} = "
                f"{steps} steps: give an input these dims, or none"
            )
        order = [list(batch).index(n) for n in (TRAJECTORY, TIME) if n in batch]
        tensor = tensor.permute([*order, *range(len(batch), tensor.ndim)])
        tensor = tensor if TRAJECTORY in batch else tensor.expand(trajectories, *tensor.shape)
        leading.append(tensor.contiguous())
    return tuple(leading), without(layout, TRAJECTORY)


def inputs_beside(states: Tensors, inputs: Any) -> tuple[Tensors, TreeLayout]:
    """Native inputs of the steps between native states, in their precision if they are NumPy's or Python's."""
    positional, keywords = given_inputs(inputs)
    trajectories, frames = states[0].shape[:2]
    with math.precision(precision_of(states)):
        tensors, layout = leading_inputs(positional, keywords, trajectories, frames - 1)
    _require_alike((*states, *tensors))
    return tensors, layout


def given_inputs(inputs: Any) -> tuple[tuple, Mapping[str, Any]]:
    """Inputs of a step that are given by position, and by name."""
    way_out = 'arguments of the step, inputs=(force,), or by name, inputs={"force": force}'
    require_instance("inputs", inputs, (tuple, Mapping), way_out)
    if not isinstance(inputs, Mapping):
        return inputs, {}
    require(all(isinstance(name, str) for name in inputs), "inputs", inputs, way_out)
    return (), inputs


# --- checks ---


def _require_batch_dims(layout: Layout, name: str) -> None:
    if other := [n for n in batch_names(layout) if n not in (TIME, TRAJECTORY)]:
        raise StateError(
            f"{name} has batch dims {other}; data has '{TRAJECTORY}' and '{TIME}' only: rename one, "
            f"math.rename_dims(state, {other[0]!r}, batch('{TRAJECTORY}')), or pick an entry"
        )


def _require_frames(count: int) -> None:
    require(count >= 2, "number of states in time", count, "at least 2, the first and one to compare with")


def _has_precision(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _require_alike(tensors: Sequence[torch.Tensor]) -> None:
    """Raises StateError unless the tensors have one precision and one device."""
    if not any(map(_has_precision, tensors)):
        raise StateError("none of the states holds real numbers; convert them with phi.math.to_float")
    if len(found := {torch.finfo(t.dtype).bits: t.dtype for t in tensors if _has_precision(t)}) > 1:
        raise StateError(
            f"states and inputs hold numbers of {len(found)} precisions, {sorted(map(str, found.values()))}; convert them "
            "to one, e.g. tensor.float(), or make PhiFlow values within math.precision(64)"
        )
    if len(devices := {str(t.device) for t in tensors}) > 1:
        raise StateError(
            f"states and inputs are on several devices, {sorted(devices)}; move them to one, tensor.to(device)"
        )
