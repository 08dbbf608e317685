"""Arrays of named fields on one grid → `Trajectories`, for the readers of foreign files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from phi import math
from phi.field import CenteredGrid, Field
from phi.geom import Box
from phi.math import Shape, spatial
from phi.math.extrapolation import PERIODIC

from phi_hybrid.bridge.checks import require
from phi_hybrid.data.trajectories import Trajectories
from phi_hybrid.errors import StateError

SIDES = ("-", "+")


@dataclass(frozen=True)
class Grid:
    """Cells and bounds that all fields of a file share."""

    sizes: Mapping[str, int]
    bounds: Box

    def field(self, values: math.Tensor, boundary: Any) -> Field:
        """Field of values at the centres of cells."""
        return CenteredGrid(values, boundary, bounds=self.bounds, **self.sizes)

    def example(self, channels: Shape | None, boundary: Any) -> Field:
        """Zero everywhere, with the dims that values have.

        Raises:
            StateError: for what is no boundary, and for a dict without some of the sides.
        """
        names = tuple(self.sizes)
        sides = boundary if isinstance(boundary, Mapping) else dict.fromkeys(names, boundary)
        whole = all(dim in sides or all(dim + s in sides for s in SIDES) for dim in names)
        require(whole, "boundary", boundary, f"both sides of {names}, e.g. {{'x-': 0, 'x+': ZERO_GRADIENT}}")
        require(None not in sides.values(), "boundary", boundary, "what holds there, e.g. PERIODIC or ZERO_GRADIENT")
        shape = spatial(**self.sizes)
        zeros = math.zeros(shape if channels is None else math.concat_shapes(shape, channels))
        try:
            return self.field(zeros, boundary)
        except (AssertionError, TypeError, ValueError) as error:  # of PhiFlow
            require(False, "boundary", boundary, f"a boundary of PhiFlow, e.g. PERIODIC or {{'x': 0}} ({error})")
            raise


def assembled(
    arrays: Mapping[str, np.ndarray],
    examples: Mapping[str, Field],
    inputs: tuple,
    metadata: Mapping[str, Any],
) -> Trajectories:
    """One field as it is, several as a dict.

    Args:
        arrays: name → values `(trajectory, time, *spatial, *channel)`.
        examples: name → field of these dims on the grid.
        inputs: of the steps.
        metadata: JSON values.
    """
    names = list(arrays)
    like = examples[names[0]] if len(names) == 1 else {n: examples[n] for n in names}
    return Trajectories.from_tensors(list(arrays.values()), like, inputs, metadata=metadata)


def chosen(fields: Sequence[str] | None, available: Sequence[str], where: str) -> list[str]:
    """The names of fields to read, all that there are by default."""
    require_names("fields", available if fields is None else fields, available)
    names = list(available if fields is None else fields)
    if not names or (unknown := [n for n in names if n not in available]):
        raise StateError(
            f"fields = {names if not names else unknown}: {where} has {list(available)}; choose among them"
        )
    return names


def require_names(argument: str, names: Any, available: Sequence[str]) -> None:
    """Raises StateError for what is no list of texts."""
    valid = isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)
    require(valid, argument, names, f"a list of names, e.g. {list(available)[:2]}")


def boundary_for(field: str, boundary: Any, fields: Collection[str], dims: Sequence[str]) -> Any:
    """The boundary of one field, out of one for all or one for each by name."""
    if not isinstance(boundary, Mapping):
        return boundary
    sides = [*dims, *(d + s for d in dims for s in SIDES)]
    if all(key in sides for key in boundary):
        return dict(boundary)
    if unknown := [key for key in boundary if key not in fields]:
        raise StateError(
            f"boundary for {unknown}: expected sides of the domain, {sides}, or names of fields, {list(fields)}, each "
            'with its boundary, e.g. {"velocity": {"y": 0}, "pressure": ZERO_GRADIENT}'
        )
    if field not in boundary:
        raise StateError(f"boundary says nothing about '{field}', but about {list(boundary)}; add it")
    return boundary[field]


def periodic_dims(boundaries: Collection[Any], dims: Sequence[str]) -> set[str]:
    """Dims along which all of these boundaries are periodic."""

    def periodic(boundary: Any, dim: str) -> bool:
        if isinstance(boundary, Mapping):
            return PERIODIC == boundary.get(dim, boundary.get(dim + "-"))
        return boundary is not None and PERIODIC == boundary

    return {d for d in dims if all(periodic(b, d) for b in boundaries)}
