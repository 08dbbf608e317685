"""A hybrid solver bound to one layout and the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from phi_hybrid.bridge.channels import ChannelMap
from phi_hybrid.bridge.layout import Layout, batch_names, expand, tuple_of, with_batch
from phi_hybrid.coupling import Parts
from phi_hybrid.errors import StateError

if TYPE_CHECKING:
    from phi_hybrid.hybrid import HybridSolver

Tensors = Sequence[torch.Tensor]

Gate = Callable[[torch.Tensor], torch.Tensor]
"""Identity in value that changes what flows back."""

_channel_map = lru_cache(maxsize=64)(ChannelMap)


class HybridStep:
    """The native step of a `HybridSolver`; the maps between tensors and channels are made once, here.

    What the physics and the coupling get has all batch dims of state, inputs and features, so that no tensor has to be
    broadcast later: state and changed inputs are repeated along those they lack.
    """

    def __init__(self, solver: HybridSolver, layout: Layout, tensors: Tensors) -> None:
        self.layout = layout
        self._signature = [(t.shape, t.dtype, t.device) for t in tensors]
        self._solver, self._coupling = solver, solver.coupling
        state, *inputs = layout.children
        solver.check_boundaries(state)
        self._seen = _seen_inputs(solver.sees, len(inputs))
        features = solver._features_layout
        self._batch = batch_names(layout, features)
        self._widened_layout = _widened(layout, self._batch, {0, *_changed(solver.coupling.changes, layout)})
        self._physics = solver.physics.bind(self._widened_layout, _flat(self._widen(tensors)))
        self.output_layout = with_batch(self._physics.output_layout, *self._batch)
        viewed = self.output_layout if self._coupling.sees_result else self._widened_layout.children[0]
        given = self._widened_layout.children[1:]
        self._input_map = _channel_map(tuple_of(viewed, *(given[i] for i in self._seen), *features.children))
        changed = [self._widened_layout.children[n] if n else self.output_layout for n in self._coupling.changes]
        self._output_map = _channel_map(tuple_of(*changed))
        self._output_leaves = [len(c.leaves) for c in changed]
        self._state_map = _channel_map(self.output_layout)

    def accepts(self, tensors: Tensors) -> bool:
        return len(tensors) == len(self._signature) and all(
            (t.shape, t.dtype, t.device) == s for t, s in zip(tensors, self._signature)
        )

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._couple(tensors, self._network)[0]

    def with_result(
        self, tensors: Tensors, gate: Gate | None = None
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...] | None]:
        """New state and, if the coupling calls the physics, what the physics returned.

        Args:
            tensors: state and inputs.
            gate: applied to the state that the network sees, e.g. to stop its gradient.
        """
        return self._couple(tensors, self._network, gate)

    def respond(self, tensors: Tensors, output: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The new state if the network returned this, `(batch, channel, *spatial)`, before it is projected."""
        return self._couple(tensors, lambda channels: output, project=False)[0]

    def viewed(self, tensors: Tensors) -> torch.Tensor:
        """Channels that the network sees, unscaled, `(batch, channel, *spatial)`."""
        views: list[torch.Tensor] = []

        def look(channels: torch.Tensor) -> torch.Tensor:
            views.append(channels)
            return self.no_output(channels)

        self._couple(tensors, look, project=False)
        return views[0]

    def no_output(self, channels: torch.Tensor) -> torch.Tensor:
        """Zeros of the shape that the network returns for these input channels."""
        return channels.new_zeros(channels.shape[0], self._output_map.channels, *channels.shape[2:])

    def to_channels(self, state: Tensors) -> torch.Tensor:
        """A state of this step's result as channels."""
        return self._state_map.to_channels(state)

    def owned_share(self) -> torch.Tensor:
        """Share of the cells whose face a correction of the state reaches, `(channel,)`: 1 but for fixed faces."""
        shape = (1, self._state_map.channels, *self._state_map.resolution.values())
        one, zero = (
            self.to_channels(self._state_map.from_channels(torch.full(shape, value), [1] * len(self._batch)))
            for value in (1.0, 0.0)
        )
        return (one - zero).mean([0, *range(2, one.ndim)])

    def _couple(
        self,
        tensors: Tensors,
        network: Callable[[torch.Tensor], torch.Tensor],
        gate: Gate | None = None,
        project: bool = True,
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...] | None]:
        state, *inputs = self._widen(tensors)
        results: list[tuple[torch.Tensor, ...]] = []

        def physics(state: Tensors, inputs: Sequence[Tensors]) -> Tensors:
            after = self._physics(*state, *_flat(inputs))
            results.append(expand(after, self._physics.output_layout, self.output_layout))
            return results[-1]

        def outputs(seen: Tensors) -> tuple[Tensors, ...]:
            seen = [gate(t) for t in seen] if gate else list(seen)
            arguments = [*seen, *(t for i in self._seen for t in inputs[i])]
            arguments += self._solver.feature_tensors(arguments[0].dtype)
            flat = self._output_map.from_channels(
                network(self._input_map.to_channels(arguments)), self._input_map.batch_sizes(arguments)
            )
            return _split(flat, self._output_leaves)

        new = tuple(self._coupling(Parts(state, tuple(inputs), physics, outputs)))
        if project and self._solver.project is not None:
            new = self._solver.project.bind(tuple_of(self.output_layout), new)(*new)
        return new, results[-1] if results else None

    def _network(self, channels: torch.Tensor) -> torch.Tensor:
        """σ_out · C(x / σ_in) in the precision of the state."""
        solver = self._solver
        dtypes = [p.dtype for p in solver.network.parameters()] or [channels.dtype]
        output = self._call_network((channels / _per_channel(solver.input_scale, channels)).to(dtypes[0]))
        output = output.to(channels.dtype)
        return output * _per_channel(solver.output_scale, output)

    def _call_network(self, channels: torch.Tensor) -> torch.Tensor:
        try:
            return self._solver.network(channels)
        except RuntimeError as error:
            if "channels" not in str(error):
                raise
            state = self._state_map.channels
            raise StateError(
                f"the network cannot take {channels.shape[1]} input channels: {state} of the state, "
                f"{channels.shape[1] - state} of the inputs it sees and the features ({error}). Give its first layer as "
                f"many, or choose what it sees with sees=(…); it works on (batch, channel, {', '.join(self._input_map.resolution)}). "
                "Python numbers are not seen: pass phi.math.wrap(number)"
            ) from error

    def _widen(self, tensors: Tensors) -> list[Tensors]:
        """State and inputs; state and changed inputs with all batch dims."""
        if len(self._batch) and self._widened_layout != self.layout:
            features = self._solver.feature_tensors(tensors[0].dtype)
            sizes = _batch_sizes((*tensors, *features), (*self.layout.leaves, *self._solver._features_layout.leaves))
            wide = expand(tensors, self.layout, self._widened_layout)
            tensors = [
                w if w.ndim == t.ndim else w.expand([sizes.get(a.name, s) for a, s in zip(axes, w.shape)]).contiguous()
                for t, w, axes in zip(tensors, wide, self._widened_layout.leaves)
            ]
        return list(_split(tensors, [len(child.leaves) for child in self.layout.children]))


def _seen_inputs(sees: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    seen = tuple(range(count)) if sees is None else sees
    if any(not 0 <= i < count for i in seen):
        raise StateError(f"sees = {sees} but the step has only {count} inputs; count from 0")
    return seen


def _changed(changes: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """Arguments that the network changes, checked to be there and to have a grid."""
    for number in changes:
        if number >= len(layout.children):
            raise StateError(
                f"the coupling changes input {number - 1} but the step has only {len(layout.children) - 1} inputs; count "
                "from 0"
            )
        leaves = layout.children[number].leaves
        if number and not (leaves and all(any(a.kind == "spatial" for a in axes) for axes in leaves)):
            raise StateError(
                f"the coupling changes input {number - 1}, which has no grid: a network returns fields. Pass it as a "
                "field or tensor on the grid of the state, e.g. CenteredGrid(nu, …) or math.expand(nu, state.resolution)"
            )
    return changes


def _widened(layout: Layout, batch: Sequence[str], chosen: set[int]) -> Layout:
    """The arguments with all batch dims added to the chosen ones."""
    return tuple_of(*(with_batch(c, *batch) if n in chosen else c for n, c in enumerate(layout.children)))


def _batch_sizes(tensors: Tensors, leaves: Sequence[tuple]) -> dict[str, int]:
    return {a.name: s for t, axes in zip(tensors, leaves) for a, s in zip(axes, t.shape) if a.kind == "batch"}


def _split(tensors: Tensors, counts: Sequence[int]) -> tuple[Tensors, ...]:
    parts, start = [], 0
    for count in counts:
        parts.append(tuple(tensors[start : start + count]))
        start += count
    return tuple(parts)


def _flat(parts: Sequence[Tensors]) -> list[torch.Tensor]:
    return [t for part in parts for t in part]


def _per_channel(scale: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    if scale.numel() not in (1, channels.shape[1]):
        raise StateError(
            f"the solver has scales for {scale.numel()} channels but this state has {channels.shape[1]}; estimate them "
            "from data of this kind"
        )
    return scale.to(channels.dtype).view(1, -1, *[1] * (channels.ndim - 2))
