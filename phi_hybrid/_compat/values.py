"""PhiFlow and PhiML values: fields, boundaries, sparse tensors."""

from __future__ import annotations

from typing import Any

from phi import math
from phi.field import Field
from phiml.math import extrapolation
from phiml.math._tensors import Tensor as PhiTensor
from phiml.math._tree import Layout


def assemble_field(
    geometry: Any,
    values: PhiTensor,
    boundary: extrapolation.Extrapolation,
    variable_attrs: tuple[str, ...] = ("values",),
    value_attrs: tuple[str, ...] = ("values",),
) -> Field:
    """`Field(geometry, values, boundary)` without its shape check, which takes milliseconds on staggered grids."""
    field = object.__new__(Field)
    attributes = dict(geometry=geometry, values=values, boundary=boundary)
    for name, value in dict(attributes, variable_attrs=variable_attrs, value_attrs=value_attrs).items():
        object.__setattr__(field, name, value)
    return field


def is_sparse(tensor: PhiTensor) -> bool:
    """Tells if `tensor` is a PhiML sparse tensor (coordinate or compressed)."""
    from phiml.math._sparse import is_sparse as phiml_is_sparse

    return phiml_is_sparse(tensor)


def natives_of(tensor: PhiTensor) -> tuple[Any, ...]:
    """The native tensors, arrays and numbers that a PhiML tensor consists of; none for one that holds objects."""
    return () if isinstance(tensor, Layout) else tensor._natives()


def parts_of_boundary(boundary: extrapolation.Extrapolation) -> dict[str, Any] | None:
    """Boundaries and tensors that a boundary consists of, sides by name; `None` for one of PhiFlow's primitives."""
    if isinstance(boundary, extrapolation._MixedExtrapolation):
        return sides_in_order(boundary)
    if isinstance(boundary, extrapolation._NormalTangentialExtrapolation):
        return {"normal": boundary.normal, "tangential": boundary.tangential}
    return None if type(boundary) in _PRIMITIVES else {"itself": None}


_PRIMITIVES = {
    type(boundary)
    for boundary in (*extrapolation._PRIMITIVES.values(), extrapolation.ANTIREFLECT, extrapolation.NONE)
    if not isinstance(boundary, extrapolation.ConstantExtrapolation)
}


def sides_in_order(boundary: extrapolation.Extrapolation) -> dict[str, extrapolation.Extrapolation]:
    """Sides of a mixed boundary in the order that decides which of two constants fills the corners; none of others."""
    sides = boundary.ext.items() if isinstance(boundary, extrapolation._MixedExtrapolation) else ()
    return dict(sorted(sides, key=lambda side: side[1].pad_rank))


def boundary_to_dict(boundary: extrapolation.Extrapolation) -> dict[str, Any]:
    """JSON description of a boundary condition. Unlike `Extrapolation.to_dict` it keeps vector values and their names.

    Raises:
        ValueError: for boundaries that hold trainable tensors, fields, or values with other dims than `vector`.
    """
    if isinstance(boundary, extrapolation.ConstantExtrapolation):
        value = boundary.value
        if any(getattr(native, "requires_grad", False) for native in natives_of(value)):
            raise ValueError(f"boundary value {boundary} is a trainable tensor")
        if not value.shape:
            return {"constant": value.numpy().item()}
        if value.shape.names != ("vector",):
            raise ValueError(f"boundary value of shape {value.shape}: only numbers and vectors are constants")
        return {"vector": {k: value.vector[k].numpy().item() for k in value.shape.get_item_names("vector")}}
    if isinstance(boundary, extrapolation._MixedExtrapolation):
        return {"sides": {side: boundary_to_dict(b) for side, b in boundary.ext.items()}}
    if isinstance(boundary, extrapolation._NormalTangentialExtrapolation):
        return {"normal": boundary_to_dict(boundary.normal), "tangential": boundary_to_dict(boundary.tangential)}
    if type(boundary) not in _PRIMITIVES:
        raise ValueError(f"boundary {boundary} ({type(boundary).__name__}) is not supported here: it holds tensors")
    return {"primitive": boundary.to_dict()["type"]}


def boundary_from_dict(description: dict[str, Any]) -> extrapolation.Extrapolation:
    """Inverse of `boundary_to_dict`."""
    if "constant" in description:
        return extrapolation.ConstantExtrapolation(description["constant"])
    if "vector" in description:
        return extrapolation.ConstantExtrapolation(math.vec(**description["vector"]))
    if "sides" in description:
        return extrapolation._MixedExtrapolation({s: boundary_from_dict(b) for s, b in description["sides"].items()})
    if "normal" in description:
        return extrapolation.combine_by_direction(
            boundary_from_dict(description["normal"]), boundary_from_dict(description["tangential"])
        )
    if description["primitive"] == "antireflect":
        return extrapolation.ANTIREFLECT  # PhiML's table has another boundary under this name
    return extrapolation.from_dict({"type": description["primitive"]})
