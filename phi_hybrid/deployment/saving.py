"""Step → file: what it computes as data, its weights, and what it made of an example."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from phi_hybrid._version import __version__
from phi_hybrid.bridge.layout import TreeLayout, batch_names
from phi_hybrid.deployment.batching import Batching, example_batching
from phi_hybrid.deployment.container import write_container
from phi_hybrid.deployment.encoding import encode
from phi_hybrid.deployment.recording import record, require_equal
from phi_hybrid.errors import SolveError, StateError
from phi_hybrid.linear_solve import checked_solves
from phi_hybrid.steps import Step, all_finite, evaluation_mode
from phi_hybrid.steps.face import Tensors

SEED = 1_357_911


def save_step(step: Step, path: str | os.PathLike[str], example: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Writes a step to a file, see `HybridSolver.save`."""
    layout, tensors, batching, batch = example_of(step, example, keywords)
    program = record(step, layout, tensors, batch)
    if added := set(batch_names(program.output_layout)) - {batch}:
        raise StateError(
            f"the step adds the batch dims {sorted(added)} to its state, so that it cannot go on from there; save solvers of "
            "its members, or start from a state that has these dims"
        )
    description, contents = encode(program)
    weights, others = _state_of(step)
    contents |= {f"state/{name}": t for name, t in weights.items() if f"constant/{name}" not in contents}
    contents |= {f"buffer/{name}": t for name, t in own_buffers(step).items()}
    first = first_entries(tensors, batching)
    results = results_of(step, layout, first)
    with torch.no_grad():
        require_equal(program.build(first[0].device)(*first), results["result"])
    contents |= {f"example/{n}": t for n, t in enumerate(first)}
    for kind, tensors in results.items():
        contents |= {f"{kind}/{n}": t for n, t in enumerate(tensors)}
    header = {
        "program": description,
        "state": list(weights),
        "others": others,
        "settings": step.settings(),
        "parameters": list(step.argument_names),
        "versions": versions(),
    }
    write_container(path, header, contents)


def example_of(
    step: Step, example: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[TreeLayout, Tensors, Batching, str]:
    """Layout and tensors of an example with one batch dim, how they were laid along it, and its name.

    Raises:
        StateError: without an example, for a step that was never called.
    """
    if example or keywords:
        tensors, layout = step.flatten_call(example, keywords)
    elif step.known:
        layout = step.known[0].layout
        tensors = _numbers_like(step.known[0].signature.tensors)
    else:
        raise StateError(
            "this solver was never called, so that it is not known for which states it is to be saved; give an example: "
            "solver.save(path, state, *inputs)"
        )
    batching, batch = example_batching(layout)
    merged, _ = batching.merge(tensors)
    return batching.target, merged, batching, batch


def _numbers_like(signature: Sequence[tuple[torch.Size, torch.dtype, torch.device]]) -> Tensors:
    """Numbers around 1, of which most equations make finite ones."""
    generator = torch.Generator().manual_seed(SEED)
    made = (torch.randn(shape, generator=generator).to(dtype=d, device=device) for shape, d, device in signature)
    return tuple(1 + 0.1 * t if t.is_floating_point() or t.is_complex() else torch.ones_like(t) for t in made)


def first_entries(tensors: Tensors, batching: Batching) -> Tensors:
    """The first entry along the batch dim."""
    axes = batching.target.leaves
    return tuple(t[:1].clone() if any(a.kind == "batch" for a in own) else t.clone() for t, own in zip(tensors, axes))


def results_of(step: Step, layout: TreeLayout, tensors: Tensors) -> dict[str, Tensors]:
    """Results of a step and of the physics in it for some arguments, in evaluation mode.

    Raises:
        StateError: if they are not finite.
    """
    steps = {"result": step} | {k: s for k, s in step.named_children() if k == "physics" and isinstance(s, Step)}
    results = {}
    with evaluation_mode(step), torch.no_grad():
        for name, part in steps.items():
            try:
                with checked_solves():
                    results[name] = part.native_for(layout, tensors)(*tensors)
            except SolveError as error:
                raise StateError(f"the step cannot be saved, since it fails for its example: {error}") from error
            if not all_finite(results[name]):
                raise StateError(
                    "the step makes NaN or infinite values of its example, with which nothing can be compared; give a state "
                    "as it occurs, solver.save(path, state, *inputs)"
                )
    return results


def own_buffers(step: Step) -> dict[str, torch.Tensor]:
    """Tensors that the step itself keeps outside of its state dict: features."""
    kept = step.state_dict(keep_vars=True)
    return {name: t for name, t in step.named_buffers(recurse=False) if name not in kept}


def _state_of(step: Step) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors of a state dict, and what else is in it."""
    state = step.state_dict()
    others = {name: value for name, value in state.items() if not isinstance(value, torch.Tensor)}
    try:
        json.dumps(others)
    except (TypeError, ValueError, RecursionError) as error:
        raise StateError(
            f"the state dict holds {', '.join(others)}, of which not all are numbers, strings, lists and dicts ({error}); let "
            "get_extra_state of the network return such"
        ) from None
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}, others


def versions() -> dict[str, str]:
    """Versions of what a saved step was made with."""
    found = {name: version(name) for name in ("torch", "phiflow", "phiml")}
    return {"phi_hybrid": __version__, **found, "python": platform.python_version()}
