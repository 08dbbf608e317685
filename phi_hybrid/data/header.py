"""Layouts and metadata ↔ JSON, for the header of a file."""

from __future__ import annotations

import json
import math
from typing import Any

from phi.geom import Box, UniformGrid
from phi.math import spatial

from phi_hybrid import _compat
from phi_hybrid.bridge.layout import (
    Axis,
    ConstantLayout,
    FieldLayout,
    Layout,
    TensorLayout,
    TreeLayout,
    domain_key,
)
from phi_hybrid.errors import DataError, StateError

_KINDS = ("batch", "dual", "instance", "spatial", "channel")


def require_json(metadata: Any) -> None:
    """Raises DataError for metadata that a file cannot hold."""
    try:
        json.dumps(metadata)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"metadata must be JSON values (numbers, strings, lists, dicts): {error}") from None


def make_header(states: Layout, inputs: TreeLayout, metadata: dict[str, Any]) -> str:
    """JSON text of all that is no tensor."""
    require_json(metadata)
    return json.dumps({"states": to_dict(states), "inputs": to_dict(inputs), "metadata": metadata})


def read_header(text: str) -> tuple[Layout, TreeLayout, dict[str, Any]]:
    """Inverse of `make_header`; raises any error for other text."""
    header = json.loads(text)
    states, inputs, metadata = from_dict(header["states"]), from_dict(header["inputs"]), header["metadata"]
    _require(isinstance(inputs, TreeLayout), header["inputs"])
    _require(isinstance(metadata, dict), metadata)
    return states, inputs, metadata


def to_dict(layout: Layout) -> dict:
    """JSON description of a layout.

    Raises:
        StateError: for kinds of states that files do not hold.
    """
    if isinstance(layout, TreeLayout):
        keys = None if layout.keys is None else list(layout.keys)
        kind = "dict" if keys is not None else layout.type.__name__
        description = {"tree": kind, "keys": keys, "children": [to_dict(c) for c in layout.children]}
        return description | ({"keywords": list(layout.keywords)} if layout.keywords else {})
    if isinstance(layout, FieldLayout):
        (*box,), _ = layout.key
        return {"field": to_dict(layout.values), "box": box, "boundary": _compat.boundary_to_dict(layout.boundary)}
    if isinstance(layout, TensorLayout):
        split = None if layout.split is None else _axis_to_list(layout.split)
        return {"tensor": [[_axis_to_list(a) for a in axes] for axes in layout.parts], "split": split}
    if isinstance(layout, ConstantLayout) and (layout.value is None or isinstance(layout.value, (int, float, str))):
        return {"constant": layout.value}
    raise StateError(
        f"{layout} cannot be written to a file, which holds tensors, numbers, and fields on grids with "
        "constant boundaries; write the tensors in it, e.g. body.geometry.center, as further parts of the state"
    )


def from_dict(description: dict) -> Layout:
    """Inverse of `to_dict`.

    Raises:
        DataError: for what `to_dict` does not write.
        Exception: of any kind for other nonsense.
    """
    if "tree" in description:
        return _tree_from_dict(description)
    if "field" in description:
        box, values = description["box"], from_dict(description["field"])
        for name, size, low, up in box:
            _require(_is_name(name) and _is_size(size) and size > 0 and _is_interval(low, up), [name, size, low, up])
        _require(isinstance(values, TensorLayout) and _lies_on(values, {n: size for n, size, _, _ in box}), description)
        resolution = spatial(**{name: size for name, size, _, _ in box})
        geometry = UniformGrid(resolution, Box(**{name: (low, up) for name, _, low, up in box}))
        boundary = _compat.boundary_from_dict(description["boundary"])
        return FieldLayout(values, domain_key(geometry, boundary), geometry, boundary)
    if "tensor" in description:
        parts = tuple(tuple(map(_axis_from_list, axes)) for axes in description["tensor"])
        split = None if description["split"] is None else _axis_from_list(description["split"])
        _require(len(parts) == 1 if split is None else len(parts) > 0, description)
        return TensorLayout(parts, split)
    constant = description["constant"]
    _require(constant is None or isinstance(constant, (int, float, str)), constant)
    return ConstantLayout(constant, type(constant))


def _tree_from_dict(description: dict) -> TreeLayout:
    kind = {"tuple": tuple, "list": list, "dict": dict}[description["tree"]]
    keys, keywords = description["keys"], tuple(description.get("keywords", ()))
    children = tuple(from_dict(c) for c in description["children"])
    if keys is not None:
        keys = tuple(keys)
        _require(len(set(keys)) == len(children), keys)
    _require((keys is None) == (kind is not dict), description["tree"])
    _require(len(keywords) <= len(children) and all(map(_is_name, keywords)), keywords)
    return TreeLayout(kind, keys, children, keywords)


def _axis_to_list(axis: Axis) -> list:
    return [axis.kind, axis.name, axis.size, None if axis.labels is None else list(axis.labels)]


def _axis_from_list(entries: list) -> Axis:
    kind, name, size, labels = entries
    _require(kind in _KINDS and _is_name(name), entries)
    _require(_is_size(size) or (size is None and kind == "batch"), entries)
    _require(labels is None or (len(labels) == size and all(map(_is_name, labels))), entries)
    return Axis(kind, name, size, None if labels is None else tuple(labels))


# --- what headers of unknown origin may hold ---


def _require(valid: bool, entry: Any) -> None:
    if not valid:
        raise DataError(f"its header holds {str(entry)[:100]}, which describes no state")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_interval(low: Any, up: Any) -> bool:
    return all(type(v) in (int, float) and math.isfinite(v) for v in (low, up)) and low < up


def _lies_on(values: TensorLayout, resolution: dict[str, int]) -> bool:
    """Whether values can be those of a grid: one for each cell, or for each face inside or with those of both ends."""
    spatial_axes = [axis for axes in values.parts for axis in axes if axis.kind == "spatial"]
    return all(a.name in resolution and abs(a.size - resolution[a.name]) <= 1 for a in spatial_axes)
