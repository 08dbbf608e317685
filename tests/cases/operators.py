"""PhiFlow's public operators as lines of Python with holes, and what may fill the holes.

A capital letter stands for a value: F field, C centred field, S centred scalar, W centred vector, G field on faces,
V velocity (W or G), T float tensor, M one with spatial dims, N any tensor, A any value. A small name stands for a parameter. Both may end in a
digit; equal holes are filled alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st
from phi.torch.flow import PERIODIC, Field, Tensor

from cases.domains import Domain, boundaries

Text = st.SearchStrategy[str]

OPERATORS: dict[str, tuple[str, ...]] = {
    "advection": (
        "advect.semi_lagrangian({F}, {V}, {dt})",
        "advect.semi_lagrangian({F}, {V}, {dt}, integrator=advect.rk4)",
        "advect.semi_lagrangian({F}, {V}, {dt}, integrator=advect.finite_rk4)",
        "advect.mac_cormack({F}, {V}, {dt})",
        "advect.mac_cormack({F}, {V}, {dt}, correction_strength=0.8, integrator=advect.rk4)",
        "{V} + {dt} * advect.differential({V}, {V})",
        "{V} + {dt} * advect.differential({V}, {V}, order=4)",
    ),
    "diffusion": (
        "diffuse.explicit({F}, {nu}, {dt})",
        "diffuse.explicit({F}, {nu}, {dt}, substeps=2)",
        "diffuse.explicit({F}, {nu}, {dt}, order=4)",
        "diffuse.explicit({C}, 0.01 * math.abs({S}), {dt})",
        "diffuse.implicit({F}, {nu}, {dt})",
        "diffuse.implicit({F}, {nu}, {dt}, Solve('CG', 1e-5, x0={F}))",
        "diffuse.implicit({C}, 0.01 * math.abs({S}), {dt})",
        "diffuse.fourier({periodic}, {nu}, {dt})",
        "{F} + {dt} * diffuse.differential({F}, {nu})",
    ),
    "projection": (
        "fluid.make_incompressible({V})[0]",
        "fluid.make_incompressible({V})[1]",
        "fluid.make_incompressible({V}, (), Solve('CG', 1e-5))[0]",
        "fluid.make_incompressible({V}, {obstacle})[0]",
        "fluid.make_incompressible({V}, [{obstacle}, {obstacle2}], Solve('CG', 1e-5))[0]",
        "fluid.make_incompressible({V}, {obstacle})[1]",
        "fluid.make_incompressible({V}, active={mask})[0]",
        "fluid.apply_boundary_conditions({V}, {obstacle})",
    ),
    "resampling": (
        "{F}.at({F2})",
        "resample({F}, to={F2}, keep_boundary=True)",
        "{F}.at_centers()",
        "{W}.at_faces()",
        "CenteredGrid({C}, {boundary}, {grid})",
        "CenteredGrid({G}, {boundary}, {grid})",
        "StaggeredGrid({V}, {boundary}, {grid})",
        "field.downsample2x({F})",
        "field.upsample2x({C})",
        "{F}.with_boundary({boundary})",
        "field.stagger({S}, math.minimum, {boundary})",
        "{V}.at({C}).values",
    ),
    "derivatives": (
        "field.spatial_gradient({S})",
        "field.spatial_gradient({S}, at='face')",
        "field.spatial_gradient({S}, order=4)",
        "field.spatial_gradient({S}, {boundary})",
        "field.laplace({F})",
        "field.laplace({F}, order=4)",
        "field.divergence({V})",
        "field.divergence({V}, order=4)",
        "field.curl({V})",
        "math.spatial_gradient({M}, 0.5, padding={padding})",
        "math.spatial_gradient({M}, 0.5, 'forward', None)",
        "math.laplace({M}, 0.5, {padding})",
        "math.gradient(lambda t: math.l2_loss(math.sin(t)), get_output=False)({T})",
    ),
    "padding": (
        "field.pad({C}, 1)",
        "field.pad({C}, {{'{axis}': (1, 0)}})",
        "math.pad({M}, {{'{axis}': (1, 2)}}, {padding})",
        "math.pad({M}, {{'{axis}': (-1, 1)}}, {padding})",
        "field.shift({C}, (-1, 1))[1]",
        "field.bake_extrapolation({G})",
    ),
    "masks": (
        "{F} * resample({geometry}, to={F})",
        "{F} * (1 - resample({geometry}, to={F}, soft=True))",
        "field.where({geometry}, {C}, 0.5 * {C})",
        "math.where({geometry}.lies_inside({C}.points), {C}.values, 0)",
        "field.where({C} > 0.1, {C}, 0)",
        "field.mask({C})",
        "field.maximum({C}, {geometry})",
    ),
    "spectra": (
        "math.real(math.ifft(math.fft({T})))",
        "math.abs(math.fft({M}, '{axis}'))",
        "math.fft({T})",
        "math.fourier_laplace({M}, 0.5)",
        "math.fourier_poisson({M}, 0.5)",
        "math.frequency_loss({M})",
    ),
    "indexing": (
        "{N}[{{'{dim}': 0}}]",
        "{N}[{{'{dim}': -1}}]",
        "{N}[{{'{dim}': slice(1, None)}}]",
        "{N}[{{'{dim}': slice(None, None, -1)}}]",
        "{N}[{{'{dim}': slice(None, None, 2)}}]",
        "{N}[{{'{dim}': math.wrap([0, 1, 0], instance('picked'))}}]",
        "{F}[{{'{batch}': 0}}]",
        "{F}[{{'{batch}': slice(1, None)}}]",
        "{C}[{{'{axis}': slice(1, None)}}]",
        "{V}.vector[0]",
        "{V}.vector[-1]",
        "math.unstack({T}, '{dim}')[-1]",
        "{C}.values",
        "{G}.uniform_values()",
        "{C}.with_values({C}.values[{{'{axis}': slice(None, None, -1)}}])",
    ),
    "arithmetic": (
        "{A} + {number}",
        "{number} - {A}",
        "{A} * {number}",
        "{A} / 0.7",
        "{A} ** 2",
        "-{F}",
        "-{T}",
        "{T} % 0.3",
        "{F} + 0.5 * {F2}",
        "{F} * {F2}",
        "{S} * {V}",
        "{T} + {N}",
        "{T} * {N}",
        "{T} / (1.5 + {T} ** 2)",
        "math.safe_div({T}, {N})",
        "{T} > {N}",
        "({N} == 0) | ({N} > 0.3)",
        "math.stop_gradient({A})",
    ),
    "elementwise": (
        "math.abs({A})",
        "math.sign({A})",
        "math.sqrt(math.abs({A}))",
        "math.sqrt(math.maximum({T}, 0))",
        "math.exp(-math.abs({A}))",
        "math.log(1 + math.abs({A}))",
        "math.sin({A})",
        "math.tanh({A})",
        "math.sigmoid({A})",
        "math.arctan({T}, divide_by=1.5 + {T} ** 2)",
        "math.floor(3 * {A})",
        "math.round(3 * {A})",
        "math.clip({N}, -0.5, 0.5)",
        "math.clip({T}, -0.5, {T2})",
        "math.minimum({T}, 0.1)",
        "math.maximum({T}, {N})",
        "math.where({T} > 0, {T}, {N})",
        "math.where({T} > 0, math.sqrt(math.abs({T})), -1)",
        "math.to_float({N})",
        "math.to_int64(3 * {T})",
    ),
    "reductions": (
        "math.sum({N}, {dims})",
        "math.mean({N}, {dims})",
        "math.max({N}, {dims})",
        "math.min({T}, {dims})",
        "math.std({T}, {dims})",
        "math.prod({T}, {dims})",
        "math.any({T} > 0.3, {dims})",
        "math.all({T} > -1, {dims})",
        "math.median({T}, {dims})",
        "math.quantile({T}, 0.3, {dims})",
        "math.mean({T}, {dims}, weight=math.abs({T}))",
        "math.at_max({T}, math.sin({T}), {dims})",
        "math.argmax({T}, '{dim}')",
        "math.l2_loss({A})",
        "math.l1_loss({T}, {dims})",
        "math.norm({T}, '{dim}')",
        "math.normalize({T}, '{dim}', epsilon=1e-3)",
        "math.dot({T}, '{dim}', {T}, '{dim}')",
        "field.mean({F})",
        "field.vec_length({V})",
        "field.vec_squared({V})",
        "field.normalize({C}, {C})",
        "math.softmax({T}, '{dim}')",
    ),
    "assembly": (
        "math.stack([{T}, 2 * {T}], batch('stacked'))",
        "math.stack([{T}, {N}], channel('stacked'), expand_values=True)",
        "math.stack({{'p': {T}, 'q': -{T}}}, channel('stacked'))",
        "math.concat([{T}, 2 * {T}], '{dim}')",
        "field.stack([{F}, 2 * {F}], batch('stacked'))",
        "field.concat([{F}, 2 * {F}], '{batch}')",
        "math.expand({N}, batch(more=2))",
        "math.rename_dims({N}, '{dim}', batch('renamed'))",
        "math.pack_dims({N}, spatial, instance('packed'))",
        "math.flatten({N})",
        "math.unstack({T}, '{dim}')",
    ),
    "neighbours": (
        "math.shift({M}, (-1, 1), '{axis}', {padding})[0]",
        "math.shift({M}, (-1, 1), spatial, {padding}, stack_dim=None)[1]",
        "math.cumulative_sum({T}, '{dim}')",
        "math.sort({T}, '{dim}')",
        "math.downsample2x({M}, {padding})",
        "math.upsample2x({M}, {padding})",
        "math.concat([{M}[{{'{axis}': slice(1, None)}}], {M}[{{'{axis}': slice(1)}}]], '{axis}')",
        "math.grid_sample({M}, 1.3 * math.meshgrid({M}.shape.spatial), {padding})",
        "math.closest_grid_values({M}, 0.9 * math.meshgrid({M}.shape.spatial), {padding})",
        "math.convolve({M}, math.wrap([0.25, 0.5, 0.25], spatial('{axis}')), extrapolation={padding})",
        "math.neighbor_mean({M}, '{axis}')",
        "math.neighbor_max({M}, '{axis}', {padding})",
        "math.finite_fill(math.where({M} > 1, math.NAN, {M}), padding={padding})",
    ),
    "loops": (
        "math.map(lambda t: 0.5 * t + math.sum(t), {T}, dims='{dim}')",
        "math.map(lambda t: 2 * t, {T}, dims=batch)",
        "math.iterate(lambda a: 0.5 * a + 0.1, 3, {A})",
        "math.iterate(lambda t: math.sin(t), batch(time=2), {T})",
        "jit_compile(lambda a: 2 * a + 1)({A})",
    ),
    "chance": (
        "{T} + math.random_normal({T}.shape)",
        "{T} * math.random_uniform({T}.shape)",
        "{C} + resample(Noise(scale=2.0), to={C})",
        "{T} + math.random_uniform(batch(drawn=2))",
    ),
}
"""Family → lines."""

FEWER = ("indexing", "arithmetic", "elementwise", "reductions", "assembly", "neighbours")
"""Families of many short lines, which are drawn less often."""


# --- values ---


def _is_vector(value: Field) -> bool:
    return "vector" in value.values.shape.channel and value.values.shape.get_labels("vector") == value.resolution.names


def _centred(value: Any) -> bool:
    return isinstance(value, Field) and value.is_centered


def _staggered(value: Any) -> bool:
    return isinstance(value, Field) and value.is_staggered


def _float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype.kind is float


KINDS: dict[str, Callable[[Any], bool]] = {
    "A": lambda value: True,
    "F": lambda value: isinstance(value, Field),
    "C": _centred,
    "S": lambda value: _centred(value) and not value.values.shape.channel,
    "W": lambda value: _centred(value) and _is_vector(value),
    "G": _staggered,
    "V": lambda value: _staggered(value) or _centred(value) and _is_vector(value),
    "T": _float,
    "M": lambda value: _float(value) and value.shape.spatial,
    "N": lambda value: isinstance(value, Tensor),
    "periodic": lambda value: isinstance(value, Field) and value.boundary == PERIODIC,
}
"""Letter → whether a value can fill the hole."""


# --- parameters ---


def _names(*names: str) -> Text:
    return st.sampled_from(names) if names else st.nothing()


def _shape_of(first: Any) -> Any:
    return first.shape


def _dims(first: Any) -> Text:
    """A filter of dims as users write it, some of which the tensor lacks."""
    names = sorted(first.shape.non_dual.names)
    lists = [f"'{n}'" for n in names] + ([f"'{','.join(names[-2:])}'"] if len(names) > 1 else [])
    return st.sampled_from(["non_batch", "spatial", "batch", "channel", "instance", "'absent'", *lists])


def _geometry(domain: Domain) -> Text:
    """Spheres and boxes that lie partly in the domain."""
    middle = ", ".join(f"{n}={lower + 0.45 * size:.3g}" for n, lower, size in domain.sides)
    half = ", ".join(f"{n}={0.6 * size:.3g}" for n, _, size in domain.sides)
    corner = ", ".join(f"{n}=({lower:.3g}, {lower + 0.4 * size:.3g})" for n, lower, size in domain.sides)
    radius = 0.3 * min(size for _, _, size in domain.sides)
    return _names(f"Sphere({middle}, radius={radius:.3g})", f"Cuboid(vec({middle}), {half})", f"Box({corner})")


def fillings(hole: str, first: Any, domain: Domain, scope: Mapping[str, Any]) -> Text:
    """What may fill a hole, given the first value of the line."""
    given = [name for name in ("k", "c") if name in scope]
    shape = first.shape
    return {
        "dt": lambda: _names("0.1", "0.03", *given),
        "nu": lambda: _names("0.02", "0.1", *given),
        "number": lambda: _names("2", "0.5", "-1.5", *given, *given),
        "boundary": lambda: boundaries(domain.names, vector=False),
        "padding": lambda: _names(
            "PERIODIC", "ZERO_GRADIENT", "extrapolation.SYMMETRIC", "extrapolation.ZERO", "extrapolation.REFLECT"
        ),
        "grid": lambda: domain.others(),
        "geometry": lambda: _geometry(domain),
        "obstacle": lambda: _geometry(domain),
        "mask": lambda: _geometry(domain).map(lambda body: f"CenteredGrid(~{body}, 0, {domain.text})"),
        "dims": lambda: _dims(first),
        "dim": lambda: _names(*sorted(n for n in shape.non_dual.names if n not in _sizes_differ(shape))),
        "axis": lambda: _names(*sorted(shape.spatial.names)),
        "batch": lambda: _names(*sorted(shape.batch.names)),
    }[hole]()


def _sizes_differ(shape: Any) -> tuple[str, ...]:
    return tuple(n for n in shape.names if not isinstance(shape.get_size(n), int))
