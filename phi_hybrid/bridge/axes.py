"""Named dimensions of native tensors, in one order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from phi import math
from phi.math import Shape

_KINDS = {
    "batch": math.batch,
    "dual": math.dual,
    "instance": math.instance,
    "spatial": math.spatial,
    "channel": math.channel,
}


@dataclass(frozen=True, order=True)
class Axis:
    """One named dimension. The size of an unlabelled batch axis is left open."""

    kind: str
    name: str
    size: int | None = None
    labels: tuple[str, ...] | None = None

    def shape(self, size: int) -> Shape:
        """PhiML's dim of this size."""
        return _KINDS[self.kind](**{self.name: self.labels if self.labels else size})

    @property
    def phi_name(self) -> str:
        """Name as PhiML writes it."""
        return "~" + self.name if self.kind == "dual" else self.name

    def __str__(self) -> str:
        return f"{self.name}={','.join(self.labels) if self.labels else self.size or 'any'}"


def axis_of(dim: Shape) -> Axis:
    """The axis of one dim of a PhiML shape."""
    labels = dim.labels[0]
    size = None if dim.batch and not labels else dim.size
    kind = next(k for k in _KINDS if getattr(dim, k))
    return Axis(kind, dim.name.lstrip("~"), size, tuple(labels) if labels else None)


def sorted_axes(axes: Iterable[Axis]) -> list[Axis]:
    """The canonical order: by kind, then by name; spatial axes stay as they are declared."""
    order = list(_KINDS)
    return sorted(axes, key=lambda a: (order.index(a.kind), "" if a.kind == "spatial" else a.name))


def position_of(name: str, axes: tuple[Axis, ...]) -> int | None:
    """Index of the axis `name` among `axes`, `None` if it is not there."""
    return next((i for i, a in enumerate(axes) if a.name == name), None)


def describe_axes(leaves: Iterable[tuple[Axis, ...]]) -> str:
    """Human-readable shapes of tensors."""
    return ", ".join("(" + ", ".join(map(str, axes)) + ")" for axes in leaves) or "no tensors"
