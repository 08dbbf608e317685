"""What fits into the holes of the lines in `operators`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st
from phi.torch.flow import PERIODIC, Field, Tensor

from cases.domains import Domain, boundaries

Text = st.SearchStrategy[str]

# --- values ---


def _is_vector(value: Field) -> bool:
    return "vector" in value.values.shape.channel and value.values.shape.get_labels("vector") == value.resolution.names


def _grid(value: Any) -> bool:
    return isinstance(value, Field) and value.is_grid


def _centred(value: Any) -> bool:
    return _grid(value) and value.is_centered


def _staggered(value: Any) -> bool:
    return _grid(value) and value.is_staggered


def _float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype.kind is float


KINDS: dict[str, Callable[[Any], bool]] = {
    "A": lambda value: _grid(value) or isinstance(value, Tensor),
    "F": _grid,
    "C": _centred,
    "S": lambda value: _centred(value) and not value.values.shape.channel,
    "W": lambda value: _centred(value) and _is_vector(value),
    "G": _staggered,
    "V": lambda value: _staggered(value) or _centred(value) and _is_vector(value),
    "P": lambda value: isinstance(value, Field) and value.is_point_cloud,
    "T": _float,
    "M": lambda value: _float(value) and value.shape.spatial,
    "N": lambda value: isinstance(value, Tensor),
    "periodic": lambda value: _grid(value) and value.boundary == PERIODIC,
}
"""Hole → whether a value can fill it."""


# --- parameters ---


def _names(*names: str) -> Text:
    return st.sampled_from(names) if names else st.nothing()


def _dims(first: Any) -> Text:
    """A filter of dims as users write it, some of which the tensor lacks."""
    names = sorted(first.shape.non_dual.names)
    lists = [f"'{n}'" for n in names] + ([f"'{','.join(names[-2:])}'"] if len(names) > 1 else [])
    return st.sampled_from(["non_batch", "spatial", "batch", "channel", "instance", "'absent'", *lists])


def _geometry(domain: Domain, scope: Mapping[str, Any]) -> Text:
    """Spheres and boxes that lie partly in the domain; the body among the arguments, if there is one."""
    middle = ", ".join(f"{n}={lower + 0.45 * size:.3g}" for n, lower, size in domain.sides)
    half = ", ".join(f"{n}={0.6 * size:.3g}" for n, _, size in domain.sides)
    corner = ", ".join(f"{n}=({lower:.3g}, {lower + 0.4 * size:.3g})" for n, lower, size in domain.sides)
    given = ["o", "o", "o", f"o.shifted(0.1 * {_direction(domain)})"] if "o" in scope else []
    sphere = f"Sphere({middle}, radius={domain.radius:.3g})"
    return _names(sphere, f"Cuboid(vec({middle}), {half})", f"Box({corner})", *given)


def _direction(domain: Domain) -> str:
    return f"vec({', '.join(f'{n}={0.5 + i:g}' for i, n in enumerate(domain.names))})"


def _points(domain: Domain) -> str:
    """Three points, the last of them outside of the box."""
    rows = ", ".join(
        str(tuple(round(low + share * size, 3) for _, low, size in domain.sides)) for share in (0.3, 0.8, 1.2)
    )
    return f"math.wrap([{rows}], instance('points'), channel(vector='{','.join(domain.names)}'))"


def _moving(domain: Domain, scope: Mapping[str, Any]) -> Text:
    turning = [", angular_velocity=0.5"] if len(domain.names) == 2 else []
    return st.builds(
        "Obstacle({}{})".format, _geometry(domain, scope), _names(f", velocity={_direction(domain)}", *turning)
    )


def fillings(hole: str, first: Any, domain: Domain, scope: Mapping[str, Any]) -> Text:
    """What may fill a hole, given the first value of the line."""
    given = [name for name in ("k", "c") if name in scope]
    shape = first.shape
    return {
        "dt": lambda: _names("0.1", "0.03", *given),
        "nu": lambda: _names("0.02", "0.1", *given),
        "number": lambda: _names("2", "0.5", "-1.5", *given, *given),
        "boundary": lambda: boundaries(domain.names, vector=False, values=[n for n in ("k",) if n in scope]),
        "padding": lambda: _names(
            "PERIODIC", "ZERO_GRADIENT", "extrapolation.SYMMETRIC", "extrapolation.ZERO", "extrapolation.REFLECT"
        ),
        "grid": lambda: domain.others(),
        "geometry": lambda: _geometry(domain, scope),
        "obstacle": lambda: _geometry(domain, scope),
        "moving": lambda: _moving(domain, scope),
        "direction": lambda: st.just(_direction(domain)),
        "points": lambda: st.just(_points(domain)),
        "mask": lambda: _geometry(domain, scope).map(lambda body: f"CenteredGrid(~{body}, 0, {domain.text})"),
        "dims": lambda: _dims(first),
        "dim": lambda: _names(*sorted(n for n in shape.non_dual.names if n not in _sizes_differ(shape))),
        "axis": lambda: _names(*sorted(shape.spatial.names)),
        "batch": lambda: _names(*sorted(shape.batch.names)),
    }[hole]()


def _sizes_differ(shape: Any) -> tuple[str, ...]:
    return tuple(n for n in shape.names if not isinstance(shape.get_size(n), int))
