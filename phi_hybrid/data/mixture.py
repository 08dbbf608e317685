"""Several sets of trajectories, of lengths of their own, as data of one training."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from phi_hybrid.bridge.checks import require, require_instance, require_number
from phi_hybrid.bridge.layout import Layout, TreeLayout
from phi_hybrid.data.batch import DataLayout
from phi_hybrid.data.joining import require_alike
from phi_hybrid.data.mixed_windows import MixedWindows
from phi_hybrid.data.stream import Stream
from phi_hybrid.data.trajectories import Trajectories, require_data, scale_of


class Mixture:
    """Sets of trajectories that one training draws its windows from, e.g. one set for each length or each case.

    A `Trainer` takes it in the place of `Trajectories`, for training and for validation: `Mixture({"short": data_a, "long":
    data_b})`. Every window counts the same, whichever set it is in, unless there are weights, which are the shares of the
    sets in what is drawn: `Mixture({"short": data_a, "long": (2.0, data_b)})` draws two windows of the second set for each
    of the first, however many either has. Beside sets with a weight, those without have weight 1.

    Args:
        sets: name → trajectories, or `(weight, trajectories)`. All are on one grid, with one boundary and the same inputs.

    Attributes:
        sets: name → trajectories.
        weights: name → weight; `None` where none is given.

    Raises:
        StateError: for sets that are not alike, and for weights that are no positive numbers.
    """

    def __init__(self, sets: Mapping[str, Trajectories | tuple[float, Trajectories]]) -> None:
        way_out = "a mapping from names to trajectories: Mixture({'short': data_a, 'long': (2.0, data_b)})"
        require(isinstance(sets, Mapping) and len(sets) > 0, "sets", sets, way_out)
        weighted: dict[str, float] = {}
        self.sets: dict[str, Trajectories] = {}
        for name, entry in sets.items():
            require_instance("name of a set", name, str, "a string: Mixture({'short': data_a, 'long': data_b})")
            if isinstance(entry, tuple) and len(entry) == 2:
                weighted[name], entry = entry
                require_number(f"weight of {name!r}", weighted[name], above=0, way_out="the share of the windows drawn")
            require_data(f"sets[{name!r}]", entry)
            self.sets[name] = entry
        require_alike({f"sets[{name!r}]": data for name, data in self.sets.items()})
        self.weights = {name: float(weighted.get(name, 1.0)) for name in self.sets} if weighted else None

    def __len__(self) -> int:
        """Number of trajectories in all sets together."""
        return sum(map(len, self.sets.values()))

    @property
    def layouts(self) -> DataLayout:
        """Layouts of states and inputs, the same for all sets."""
        return next(iter(self.sets.values())).layouts

    @property
    def state_layout(self) -> Layout:
        """Of one state, without batch dims."""
        return self.layouts.state

    @property
    def input_layout(self) -> TreeLayout:
        """Of the inputs without `trajectory`."""
        return self.layouts.inputs

    @cached_property
    def scale(self) -> tuple[float, ...]:
        """Standard deviation of each state tensor over all trajectories, times and points of all sets."""
        return scale_of([data.states for data in self.sets.values()], self.state_layout)

    def shares(self, steps: int) -> dict[str, float]:
        """Share of each set in the windows of `steps` steps that are drawn, 1 in all."""
        windows = self.windows(steps)
        parts = windows.counts if self.weights is None else self.weights.values()
        return {name: part / sum(parts) for name, part in zip(self.sets, parts)}

    def windows(self, steps: int) -> MixedWindows:
        """All windows of `steps` steps, a torch `Dataset`, as of `Trajectories.windows`.

        Raises:
            DataError: if a set has shorter trajectories; the message names it.
        """
        return MixedWindows(self, steps)

    def __repr__(self) -> str:
        weights = self.weights or {}
        parts = [f"{name}: {f'{weights[name]:g} × ' if weights else ''}{data}" for name, data in self.sets.items()]
        return f"Mixture({'; '.join(parts)})"


def sets_of(data: Trajectories | Mixture | Stream) -> dict[str, Trajectories]:
    """The sets of a mixture by name; trajectories, and the first ones of a stream, are one set, without a name."""
    if isinstance(data, Mixture):
        return data.sets
    return {"": data.first if isinstance(data, Stream) else data}


def require_sets(name: str, data: Any) -> None:
    """Raises StateError for what is neither a set of trajectories nor a mixture of such nor a stream."""
    way_out = "Trajectories, e.g. of Trajectories.generate or load, a Mixture of them, or a Stream"
    require_instance(name, data, (Trajectories, Mixture, Stream), way_out)
