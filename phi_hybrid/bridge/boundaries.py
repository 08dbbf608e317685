"""Boundaries of fields: which of them are constants of a layout, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from phiml.math import extrapolation

from phi_hybrid import _compat


def is_constant(boundary: extrapolation.Extrapolation) -> bool:
    """Tells if a boundary holds nothing but numbers and vectors of numbers, from Python or NumPy.

    Torch tensors are inputs of a step, here as elsewhere, and so is all that has further dims.
    """
    if isinstance(boundary, extrapolation.ConstantExtrapolation):
        value = boundary.value
        number = not value.shape or (value.shape.names == ("vector",) and value.shape.get_item_names("vector"))
        return bool(number) and not any(isinstance(n, torch.Tensor) for n in _compat.natives_of(value))
    parts = _compat.parts_of_boundary(boundary)
    return parts is None or all(isinstance(p, extrapolation.Extrapolation) and is_constant(p) for p in parts.values())


def kinds_of_sides(description: dict, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Side → kind of boundary, e.g. `('x-', 'periodic')`.

    Args:
        description: as of `_compat.boundary_to_dict`.
        names: of the dims of the grid.
    """
    sides = [name + side for name in sorted(names) for side in "-+"]
    return tuple((side, _kind(description, side)) for side in sides)


def _kind(description: dict, side: str) -> str:
    if "sides" in description:
        return _kind(description["sides"].get(side, description["sides"].get(side[:-1])), side)
    if "normal" in description:
        parts = (_kind(description[k], side) for k in ("normal", "tangential"))
        return " normal, ".join(parts) + " tangential"
    return description.get("primitive", "constant")
