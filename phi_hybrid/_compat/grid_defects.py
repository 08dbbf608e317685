"""Defects of PhiFlow's operators on grids, mended on import, for eager code as well as for captured code.

* `diffuse.fourier` takes every cell for one of size 1;
* operators on staggered and centered fields of one grid pair values by index: `staggered * centered` is off by half a cell
  between periodic sides and crashes elsewhere;
* `field.curl` of centered fields takes every cell for one of size 1, and pads components of staggered fields with the
  boundary of another component;
* grids keep the cell size and the centres of the precision in which they were first asked for;
* which of two constant sides fills a corner depends on addresses in memory, another in each process.

`tests/compat/test_grid_defects.py` has one test per workaround that fails as soon as upstream has mended the defect.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any

from phi import math
from phi.field import Field, curl
from phi.field._resample import sample
from phi.geom import Box, UniformGrid
from phi.physics import diffuse
from phiml.math import extrapolation
from phiml.math._tensors import Tensor as PhiTensor

_fourier_of_unit_cells = diffuse.fourier
_combine_by_index = Field._op2
_curl_padded_by_others = curl
_pad_in_any_order = extrapolation._MixedExtrapolation.pad


def _fourier(field: Field, diffusivity: Any, dt: Any) -> Field:
    if not isinstance(field, Field) or field.boundary != extrapolation.PERIODIC:
        return _fourier_of_unit_cells(field, diffusivity, dt)  # which says what is missing
    waves = math.fftfreq(field.resolution, field.dx)  # cycles per length
    kernel = math.exp(-((2 * math.PI) ** 2) * math.vec_squared(waves) * (diffusivity * dt))
    return field.with_values(_multiply_spectrum(field.values, kernel))


def _curl(field: Field, at: str = "corner") -> Field:
    """∂ₓv − ∂ᵧu at the corners of cells in 2D, ∇×v in 3D: differences over a cell, means over the cells beside."""
    known = field.is_grid and at == "corner" and "vector" in field.shape
    if not known or field.spatial_rank not in (2, 3) or (field.spatial_rank == 3 and field.is_centered):
        return _curl_padded_by_others(field, at)  # which says what is missing
    names = field.vector.item_names
    inner = field.with_boundary(None).values if field.is_staggered else field.values
    components = {n: inner[{"~vector" if field.is_staggered else "vector": n}] for n in names}
    for name, values in components.items():
        widths = {d: (1, 1) for d in names if d != name or field.is_centered}
        components[name] = math.pad(values, widths, field.boundary[{"vector": name}], bounds=field.bounds)

    def derivative(name: str, dim: str) -> PhiTensor:
        slope = math.spatial_gradient(
            components[name], field.dx[dim], "forward", padding=None, dims=dim, stack_dim=None
        )
        between = [d for d in names if d != dim and (d != name or field.is_centered)]
        for other in between:
            slope = math.neighbor_mean(slope, other)
        return slope

    pairs = [(names[1], names[0])] if len(names) == 2 else [(names[i - 1], names[i - 2]) for i in range(3)]
    parts = [derivative(a, b) - derivative(b, a) for a, b in pairs]
    values = parts[0] if len(names) == 2 else math.stack(parts, field.geometry.shape["vector"])
    corners = UniformGrid(
        field.resolution + 1, Box(field.bounds.lower - field.dx / 2, field.bounds.upper + field.dx / 2)
    )
    return Field(corners, values, field.boundary.spatial_gradient())


def _multiply_spectrum(values: PhiTensor, factor: PhiTensor) -> PhiTensor:
    result = math.ifft(math.fft(math.to_complex(values)) * factor)
    return math.cast(result if values.dtype.kind is complex else math.real(result), values.dtype)


def _combine(self: Field, other: Any, operator: Callable) -> Field:
    """Values of `other` at the sample points of `self`, as `Field._op2` does for fields of unlike grids."""
    if not isinstance(other, Field) or self.geometry != other.geometry or self.sampled_at == other.sampled_at:
        return _combine_by_index(self, other, operator)
    boundary = operator(self.boundary, other.boundary)
    names = self.geometry.vector.item_names
    if self.is_staggered and any(boundary.valid_outer_faces(n) != self.boundary.valid_outer_faces(n) for n in names):
        raise ValueError(
            f"a staggered field with boundary {self.boundary} and a centered one with boundary {other.boundary} on the same "
            f"grid give a field with boundary {boundary}, which stores other faces than the staggered one. Way out: "
            "centered.at(staggered), which takes the boundary of the staggered field"
        )
    normal = self.geometry if self.is_staggered and math.channel(other) else None
    values = sample(other, self.geometry, self.sampled_at, self.boundary, dot_face_normal=normal)
    return Field(self.geometry, operator(self.values, values), boundary)


class _CachedPerPrecision(cached_property):
    """Cached, and computed anew in another precision; PhiML hands cached properties on to slices of an object."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        cached = instance.__dict__.get(self.attrname)
        if cached is None or cached.dtype.precision != math.get_precision():
            cached = instance.__dict__[self.attrname] = self.func(instance)
        return cached

    def __set__(self, instance: Any, value: Any) -> None:
        """Its presence lets `__get__` come before the entry in the dict of the object."""
        raise AttributeError(f"{self.attrname} of a grid cannot be set")


def _pad(
    self: extrapolation._MixedExtrapolation, value: PhiTensor, widths: dict, already_padded: Any = None, **kwargs: Any
) -> PhiTensor:
    """Pads side by side, those of one rank in the order in which the boundary names them."""
    done = dict(already_padded or {})
    for side in sorted(dict.fromkeys(self.ext.values()), key=lambda side: side.pad_rank):
        own = {
            dim: tuple(w if self._at_boundary(dim + end) == side else 0 for w, end in zip(both, "-+"))
            for dim, both in widths.items()
        }
        value = side.pad(value, own, already_padded=done, **kwargs)
        done.update(own)
    return value


def _replace_everywhere(original: Callable, replacement: Callable) -> None:
    """Puts a function in the place of one of PhiFlow or PhiML in all of their modules that name it."""
    for module in [m for name, m in sys.modules.items() if name.split(".")[0] in ("phi", "phiml")]:
        for name, value in list(vars(module).items()):
            if value is original:
                setattr(module, name, replacement)


Field._op2 = _combine
extrapolation._MixedExtrapolation.pad = _pad
_replace_everywhere(_fourier_of_unit_cells, _fourier)
_replace_everywhere(_curl_padded_by_others, _curl)
for _name in ("dx", "center"):
    _cached = _CachedPerPrecision(getattr(UniformGrid, _name).func)
    _cached.__set_name__(UniformGrid, _name)
    setattr(UniformGrid, _name, _cached)
