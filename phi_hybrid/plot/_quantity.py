"""Which scalar of a field is shown: a component, the magnitude, the vorticity or a function of the field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from phi import math
from phi.field import CenteredGrid, Field
from phiml.math import extrapolation


@dataclass(frozen=True)
class Quantity:
    """A scalar over time and space.

    Attributes:
        values: Array with axes (time, x[, y]).
        axes: Names of the shown space axes, in the order of `values`.
        bounds: Lower and upper end of each shown axis.
        label: What the colour bar or the vertical axis says.
        signed: Whether zero is the natural middle, whatever the data.
        resolution: Cells along all axes of the field, also the one that is cut in 3D.
    """

    values: np.ndarray
    axes: tuple[str, ...]
    bounds: tuple[tuple[float, float], ...]
    label: str
    signed: bool
    resolution: tuple[tuple[str, int], ...]

    def centres(self, axis: int = 0) -> np.ndarray:
        """Cell centres along one axis, in units of length."""
        (low, high), cells = self.bounds[axis], self.values.shape[1 + axis]
        return low + (high - low) * (np.arange(cells) + 0.5) / cells


def space_names(field: Field) -> list[str]:
    """Names of the space axes: x, y, z."""
    return sorted(name for name in field.resolution.names if name != "time")


def centred(field: Field) -> Field:
    """The field at cell centres.

    Components are resampled one at a time because `at_centers()` refuses boundaries that differ between the normal
    and the tangential component (slip walls), while their components carry an ordinary boundary.
    """
    if field.is_centered:
        return field
    target = CenteredGrid(0, 0, field.bounds, field.resolution)
    parts = {axis: field.vector[axis].at(target).values for axis in space_names(field)}
    return Field(field.geometry, math.stack(parts, math.channel("vector")), field.boundary)


def components(field: Field) -> dict[str, np.ndarray]:
    """Arrays (time, x, y, z) of each component of a centred field; a scalar has the one name ''.

    3D fields are cut at the middle of their last axis, which then is missing in the arrays.
    """
    names = space_names(field)
    values = math.expand(field.values, field.shape.only(["time", *names]))
    if len(names) == 3:
        values = values[{names[-1]: field.resolution.get_size(names[-1]) // 2}]
    order = ",".join(["time", *names[:2]])
    channel = values.shape.channel
    if channel.rank > 1 or values.shape.dual:
        raise ValueError(
            f"cannot show values of shape {values.shape}: expected a scalar or one vector dim; "
            f"pass quantity=function that returns a scalar field"
        )
    if not channel:
        return {"": _real(values.numpy(order))}
    labels = channel.item_names[0] or [str(index) for index in range(channel.size)]
    return {label: _real(values[{channel.name: index}].numpy(order)) for index, label in enumerate(labels)}


def _real(array: np.ndarray) -> np.ndarray:
    if np.iscomplexobj(array):
        raise ValueError("cannot show complex values; pass e.g. quantity=lambda u: math.abs(u)")
    return np.asarray(array, dtype=np.float64)


def measure(field: Field, quantity: str | Callable[[Field], Field] | None) -> Quantity:
    """The shown scalar of a trajectory (time, x[, y[, z]][, vector]) without further batch dims."""
    label = ""
    if callable(quantity):
        label, quantity, field = getattr(quantity, "__name__", ""), None, quantity(field)
        if not isinstance(field, Field) or field.shape.channel.volume != 1 or field.is_staggered:
            raise ValueError(
                f"the function given as quantity must return a scalar, centred Field, "
                f"got {getattr(field, 'shape', type(field).__name__)}"
            )
        label = "value" if label in ("", "<lambda>") else label.replace("_", " ")
    names = space_names(field)
    if len(names) > 3:
        raise ValueError(f"cannot show {len(names)} space dims {names}: expected one, two or three")
    field = centred(field)
    values, own_label, signed = _select(field, components(field), quantity)
    box = {name: (float(field.bounds.lower.vector[name]), float(field.bounds.upper.vector[name])) for name in names}
    resolution = tuple((name, field.resolution.get_size(name)) for name in names)
    return Quantity(values, tuple(names[:2]), tuple(box[n] for n in names[:2]), label or own_label, signed, resolution)


def _select(field: Field, parts: dict[str, np.ndarray], quantity: str | None) -> tuple[np.ndarray, str, bool]:
    plane = space_names(field) == sorted(parts) and len(parts) == 2
    if quantity is None and len(parts) > 1:
        quantity = "vorticity" if plane else "magnitude"
    if quantity is None:
        return next(iter(parts.values())), "u", False
    if quantity == "magnitude":
        return np.sqrt(sum(part**2 for part in parts.values())), "|u|", False
    if quantity == "vorticity" and plane:
        return vorticity(field, parts), "vorticity ω", True
    if quantity in parts and quantity:
        return parts[quantity], f"$u_{{{quantity}}}$" if len(parts) > 1 else "u", False
    known = [name for name in parts if name] + ["magnitude"] + ["vorticity"] * plane
    raise ValueError(
        f"unknown quantity {quantity!r} for a field of shape {field.shape}: expected one of {known}, "
        f"None, or a function Field -> scalar Field (vorticity needs a 2D vector field)"
    )


def vorticity(field: Field, parts: dict[str, np.ndarray]) -> np.ndarray:
    """ω = ∂v/∂x − ∂u/∂y at the cell centres by central differences, one-sided at non-periodic edges."""
    first, second = space_names(field)
    return _derivative(field, parts[second], first, 1) - _derivative(field, parts[first], second, 2)


def _derivative(field: Field, values: np.ndarray, dim: str, axis: int) -> np.ndarray:
    spacing = float(field.dx.vector[dim])
    if is_periodic(field, dim):
        return (np.roll(values, -1, axis) - np.roll(values, 1, axis)) / (2 * spacing)
    return np.gradient(values, spacing, axis=axis, edge_order=2 if values.shape[axis] > 2 else 1)


def is_periodic(field: Field, dim: str) -> bool:
    """Whether the field's boundary is periodic along `dim`."""
    boundary = field.boundary
    return getattr(boundary, "ext", {}).get(dim, boundary) == extrapolation.PERIODIC
