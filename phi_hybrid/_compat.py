"""The only module that touches private PhiFlow, PhiML and torch names, or works around a defect there.

Importing it mends defects of PhiFlow on torch, for eager code as well as for captured code:

* `advect.semi_lagrangian` and `advect.mac_cormack` crash in 1D (`TorchBackend.grid_sample` handles 2D and 3D only);
* `Field.closest_values`, the limiter of `advect.mac_cormack`, looks half a cell beside the faces of staggered grids and
  crashes when their boundary holds a vector;
* advection on staggered grids in 1D returns values with a surplus `vector` dim.

`tests/test_compat.py` has one test per workaround that fails as soon as upstream has mended the defect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from phi import math
from phi.field import Field
from phi.geom import UniformGrid
from phiml.backend.torch import TORCH
from phiml.backend.torch._torch_backend import TorchBackend
from phiml.math import extrapolation
from phiml.math._tensors import Tensor as PhiTensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, get_proxy_slot

__all__ = [
    "TORCH",
    "assemble_field",
    "boundary_from_dict",
    "boundary_to_dict",
    "forward_mode_active",
    "functorch_active",
    "hooked_autograd_functions",
    "hooked_backend",
    "outside_transformations",
    "is_sparse",
    "without_tracing",
    "proxy_node",
]


# --- defects mended on import ---

_grid_sample_2d_3d = TorchBackend.grid_sample
_closest_values_centered = Field.closest_values
_with_values_as_given = Field.with_values


def _grid_sample(self: TorchBackend, grid: Any, coordinates: Any, extrapolation: str) -> Any:
    if coordinates.shape[-1] == 1:
        return NotImplemented  # torch samples images and volumes only; this selects PhiML's own interpolation
    return _grid_sample_2d_3d(self, grid, coordinates, extrapolation)


def _closest_values(self: Field, points: Any) -> PhiTensor:
    if not self.is_staggered:
        return _closest_values_centered(self, points)
    closest = {}
    for name in self.vector.item_names:
        faces = UniformGrid(self.resolution, self.bounds).stagger(name, *self.boundary.valid_outer_faces(name))
        position = faces.bounds.global_to_local(points[{"~vector": name}]) * faces.resolution - 0.5
        boundary = self.boundary[{"vector": name}]
        closest[name] = math.closest_grid_values(self.values[{"~vector": name}], position, boundary)
    return math.stack(closest, math.dual("vector"))


def _with_values(self: Field, values: Any, **kwargs: Any) -> Field:
    if isinstance(values, PhiTensor) and {"vector", "~vector"} <= set(values.shape.names) and self.is_staggered:
        values = values.vector[0] if self.spatial_rank == 1 else values  # sampling at faces leaves it there in 1D
    return _with_values_as_given(self, values, **kwargs)


TorchBackend.grid_sample = _grid_sample
Field.closest_values = _closest_values
Field.with_values = _with_values


# --- what tracing needs to know and to intercept ---


def proxy_node(tensor: Any) -> torch.fx.Node | None:
    """The graph node that stands for `tensor` in the trace under way, `None` if it is not being traced."""
    mode = get_proxy_mode()
    if mode is None or not isinstance(tensor, torch.Tensor):
        return None
    slot = get_proxy_slot(tensor, mode.tracer, None)
    return None if slot is None else slot.proxy.node


without_tracing = disable_proxy_modes_tracing
"""Context manager: operations inside are executed but not recorded."""


@contextlib.contextmanager
def hooked_backend(is_input: Callable[[Any], bool], hooks: dict[str, Callable]) -> Iterator[None]:
    """While a step is traced: PhiFlow does not look at values of inputs, and `hooks` replace methods of its backend."""
    own_is_available = TORCH.is_available

    def is_available(tensor: Any) -> bool:
        return not is_input(tensor) and own_is_available(tensor)

    hooks = {"is_available": is_available, **hooks}
    for name, hook in hooks.items():
        setattr(TORCH, name, hook)
    try:
        yield
    finally:
        for name in hooks:
            delattr(TORCH, name)  # uncovers the methods of the class


@contextlib.contextmanager
def hooked_autograd_functions(hook: Callable[[type], None]) -> Iterator[None]:
    """While a step is traced: `hook` is told of every `torch.autograd.Function` instead of running it. PhiML keeps those
    that `math.custom_gradient` made in an earlier call, so hooking its backend does not reach them."""
    original = torch.autograd.Function.__dict__["apply"]
    torch.autograd.Function.apply = classmethod(lambda cls, *args, **kwargs: hook(cls))
    try:
        yield
    finally:
        torch.autograd.Function.apply = original


# --- torch's transformation state, which has no public face ---


def functorch_active() -> bool:
    """Whether a `torch.func` transformation (vmap, grad, jvp, …) is under way."""
    return torch._C._functorch.maybe_current_level() is not None


@contextlib.contextmanager
def outside_transformations() -> Iterator[None]:
    """Suspends the `torch.func` transformations under way."""
    level, torch.autograd.forward_ad._current_level = torch.autograd.forward_ad._current_level, -1
    try:
        with temporarily_clear_interpreter_stack():
            yield
    finally:
        torch.autograd.forward_ad._current_level = level


def forward_mode_active() -> bool:
    """Whether tangents may be flowing, in `torch.func.jvp` and `jacfwd` or in `torch.autograd.forward_ad`."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    stack = torch._C._functorch.get_interpreter_stack()
    return any(i.key() == torch._C._functorch.TransformType.Jvp for i in stack or ())


# --- PhiFlow and PhiML values ---


def assemble_field(geometry: Any, values: PhiTensor, boundary: extrapolation.Extrapolation) -> Field:
    """`Field(geometry, values, boundary)` without its shape check, which takes milliseconds on staggered grids."""
    field = object.__new__(Field)
    attributes = dict(geometry=geometry, values=values, boundary=boundary)
    for name, value in dict(attributes, variable_attrs=("values",), value_attrs=("values",)).items():
        object.__setattr__(field, name, value)
    return field


def is_sparse(tensor: PhiTensor) -> bool:
    """Whether `tensor` is a PhiML sparse tensor (coordinate or compressed)."""
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
