"""Sets of trajectories that are put together: what has to be equal, and what becomes of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from phi_hybrid.data.batch import DataLayout
from phi_hybrid.errors import StateError

if TYPE_CHECKING:
    from phi_hybrid.data.trajectories import Trajectories


def require_alike(sets: Mapping[str, Trajectories]) -> None:
    """Raises StateError unless all sets have the layouts, precision and device of the first."""
    (first, expected), *others = sets.items()
    for name, data in others:
        if data.layouts != expected.layouts:
            raise StateError(
                f"{name} is of another kind than {first}: {_difference(data.layouts, expected.layouts)}. Sets that are put "
                "together have one grid, one boundary and the same inputs, each with a dim `time` in all or in none: see "
                "data.with_inputs(…)"
            )
        for own, its in zip((*data.states, *data.inputs), (*expected.states, *expected.inputs)):
            if (own.dtype, own.device) != (its.dtype, its.device):
                raise StateError(
                    f"{name} holds {own.dtype} on {own.device} where {first} holds {its.dtype} on {its.device}; give all "
                    "sets one precision and one device, e.g. Trajectories.from_tensors(tensor.float(), …)"
                )


def require_equal_lengths(sets: Mapping[str, Trajectories]) -> None:
    """Raises StateError unless all trajectories have as many steps as those of the first set."""
    if len({data.steps for data in sets.values()}) > 1:
        raise StateError(
            f"the trajectories have different lengths, { ({name: data.steps for name, data in sets.items()}) } steps: cut them "
            "to one, data.between(0, steps), or train on a phi_hybrid.data.Mixture of sets, one for each length"
        )


def in_a_row(tensors: Sequence[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """Tensors `(trajectory, …)` of several sets, one after the other."""
    return tuple(map(torch.cat, zip(*tensors)))


def inputs_in_a_row(sets: Sequence[Trajectories]) -> tuple[torch.Tensor, ...]:
    """Inputs of several sets, one after the other. Entries along `time` that no step needs may be in some sets only."""
    columns = zip(*(data.inputs for data in sets))
    return tuple(torch.cat(_cut(column) if v else column) for column, v in zip(columns, sets[0].layouts.varies))


def common(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all mappings hold with the same value."""
    first, *others = entries
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


def _cut(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors `(trajectory, time, …)`, as long as the shortest."""
    shortest = min(t.shape[1] for t in tensors)
    return [t[:, :shortest] for t in tensors]


def _difference(own: DataLayout, its: DataLayout) -> str:
    pairs = {"states": (own.state, its.state), "inputs": (own.inputs, its.inputs)}
    return "; ".join(f"{name}: {a.difference(b)}" for name, (a, b) in pairs.items() if a != b)
