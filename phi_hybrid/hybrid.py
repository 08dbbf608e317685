"""A PhiFlow step corrected by a network, itself a step."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from phi_hybrid.bridge.channels import ChannelMap, require_tensors
from phi_hybrid.bridge.layout import Layout, boundary_kinds, expand, flatten, tuple_of, with_batch
from phi_hybrid.capture import NativeFace
from phi_hybrid.coupling import Additive, Coupling
from phi_hybrid.errors import StateError
from phi_hybrid.unroll import as_step, rollout

Tensors = Sequence[torch.Tensor]

_channel_map = lru_cache(maxsize=64)(ChannelMap)


class HybridSolver(NativeFace):
    """Physics followed by a network: u⁺ = K(u, P(u, f), σ_out · C([P(u, f), f, features] / σ_in)).

    With additive coupling K, u⁺ = P(u) + σ·C (Um et al. 2020, arXiv 2007.00016). A solver is a step like the one it
    wraps: call it with PhiFlow states, roll it out, capture nothing again, wrap it in another solver. The scales σ are
    buffers, one per channel, 1 until `set_scales` or a `Trainer` estimates them from data.

    Args:
        physics: `state, *inputs -> state`; a `PhysicsBlock` from `capture`, or plain PhiFlow code (slow).
        network: torch module `(batch, channel_in, *spatial) -> (batch, channel_out, *spatial)`, in float32 or float64
            independently of the physics. `channel_out` is the number of channels of the state, `channel_in` that of
            state, inputs seen and features together. Staggered components keep their own faces.
        coupling: how the correction changes the state, see `Coupling`.
        sees: which inputs (0 for the first after the state) the network sees; all by default.
        features: constant fields or parameters that the network sees besides, e.g. masks or coordinates `(x, y)`.

    Raises:
        StateError: on the first call, if resolutions or channel numbers do not fit; later, for a state whose boundaries
            are of another kind than those of the data that the scales come from.
    """

    input_scale: torch.Tensor
    output_scale: torch.Tensor
    boundaries: torch.Tensor

    def __init__(
        self,
        physics: Callable,
        network: torch.nn.Module,
        coupling: Coupling = Additive(),
        *,
        sees: Sequence[int] | None = None,
        features: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        self.physics = as_step(physics)
        self.network = network
        self.coupling = coupling
        self.sees = None if sees is None else tuple(sees)
        tensors, self._features_layout = flatten(tuple(features))
        require_tensors(self._features_layout, "features")
        self._features = len(tensors)
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"feature{number}", tensor, persistent=False)
        self.register_buffer("input_scale", torch.ones(1))
        self.register_buffer("output_scale", torch.ones(1))
        self.register_buffer("scaled", torch.tensor(False))
        self.register_buffer(
            "boundaries", torch.zeros(0, dtype=torch.uint8)
        )  # JSON, so that it is saved with the scales
        self._steps: list[_HybridStep] = []

    def rollout(self, state: Any, steps: int, *inputs: Any, check: bool = True) -> Any:
        """Trajectory u₀ … u_steps with a batch dim `time` of size `steps + 1`; see `phi_hybrid.rollout`."""
        return rollout(self, state, steps, *inputs, check=check)

    def bind(self, layout: Layout, tensors: Tensors) -> _HybridStep:
        """The hybrid step for this layout and these shapes, precision and device."""
        for step in self._steps:
            if step.layout == layout and step.accepts(tensors):
                return step
        self._steps = [_HybridStep(self, layout, tensors), *self._steps][:16]
        return self._steps[0]

    def known_steps(self) -> Sequence[_HybridStep]:
        return self._steps

    def check_arguments(self, args: tuple) -> None:
        self.physics.check_arguments(args)

    def feature_tensors(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """Native tensors of the features in the precision of the state."""
        return [getattr(self, f"feature{n}").to(dtype) for n in range(self._features)]

    @torch.no_grad()
    def set_scales(
        self,
        input_scale: torch.Tensor,
        output_scale: torch.Tensor,
        boundaries: tuple[tuple[str, str], ...] | None = None,
    ) -> None:
        """Sets σ per channel, `(channel,)`; channels that do not vary keep 1.

        Args:
            input_scale: of state, inputs and features, in this order.
            output_scale: of the correction.
            boundaries: kind of boundary per side of the training states; states of another kind are refused from now
                on, since the network has never seen any.

        Raises:
            StateError: for negative or non-finite scales.
        """
        scales = {"input_scale": input_scale, "output_scale": output_scale}
        for name, scale in scales.items():
            if not torch.isfinite(scale).all() or (scale < 0).any():
                raise StateError(f"{name} = {scale.tolist()}: scales must be finite and not negative")
        for name, scale in scales.items():
            setattr(self, name, torch.where(scale > 0, scale, torch.ones_like(scale)).to(getattr(self, name)))
        self.scaled.fill_(True)
        text = json.dumps(boundaries).encode() if boundaries else b""
        self.boundaries = torch.tensor(list(text), dtype=torch.uint8, device=self.scaled.device)
        self._bind_anew()

    def check_boundaries(self, state: Layout) -> None:
        """Raises StateError if the boundaries are of another kind than those of the training data."""
        if not self.boundaries.numel():
            return
        known, kinds = json.loads(bytes(self.boundaries.tolist())), [list(k) for k in boundary_kinds(state)]
        if kinds != known:
            raise StateError(
                f"this solver was trained on states with boundaries {dict(known)} but this one has {dict(kinds)}. Give the "
                "state the boundary of the data, train on such states, or wrap the network anew, "
                "HybridSolver(physics, solver.network), to try it all the same"
            )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        for name in ("input_scale", "output_scale", "boundaries"):  # of a size not known before the first data
            if prefix + name in state_dict:
                setattr(self, name, torch.ones_like(state_dict[prefix + name], device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._bind_anew()

    def _bind_anew(self) -> None:
        """Steps bound so far may have boundaries that are refused from now on."""
        self._layouts = [*self._layouts, *(s.layout for s in self._steps)][:16]
        self._steps = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": []}


class _HybridStep:
    """A hybrid solver bound to one layout and the shapes of its tensors."""

    def __init__(self, solver: HybridSolver, layout: Layout, tensors: Tensors) -> None:
        self.layout = layout
        self._signature = [(t.shape, t.dtype, t.device) for t in tensors]
        self._solver = solver
        state, *inputs = layout.children
        solver.check_boundaries(state)
        self._physics = solver.physics.bind(layout, tensors)
        seen = range(len(inputs)) if solver.sees is None else solver.sees
        if any(not 0 <= i < len(inputs) for i in seen):
            raise StateError(f"sees = {solver.sees} but the step has only {len(inputs)} inputs; count from 0")
        after = self._physics.output_layout
        self._input_map = _channel_map(tuple_of(after, *(inputs[i] for i in seen), *solver._features_layout.children))
        self._correction_map = _channel_map(after, tuple(self._input_map.batch))
        self.output_layout = with_batch(after, *self._input_map.batch)
        self._state_layout, self._after_layout = state, after
        self._state_leaves = len(state.leaves)
        starts = [self._state_leaves]
        for child in inputs:
            starts.append(starts[-1] + len(child.leaves))
        self._seen_tensors = [n for i in seen for n in range(starts[i], starts[i + 1])]

    def accepts(self, tensors: Tensors) -> bool:
        return len(tensors) == len(self._signature) and all(
            (t.shape, t.dtype, t.device) == s for t, s in zip(tensors, self._signature)
        )

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        after = self._physics(*tensors)
        correction = self.correction(self.seen(after, tensors))
        before = expand(tensors[: self._state_leaves], self._state_layout, self.output_layout)
        return self._solver.coupling(before, expand(after, self._after_layout, self.output_layout), correction)

    def network_input(self, seen: Tensors) -> torch.Tensor:
        """Channels that the network sees, unscaled."""
        return self._input_map.to_channels((*seen, *self._solver.feature_tensors(seen[0].dtype)))

    def correction(self, seen: Tensors) -> tuple[torch.Tensor, ...]:
        """σ_out · C(x / σ_in) as native tensors of the state."""
        solver = self._solver
        channels = self.network_input(seen)
        dtypes = [p.dtype for p in solver.network.parameters()] or [channels.dtype]
        output = self._call_network((channels / _per_channel(solver.input_scale, channels)).to(dtypes[0]))
        output = output.to(channels.dtype)
        output = output * _per_channel(solver.output_scale, output)
        return self._correction_map.from_channels(output, self._input_map.batch_sizes(seen))

    def _call_network(self, channels: torch.Tensor) -> torch.Tensor:
        try:
            return self._solver.network(channels)
        except RuntimeError as error:
            if "channels" not in str(error):
                raise
            state = self._correction_map.channels
            raise StateError(
                f"the network cannot take {channels.shape[1]} input channels: {state} of the state, "
                f"{channels.shape[1] - state} of the inputs it sees and the features ({error}). Give its first layer as "
                f"many, or choose what it sees with sees=(…); it works on (batch, channel, {', '.join(self._input_map.resolution)}). "
                "Python numbers are not seen: pass phi.math.wrap(number)"
            ) from error

    def to_channels(self, state: Tensors) -> torch.Tensor:
        """A state of this step's result as channels."""
        return self._correction_map.to_channels(state)

    def physics(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The uncorrected step."""
        return self._physics(*tensors)

    def seen(self, after: Tensors, tensors: Tensors) -> list[torch.Tensor]:
        """What the network sees: result of the physics and inputs."""
        return [*after, *(tensors[n] for n in self._seen_tensors)]


def _per_channel(scale: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    if scale.numel() not in (1, channels.shape[1]):
        raise StateError(
            f"the solver has scales for {scale.numel()} channels but this state has {channels.shape[1]}; estimate them "
            "from data of this kind"
        )
    return scale.to(channels.dtype).view(1, -1, *[1] * (channels.ndim - 2))
