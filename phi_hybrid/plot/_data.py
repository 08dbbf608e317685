"""From PhiFlow trajectories to plain arrays: names, frames, examples and their checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from phi.field import Field

from phi_hybrid.plot._quantity import Quantity, measure, space_names

Trajectories = Field | Mapping[str, Field]


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


def as_mapping(trajectories: Trajectories) -> dict[str, Field]:
    """Trajectories by name; a lone field gets the empty name."""
    named = {"": trajectories} if isinstance(trajectories, Field) else trajectories
    if not isinstance(named, Mapping) or not named:
        raise ValueError(
            f"trajectories: expected a Field or a non-empty mapping name -> Field, got "
            f"{type(trajectories).__name__} {trajectories!r:.80}"
        )
    wrong = {name: type(field).__name__ for name, field in named.items() if not isinstance(field, Field)}
    if wrong:
        raise ValueError(
            f"trajectories must be phi Fields, got {wrong}; put the values on a grid first, "
            f"e.g. CenteredGrid(values, boundary, bounds=...)"
        )
    return {str(name): field for name, field in named.items()}


def check_reference(names: Sequence[str], reference: str | None) -> None:
    """Refuse a reference that is none of the solvers."""
    if reference is not None and reference not in names:
        known = ", ".join(repr(name) for name in names if name) or "none: pass a mapping name -> Field"
        raise ValueError(f"unknown reference {reference!r}; the named trajectories are: {known}")


def frame_count(fields: Mapping[str, Field]) -> int:
    """The number of frames that all trajectories share."""
    for name, field in fields.items():
        if "time" not in field.shape:
            raise ValueError(
                f"trajectory {name!r}: no dim 'time' in {field.shape}; stack the states along it, "
                f"e.g. math.stack(states, batch('time'))"
            )
    counts = {name: field.shape.get_size("time") for name, field in fields.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"trajectories must have equally many frames, got {counts}; cut the longer ones, "
            f"e.g. trajectory.time[:{min(counts.values())}]"
        )
    return next(iter(counts.values()))


def pick_frames(times: int | Sequence[int], count: int) -> np.ndarray:
    """Frame indices in 0 … count-1: `times` equally spaced ones, or those given (negative ones count from the end)."""
    if isinstance(times, (int, np.integer)):
        if times < 1:
            raise ValueError(f"times={times}: expected at least one frame, or a sequence of frame indices")
        return np.unique(np.linspace(0, count - 1, int(times)).round().astype(int))
    frames = np.asarray(list(times), dtype=int)
    bad = [int(frame) for frame in frames if not -count <= frame < count]
    if bad or not len(frames):
        raise ValueError(
            f"frame index {bad} out of range: the trajectories have {count} frames, "
            f"so use indices from 0 to {count - 1} (or {-count} to -1 from the end)"
        )
    return frames % count


def read(
    fields: Mapping[str, Field], frames: np.ndarray, quantity: str | Callable[[Field], Field] | None, example: int
) -> list[Series]:
    """The shown quantity of each trajectory at the given frames, checked to lie on one and the same grid."""
    series = []
    for name, field in fields.items():
        state = _one_example(name, field, example)
        series.append(Series(name, frames, measure(state[{"time": [int(frame) for frame in frames]}], quantity)))
    first = series[0]
    for other in series[1:]:
        for what in ("resolution", "bounds"):
            if getattr(first.shown, what) != getattr(other.shown, what):
                raise ValueError(
                    f"mismatching {what}: {getattr(first.shown, what)} of {first.name!r} but "
                    f"{getattr(other.shown, what)} of {other.name!r}; resample one onto the other, "
                    f"e.g. trajectory.at(CenteredGrid(0, resolution, bounds=...))"
                )
    return series


def _one_example(name: str, field: Field, example: int) -> Field:
    for dim in field.shape.batch.names:
        size = field.shape.get_size(dim)
        if dim != "time" and not -size <= example < size:
            raise ValueError(f"example={example} out of range: dim {dim!r} of trajectory {name!r} has {size} entries")
    return field[{dim: example for dim in field.shape.batch.names if dim != "time"}]


def space_rank(fields: Mapping[str, Field]) -> int:
    """Number of spatial dims of the first trajectory."""
    return len(space_names(next(iter(fields.values()))))
