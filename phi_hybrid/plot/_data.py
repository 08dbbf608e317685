"""From PhiFlow trajectories to plain arrays: names, parts, frames and the scalar that is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from phi import math
from phi.field import CenteredGrid, Field

from phi_hybrid.bridge import flatten
from phi_hybrid.bridge.checks import require_count, require_number
from phi_hybrid.bridge.dims import TIME
from phi_hybrid.errors import StateError

State: TypeAlias = Field | Mapping[str, Any] | Sequence[Any]
"""A trajectory: a field with a dim `time`, or a dict or tuple of fields of which one part is shown."""
Trajectories: TypeAlias = State | Mapping[str, State]

# --- trajectories ---


def named_fields(trajectories: Trajectories, part: str | int | None = None) -> dict[str, Field]:
    """Fields by name of the solver; a lone trajectory gets the empty name.

    Args:
        trajectories: one trajectory, or a mapping name → trajectory.
        part: of states that are dicts its key, of those that are tuples its index; `None` for states that are one field.

    Raises:
        StateError: for what is no trajectory, or a part that a state does not have.
    """
    empty = not isinstance(trajectories, Field) and not trajectories
    if empty or not isinstance(trajectories, (Field, Mapping, tuple, list)):
        raise StateError(
            f"trajectories is {trajectories!r:.80} ({type(trajectories).__name__}): expected a Field, a state of several "
            "Fields with part=…, or a non-empty mapping name -> trajectory"
        )
    lone = not isinstance(trajectories, Mapping)
    if part is not None and not lone:  # a dict of fields is one state, a dict of states is one per solver
        lone = all(isinstance(value, Field) for value in trajectories.values())
    named = {"": trajectories} if lone else {str(name): state for name, state in trajectories.items()}
    return {name: _part_of(name, state, part) for name, state in named.items()}


def _part_of(name: str, state: State, part: str | int | None) -> Field:
    who = f"trajectory {name!r}" if name else "the trajectory"
    if isinstance(state, Field):
        return state
    parts = state if isinstance(state, Mapping) else dict(enumerate(state)) if isinstance(state, (tuple, list)) else {}
    if not parts:
        raise StateError(
            f"{who} is a {type(state).__name__}, expected a Field; put the values on a grid first, e.g. "
            "CenteredGrid(values, boundary, bounds=…)"
        )
    if part not in parts:
        raise StateError(
            f"{who} has the parts {list(parts)}, but part = {part!r}: choose one, e.g. part={next(iter(parts))!r}"
        )
    if not isinstance(parts[part], Field):
        raise StateError(
            f"part {part!r} of {who} is a {type(parts[part]).__name__}, expected a Field: choose another part"
        )
    return parts[part]


def check_reference(names: Sequence[str], reference: str | None) -> None:
    """Refuse a reference that is none of the solvers."""
    if reference is not None and reference not in names:
        known = ", ".join(repr(name) for name in names if name) or "none: pass a mapping name -> Field"
        raise StateError(f"unknown reference {reference!r}; the named trajectories are: {known}")


def frame_count(fields: Mapping[str, Field]) -> int:
    """The number of frames that all trajectories share."""
    for name, field in fields.items():
        if TIME not in field.shape:
            raise StateError(
                f"trajectory {name!r}: no dim 'time' in {field.shape}; stack the states along it, "
                f"e.g. math.stack(states, batch('time'))"
            )
    counts = {name: field.shape.get_size(TIME) for name, field in fields.items()}
    if len(set(counts.values())) > 1:
        raise StateError(
            f"trajectories must have equally many frames, got {counts}; cut the longer ones, "
            f"e.g. trajectory.time[:{min(counts.values())}]"
        )
    return next(iter(counts.values()))


def pick_frames(times: int | Sequence[int], count: int) -> np.ndarray:
    """Frame indices in 0 … count-1: `times` equally spaced ones, or those given (negative ones count from the end)."""
    if isinstance(times, Integral):
        if times < 1:
            raise StateError(f"times = {times}: expected at least one frame, or a sequence of frame indices")
        return np.unique(np.linspace(0, count - 1, int(times)).round().astype(int))
    if not isinstance(times, (Sequence, range, np.ndarray)) or not all(isinstance(frame, Integral) for frame in times):
        raise StateError(f"times = {times!r}: expected a number of frames, or frame indices such as [0, 10, -1]")
    frames = np.asarray(list(times), dtype=int)
    bad = [int(frame) for frame in frames if not -count <= frame < count]
    if bad or not len(frames):
        raise StateError(
            f"frame index {bad} out of range: the trajectories have {count} frames, "
            f"so use indices from 0 to {count - 1} (or {-count} to -1 from the end)"
        )
    return frames % count


def space_rank(fields: Mapping[str, Field]) -> int:
    """Number of spatial dims of the first trajectory."""
    return len(space_names(next(iter(fields.values()))))


def require_numbers(**values: float) -> None:
    """Raises StateError unless all values are finite numbers > 0."""
    for name, value in values.items():
        require_number(name, value, above=0)


def require_counts(**values: int) -> None:
    """Raises StateError unless all values are integers > 0."""
    for name, value in values.items():
        require_count(name, value)


# --- what is shown ---


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


@dataclass(frozen=True)
class Series:
    """What is shown of one solver.

    Attributes:
        name: The solver's name; empty for a lone, unnamed trajectory.
        frames: Indices of the shown frames in the trajectory, in the order of `values`.
        shown: The quantity with `values` of axes (time, x[, y]); 3D trajectories are already sliced.
    """

    name: str
    frames: np.ndarray
    shown: Quantity

    @property
    def values(self) -> np.ndarray:
        return self.shown.values


def read(
    fields: Mapping[str, Field],
    frames: np.ndarray,
    quantity: str | Callable[[Field], Field] | None,
    example: int,
    part: str | int | None = None,
) -> list[Series]:
    """The shown quantity of each trajectory at the given frames, checked to lie on one and the same grid.

    The part of the state that the fields are of gives the quantity its name.
    """
    symbol = part if isinstance(part, str) else "u"
    series = []
    for name, field in fields.items():
        state = _one_example(name, field, example)
        series.append(Series(name, frames, measure(state[{TIME: [int(frame) for frame in frames]}], quantity, symbol)))
    first = series[0]
    for other in series[1:]:
        for what in ("resolution", "bounds"):
            if getattr(first.shown, what) != getattr(other.shown, what):
                raise StateError(
                    f"mismatching {what}: {getattr(first.shown, what)} of {first.name!r} but "
                    f"{getattr(other.shown, what)} of {other.name!r}; resample one onto the other, "
                    f"e.g. trajectory.at(CenteredGrid(0, resolution, bounds=...))"
                )
    return series


def _one_example(name: str, field: Field, example: int) -> Field:
    for dim in field.shape.batch.names:
        size = field.shape.get_size(dim)
        if dim != TIME and not -size <= example < size:
            raise StateError(f"example={example} out of range: dim {dim!r} of trajectory {name!r} has {size} entries")
    return field[{dim: example for dim in field.shape.batch.names if dim != TIME}]


# --- the quantity ---


def space_names(field: Field) -> list[str]:
    """Names of the space axes: x, y, z."""
    return sorted(name for name in field.resolution.names if name != TIME)


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
    values = math.expand(field.values, field.shape.only([TIME, *names]))
    if len(names) == 3:
        values = values[{names[-1]: field.resolution.get_size(names[-1]) // 2}]
    order = ",".join([TIME, *names[:2]])
    channel = values.shape.channel
    if channel.rank > 1 or values.shape.dual:
        raise StateError(
            f"cannot show values of shape {values.shape}: expected a scalar or one vector dim; "
            f"pass quantity=function that returns a scalar field"
        )
    if not channel:
        return {"": _real(values.numpy(order))}
    labels = channel.item_names[0] or [str(index) for index in range(channel.size)]
    return {label: _real(values[{channel.name: index}].numpy(order)) for index, label in enumerate(labels)}


def _real(array: np.ndarray) -> np.ndarray:
    if np.iscomplexobj(array):
        raise StateError("cannot show complex values; pass e.g. quantity=lambda u: math.abs(u)")
    return np.asarray(array, dtype=np.float64)


def measure(field: Field, quantity: str | Callable[[Field], Field] | None, symbol: str = "u") -> Quantity:
    """The shown scalar of a trajectory (time, x[, y[, z]][, vector]) without further batch dims; labels name the symbol."""
    label = ""
    if callable(quantity):
        label, quantity, field = getattr(quantity, "__name__", ""), None, quantity(field)
        if not isinstance(field, Field) or field.shape.channel.volume != 1 or field.is_staggered:
            raise StateError(
                f"the function given as quantity must return a scalar, centred Field, "
                f"got {getattr(field, 'shape', type(field).__name__)}"
            )
        label = "value" if label in ("", "<lambda>") else label.replace("_", " ")
    names = space_names(field)
    if len(names) > 3:
        raise StateError(f"cannot show {len(names)} space dims {names}: expected one, two or three")
    field = centred(field)
    values, own_label, signed = _select(field, components(field), quantity, symbol)
    box = {name: (float(field.bounds.lower.vector[name]), float(field.bounds.upper.vector[name])) for name in names}
    resolution = tuple((name, field.resolution.get_size(name)) for name in names)
    return Quantity(values, tuple(names[:2]), tuple(box[n] for n in names[:2]), label or own_label, signed, resolution)


def _select(
    field: Field, parts: dict[str, np.ndarray], quantity: str | None, symbol: str
) -> tuple[np.ndarray, str, bool]:
    plane = space_names(field) == sorted(parts) and len(parts) == 2
    if quantity is None and len(parts) > 1:
        quantity = "vorticity" if plane else "magnitude"
    if quantity is None:
        return next(iter(parts.values())), symbol, False
    if quantity == "magnitude":
        return np.sqrt(sum(part**2 for part in parts.values())), f"|{symbol}|", False
    if quantity == "vorticity" and plane:
        return _vorticity(field, parts), "vorticity ω", True
    if quantity in parts and quantity:
        component = f"$u_{{{quantity}}}$" if symbol == "u" else f"{symbol} {quantity}"
        return parts[quantity], component if len(parts) > 1 else symbol, False
    known = [name for name in parts if name] + ["magnitude"] + ["vorticity"] * plane
    raise StateError(
        f"unknown quantity {quantity!r} for a field of shape {field.shape}: expected one of {known}, "
        f"None, or a function Field -> scalar Field (vorticity needs a 2D vector field)"
    )


def _vorticity(field: Field, parts: dict[str, np.ndarray]) -> np.ndarray:
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
    return dict(flatten(field)[1].boundary_kinds)[f"{dim}-"] == "periodic"
