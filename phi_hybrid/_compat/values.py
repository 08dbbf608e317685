"""PhiFlow and PhiML values: fields, boundaries, sparse tensors."""

from __future__ import annotations

from typing import Any

from phi import math
from phi.field import Field
from phiml.math import extrapolation
from phiml.math._tensors import Tensor as PhiTensor
from phiml.math._tree import Layout


def assemble_field(geometry: Any, values: PhiTensor, boundary: extrapolation.Extrapolation) -> Field:
    """`Field(geometry, values, boundary)` without its shape check, which takes milliseconds on staggered grids."""
    field = object.__new__(Field)
    attributes = dict(geometry=geometry, values=values, boundary=boundary)
    for name, value in dict(attributes, variable_attrs=("values",), value_attrs=("values",)).items():
        object.__setattr__(field, name, value)
    return field


def is_sparse(tensor: PhiTensor) -> bool:
    """Tells if `tensor` is a PhiML sparse tensor (coordinate or compressed)."""
    from phiml.math._sparse import is_sparse as phiml_is_sparse

    return phiml_is_sparse(tensor)


def boundary_to_dict(boundary: extrapolation.Extrapolation) -> dict:
    """JSON description of a boundary condition. Unlike `Extrapolation.to_dict` it keeps vector values and their names."""
    if isinstance(boundary, extrapolation.ConstantExtrapolation):
        value = boundary.value
        if any(getattr(native, "requires_grad", False) for native in value._natives()):
            raise ValueError(
                f"boundary value {boundary} is a trainable tensor, which would be frozen as a constant; set the values "
                "at the boundary inside the step from an argument"
            )
        if not value.shape:
            return {"constant": value.numpy().item()}
        if value.shape.names != ("vector",):
            raise ValueError(
                f"boundary value of shape {value.shape}: only numbers and vectors are supported; use one boundary for "
                "all batch entries"
            )
        return {"vector": {k: value.vector[k].numpy().item() for k in value.shape.get_item_names("vector")}}
    if isinstance(boundary, extrapolation._MixedExtrapolation):
        return {"sides": {side: boundary_to_dict(b) for side, b in boundary.ext.items()}}
    if isinstance(boundary, extrapolation._NormalTangentialExtrapolation):
        return {"normal": boundary_to_dict(boundary.normal), "tangential": boundary_to_dict(boundary.tangential)}
    description = boundary.to_dict()
    if set(description) != {"type"}:
        raise ValueError(
            f"boundary {boundary} ({type(boundary).__name__}) is not supported; use constants, PERIODIC, "
            "ZERO_GRADIENT or another of PhiFlow's primitive boundaries, per side if need be"
        )
    return {"primitive": description["type"]}


def boundary_from_dict(description: dict) -> extrapolation.Extrapolation:
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
    return extrapolation.from_dict({"type": description["primitive"]})


def natives_of(tensor: PhiTensor) -> tuple[Any, ...]:
    """The torch tensors, NumPy arrays and numbers that hold the values of a PhiML tensor; none for one that holds objects."""
    return () if isinstance(tensor, Layout) else tensor._natives()
