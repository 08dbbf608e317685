"""Arguments of a step: bound as Python would, of one precision and on one device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from phi_hybrid import _compat
from phi_hybrid.bridge.layout import Layout, describe_leaves
from phi_hybrid.errors import StateError

Tensors = tuple[torch.Tensor, ...]


def arguments_of(step: Callable, args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a call of a Python function, by position where that is possible.

    Raises:
        StateError: for missing, superfluous or unknown ones, before any work is done.
    """
    try:
        signature = inspect.signature(_compat.undecorated(step))
    except (TypeError, ValueError):
        return tuple(args), dict(keywords)  # builtins have none
    try:
        bound = signature.bind(*args, **keywords)
    except TypeError as error:
        given = ", ".join([f"{len(args)} by position", *(f"{name}=…" for name in keywords)])
        raise StateError(
            f"the step takes {signature} but got {given}: {error}; pass the state and then every input"
        ) from None
    return bound.args, bound.kwargs


def argument_names_of(step: Callable) -> tuple[str, ...]:
    """Names of the arguments that a Python function takes by position; builtins have none."""
    try:
        parameters = inspect.signature(_compat.undecorated(step)).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def promoted(tensors: Tensors) -> Tensors:
    """The same tensors, all in double precision if any of them are: PhiFlow does so in `with math.precision(64)`."""
    bits = {torch.finfo(t.dtype).bits for t in tensors if t.is_floating_point()}
    if bits != {32, 64}:
        return tensors
    return tuple(t.double() if t.dtype == torch.float32 else t for t in tensors)


def check_tensors(tensors: Sequence[torch.Tensor], layout: Layout) -> None:
    """All arguments of a step have one precision and one device.

    Raises:
        StateError: naming the clash.
    """
    floats = sorted({str(t.dtype) for t in tensors if t.is_floating_point()})
    if len(floats) > 1:
        raise StateError(
            f"arguments of different precision: {', '.join(floats)} in {describe_leaves(layout)}. Convert them, e.g. "
            "phi.math.to_float within `with phi.math.precision(64):`"
        )
    devices = sorted({str(t.device) for t in tensors})
    if len(devices) > 1:
        raise StateError(f"arguments on different devices: {', '.join(devices)}. Move them with phi.math.to_device")
