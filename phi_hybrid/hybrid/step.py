"""A hybrid solver's step, bound to one layout and the shapes of its tensors."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import ClassVar, NamedTuple

import torch

from phi_hybrid import _compat
from phi_hybrid.bridge.channels import ChannelMap
from phi_hybrid.bridge.checks import require
from phi_hybrid.bridge.layout import (
    Layout,
    TreeLayout,
    batch_names,
    batch_sizes,
    repeat,
    tuple_of,
    with_batch,
)
from phi_hybrid.bridge.parts import parts_of
from phi_hybrid.errors import StateError
from phi_hybrid.hybrid.choices import (
    changed_arguments,
    chosen_parts,
    input_names,
    require_known_grids,
    require_real,
    seen_inputs,
)
from phi_hybrid.hybrid.coupling import Coupling
from phi_hybrid.steps import Step
from phi_hybrid.steps.face import Tensors, signature_of

Network = Callable[[torch.Tensor], torch.Tensor]
"""`(batch, channel_in, *spatial) -> (batch, channel_out, *spatial)`, scaled."""

Gate = Callable[[torch.Tensor], torch.Tensor]
"""Identity in value that changes what flows back."""


@lru_cache(maxsize=64)
def _channel_map(
    layout: Layout, batch: tuple[str, ...], resolution: tuple[tuple[str, int], ...] | None = None
) -> ChannelMap:
    return ChannelMap(layout, batch, None if resolution is None else dict(resolution))


class StepRecord(NamedTuple):
    """One hybrid step: the new state, and what it was made of."""

    state: Tensors
    uncorrected: Tensors
    """What the physics returned; empty if the coupling calls none."""
    seen: torch.Tensor
    """What the network saw, unscaled, `(batch, channel, *spatial)`."""


@dataclass(frozen=True)
class Features:
    """Constant fields and parameters that a network sees besides state and inputs."""

    layout: TreeLayout
    tensors: Callable[[torch.dtype], Sequence[torch.Tensor]]
    """Their values in the precision of the state."""


class HybridStep:
    """Physics and network, put together by a coupling; the maps between tensors and channels are made once, here.

    What the physics and the coupling get has all batch dims of state, inputs and features, so that no tensor has to be
    broadcast later: state and changed inputs are repeated along those they lack.

    Args:
        physics: the step that is corrected.
        network: with its scales.
        coupling: how both make the new state.
        features: what the network sees besides.
        projection: applied to the new state, if any.
        layout: of state and inputs.
        tensors: whose shapes, precision and device the step is for.
        sees: numbers or names of the inputs that the network sees, all by default.
        corrects: names (of a dict) or numbers (of a tuple) of the parts of the state that are corrected, all by default.
    """

    def __init__(
        self,
        physics: Step,
        network: Network,
        coupling: Coupling,
        features: Features,
        projection: Step | None,
        layout: TreeLayout,
        tensors: Tensors,
        sees: Sequence[int | str] | None = None,
        corrects: Sequence[str | int] | None = None,
    ) -> None:
        self.layout, self.signature = layout, signature_of(tensors)
        self.coupling, self._network, self._features, self._projection = coupling, network, features, projection
        self._slices = _slices([len(child.leaves) for child in layout.children])
        require_real("the state", tensors[self._slices[0]])
        every = tuple_of(layout, features.layout)
        batch = batch_names(every)
        self._sizes = batch_sizes((*tensors, *features.tensors(_precision(tensors))), every)
        changed = changed_arguments(coupling.changes, layout)
        self._wide = tuple_of(
            *(with_batch(c, *batch) if n in {0, *changed} else c for n, c in enumerate(layout.children)),
            keywords=layout.keywords,
        )
        self._widens = self._wide != layout
        wide = repeat(tensors, layout, self._wide, self._sizes)
        self._physics = physics.native_for(self._wide, wide)
        if set(batch_names(self._physics.output_layout)) - set(batch):  # physics that adds some, such as an ensemble
            with torch.no_grad():
                self._sizes |= batch_sizes(self._physics(*wide), self._physics.output_layout)
            self._sizes = dict(sorted(self._sizes.items()))
        self.output_layout = with_batch(self._physics.output_layout, *batch)
        self._result_layout, self._program = self._physics.output_layout, None
        self._result_is_wide = self._physics.output_layout == self.output_layout
        self._shape = [*self._sizes.values()]
        self._make_maps(seen_inputs(sees, input_names(layout, physics.argument_names)), corrects)
        for number in self._seen:
            require_real(f"input {number}", tensors[self._slices[number + 1]])

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        compiled = self._program is not None and _compat.runs_as_it_is()
        state = self._compiled(tensors) if compiled else self.respond(tensors).state
        return self.projected(state)

    def compile(self) -> None:
        """Makes calls one compiled program, physics and network included; records keep a program for each."""
        whole = copy.copy(self)
        whole._physics = self._physics.for_compiler()
        self._program = _compat.compile_apart(lambda *tensors: whole.respond(tensors).state)

    def _compiled(self, tensors: Tensors) -> Tensors:
        try:
            return self._program(*tensors)
        except RuntimeError:
            self.respond(tensors)  # says what does not fit, without the compiler's words
            raise

    together: ClassVar[int] = 1

    def is_fresh(self) -> bool:
        """Tells if the physics is still what it was made of."""
        return self._physics.is_fresh()

    def record(self, tensors: Tensors, gate: Gate | None = None) -> StepRecord:
        """One step.

        Args:
            tensors: state and inputs.
            gate: applied to the state that the network sees, e.g. to stop its gradient.
        """
        record = self.respond(tensors, gate=gate)
        return record._replace(state=self.projected(record.state))

    def respond(self, tensors: Tensors, output: torch.Tensor | None = None, gate: Gate | None = None) -> StepRecord:
        """One step before it is projected, with `output`, `(batch, channel, *spatial)`, in place of the network's."""
        if self._widens:
            tensors = repeat(tensors, self.layout, self._wide, self._sizes)
        coupling, arguments = self.coupling, [tensors[part] for part in self._slices]
        before, after = arguments[0], ()
        if coupling.sees_result:
            after = self._physics(*tensors) if self._result_is_wide else self._result(tensors)
        viewed = [*(after or before), *(t for n in self._seen for t in arguments[n + 1])]
        if gate is not None:
            viewed[: len(before)] = [gate(t) for t in viewed[: len(before)]]
        if self._features.layout.children:
            viewed += self._features.tensors(_precision(before))
        seen = self._input_map.to_channels(viewed, self._sizes)
        try:
            channels = self._network(seen) if output is None else output
        except RuntimeError as error:
            if re.search("channels|shapes cannot|size|dimension", str(error)):
                raise self._explained(error, seen) from error
            raise
        flat = self._output_map.from_channels(channels, self._shape)
        outputs = [flat[part] for part in self._output_slices]
        chosen = before if self._corrected is None else self._chosen(before)
        if coupling.calls_physics and not coupling.sees_result:
            state, *inputs = coupling.prepare([chosen, *arguments[1:]], outputs)
            after = self._result([*self._merged(before, state), *(t for part in inputs for t in part)])
        result = after if self._corrected is None else self._chosen(after)
        state = coupling.finish(chosen, result, outputs)
        if not isinstance(state, (tuple, list)) or len(state) != len(result or chosen):
            expected = f"a tuple of {len(result or chosen)} torch tensors, like the state it is given"
            require(False, f"state of {coupling}", state, expected)
        return StepRecord(state if self._corrected is None else self._merged(after or before, state), after, seen)

    @property
    def channels(self) -> tuple[int, int]:
        """Numbers of input and of output channels of the network."""
        return self._input_map.channels, self._output_map.channels

    @property
    def vectors(self) -> list[slice]:
        """Input channels of each vector field."""
        return self._input_map.vectors

    def no_output(self) -> torch.Tensor:
        """Zeros of the shape that the network returns, `(batch, channel, *spatial)`."""
        device = self.signature.tensors[0][2]
        dtype = next((own for _, own, _ in self.signature.tensors if own.is_floating_point), torch.float32)
        shape = (math.prod(self._sizes.values()), self._output_map.channels, *self._output_map.resolution.values())
        return torch.zeros(shape, dtype=dtype, device=device)

    def to_channels(self, state: Tensors) -> list[torch.Tensor]:
        """A state of this step's result as channels, part by part."""
        return [m.to_channels(state[part], self._sizes) for m, part in zip(self._part_maps, self._part_slices)]

    def owned_share(self) -> torch.Tensor:
        """Share of the cells whose face a correction of the state reaches, `(channel,)`: 1 but for fixed faces."""
        shares = []
        for part in self._part_maps:
            one, zero = (
                part.to_channels(part.from_channels(torch.full(shape, value), [1] * len(part.batch)))
                for shape in [(1, part.channels, *part.resolution.values())]
                for value in (1.0, 0.0)
            )
            shares.append((one - zero).mean([0, *range(2, one.ndim)]))
        return torch.cat(shares)

    def _explained(self, error: RuntimeError, seen: torch.Tensor) -> StateError:
        return StateError(
            f"the network cannot take {seen.shape[1]} input channels: {self._input_map.describe()} ({error}). Give its first "
            f"layer as many, or choose the inputs it sees with sees=(…); it works on (batch, channel, "
            f"{', '.join(self._input_map.resolution)}) = {tuple(seen.shape)}. Python numbers are not seen: pass phi.math.wrap(number)"
        )

    def _result(self, arguments: Sequence[torch.Tensor]) -> Tensors:
        """What the physics returns, with all batch dims."""
        after = self._physics(*arguments)
        return after if self._result_is_wide else repeat(after, self._result_layout, self.output_layout)

    def projected(self, state: Tensors) -> Tensors:
        """State after the projection; the same state where there is none."""
        if self._projection is None:
            return state
        return self._projection.native_for(tuple_of(self.output_layout), state)(*state)

    def _make_maps(self, seen: tuple[int, ...], corrects: Sequence[str | int] | None) -> None:
        state, *inputs = self._wide.children
        batch, parts = tuple(self._sizes), parts_of(self.output_layout)
        names = chosen_parts(corrects, parts)
        corrected = TreeLayout(dict, tuple(names), tuple(parts[name] for name in names))
        changed = {
            f"input {n - 1}" if n else "state": self._wide.children[n] if n else corrected
            for n in self.coupling.changes
        }
        self._output_map = _channel_map(TreeLayout(dict, tuple(changed), tuple(changed.values())), batch)
        self._output_slices = _slices([len(c.leaves) for c in changed.values()])
        self._seen = seen
        viewed = parts_of(self.output_layout if self.coupling.sees_result else state)
        given = {f"input {i}": inputs[i] for i in seen}
        features = {f"feature {i}": child for i, child in enumerate(self._features.layout.children)}
        require_known_grids({**given, **features}, self._wide.children[0])
        named = {**viewed, **given, **features}
        layout = TreeLayout(dict, tuple(named), tuple(named.values()))
        self._input_map = _channel_map(layout, batch, tuple(self._output_map.resolution.items()))
        self._part_maps = [_channel_map(part, batch) for part in parts.values()]
        self._part_slices = _slices([len(part.leaves) for part in parts.values()])
        chosen = [s for name, s in zip(parts, self._part_slices) if name in names]
        every = range(len(self.output_layout.leaves))
        self._corrected = None if len(names) == len(parts) else [i for s in chosen for i in every[s]]

    def _chosen(self, state: Tensors) -> Tensors:
        """The tensors of the parts that are corrected."""
        return state if self._corrected is None or not state else tuple([state[i] for i in self._corrected])

    def _merged(self, state: Tensors, chosen: Tensors) -> Tensors:
        """The state with its corrected parts replaced."""
        if self._corrected is None:
            return tuple(chosen)
        new = dict(zip(self._corrected, chosen))
        return tuple([new.get(i, t) for i, t in enumerate(state)])


def _slices(counts: Sequence[int]) -> list[slice]:
    ends = list(accumulate(counts))
    return [slice(end - count, end) for end, count in zip(ends, counts)]


def _precision(tensors: Sequence[torch.Tensor]) -> torch.dtype:
    """That of the first real numbers; a state may begin with whole ones."""
    return next((t.dtype for t in tensors if t.is_floating_point()), tensors[0].dtype)
