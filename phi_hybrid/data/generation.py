"""Runs a reference solver and keeps what it returns, coarsened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from phi_hybrid.bridge.checks import require_count
from phi_hybrid.bridge.dims import TIME
from phi_hybrid.bridge.layout import (
    Layout,
    TreeLayout,
    batch_names,
    batch_sizes,
    flatten,
    position_of,
    tuple_of,
    unflatten,
    without,
)
from phi_hybrid.data.coarsening import coarsen as coarsen_by
from phi_hybrid.data.conversion import given_inputs
from phi_hybrid.errors import DataError, SolveError, StateError
from phi_hybrid.linear_solve import checked_solves
from phi_hybrid.steps import Inputs, Repeatable, all_finite, as_step, bind, flatten_arguments

Tensors = tuple[torch.Tensor, ...]


def generate(
    step: Callable,
    initial_states: Any,
    steps: int,
    inputs: tuple | Mapping[str, Any],
    coarsen: int | Callable[[Any], Any],
    every: int,
    progress: bool,
) -> tuple[Tensors, Tensors, Layout, TreeLayout]:
    """States and inputs of all trajectories, with their layouts; see `Trajectories.generate`."""
    require_count("steps", steps)
    require_count("every", every)
    positional, keywords = given_inputs(inputs)
    if not callable(coarsen):
        require_count("coarsen", coarsen, way_out="or a function state -> state")
    reduce = coarsen if callable(coarsen) else partial(coarsen_by, factor=coarsen)
    reference = as_step(step)
    state, layout, arguments = flatten_arguments(reference, initial_states, positional, keywords)
    if TIME in batch_names(layout):
        raise StateError(f"the initial state has a dim '{TIME}'; pick a frame, e.g. state.time[0]")
    arguments.check_length(steps)
    with torch.no_grad():
        bound = bind(reference, state, layout, arguments)
        frame = tuple_of(bound.layout, arguments.frame_layout)
        sizes = batch_sizes((*bound.state, *arguments.at(0)), frame)
        stored, frames = _stored(bound, arguments, steps, every, sizes), []
        for fine in tqdm(stored, "reference", steps + 1, disable=not progress, unit="step"):
            tensors, layout = flatten(reduce(unflatten(bound.layout, fine)))
            frames.append([_lead(t, axes, sizes) for t, axes in zip(tensors, layout.leaves)])
        coarse, coarse_layout = _reduced(arguments, reduce)
    return (
        tuple(torch.stack(leaf, 1) for leaf in zip(*frames)),
        tuple(_lead(t, axes, sizes).contiguous() for t, axes in zip(coarse, coarse_layout.leaves)),
        without(layout, *sizes),
        without(coarse_layout, *sizes),
    )


def _stored(bound: Repeatable, inputs: Inputs, steps: int, every: int, sizes: Mapping[str, int]) -> Iterator[Tensors]:
    """The first state, and that after every `every` steps.

    Raises:
        DataError: if a state is not finite or a solve fails, naming the step.
    """
    state = bound.state
    for n in range(steps + 1):
        try:
            with checked_solves():
                for _ in range(every if n > 0 else 0):
                    state = bound.step(*state, *inputs.at(n - 1))
        except SolveError as error:
            raise DataError(f"the reference solver failed in stored step {n}: {error}") from error
        if not all_finite(state):
            raise DataError(_divergence([_lead(t, axes, sizes) for t, axes in zip(state, bound.layout.leaves)], n))
        yield state


def _reduced(inputs: Inputs, reduce: Callable) -> tuple[Tensors, TreeLayout]:
    """Inputs with a grid, coarsened like the states."""
    values = unflatten(inputs.layout, inputs.tensors)
    has_grid = [any(a.kind == "spatial" for axes in child.leaves for a in axes) for child in inputs.layout.children]
    tensors, layout = flatten(tuple(reduce(v) if grid else v for v, grid in zip(values, has_grid)))
    return tensors, tuple_of(*layout.children, keywords=inputs.layout.keywords)


def _lead(tensor: torch.Tensor, axes: tuple, batch: Mapping[str, int]) -> torch.Tensor:
    """Merges all batch axes but `time` into a leading one; `time` follows."""
    names, sizes = list(batch), list(batch.values())
    order = sorted({*names, *([TIME] if position_of(TIME, axes) is not None else [])})
    for position, name in enumerate(order):
        if position_of(name, axes) is None:
            tensor = tensor.unsqueeze(position)
    if TIME in order:
        tensor = tensor.movedim(order.index(TIME), len(names))
    tensor = tensor.expand([*sizes, *tensor.shape[len(names) :]])
    return tensor.flatten(0, len(names) - 1) if names else tensor.unsqueeze(0)


def _divergence(state: list[torch.Tensor], step: int) -> str:
    failed = sum((~torch.isfinite(t)).flatten(1).sum(1) for t in state)
    return (
        f"the reference solver became non-finite in stored step {step}, {int(failed.sum())} values, first in trajectory "
        f"{int(failed.nonzero()[0])} ({int((failed > 0).sum())} of {len(failed)} failed); reduce its time step, or use a "
        "more stable scheme"
    )
