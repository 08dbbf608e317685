"""A PhiFlow step corrected by a network, itself a step."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from phi_hybrid.bridge.channels import require_tensors
from phi_hybrid.bridge.layout import Layout, boundary_kinds, flatten
from phi_hybrid.capture import NativeFace
from phi_hybrid.coupling import Additive, Combination, Coupling, as_coupling
from phi_hybrid.errors import StateError
from phi_hybrid.hybrid_step import HybridStep
from phi_hybrid.unroll import as_step, rollout

Tensors = Sequence[torch.Tensor]


class HybridSolver(NativeFace):
    """Physics with a network: u⁺ = K(u, P(u, f), σ_out · C([P(u, f), f, features] / σ_in)).

    With additive coupling K, u⁺ = P(u) + σ·C (Um et al. 2020, arXiv 2007.00016). Other couplings place the network
    before or beside the physics, or let it set an input of the step, see `phi_hybrid.coupling`. A solver is a step like
    the one it wraps: call it with PhiFlow states, roll it out, capture nothing again, wrap it in another solver. The
    scales σ are buffers, one per channel, 1 until `set_scales` or a `Trainer` estimates them from data.

    Args:
        physics: `state, *inputs -> state`; a `PhysicsBlock` from `capture`, or plain PhiFlow code (slow).
        network: torch module `(batch, channel_in, *spatial) -> (batch, channel_out, *spatial)`, in float32 or float64
            independently of the physics. `channel_out` is the number of channels of what the coupling changes (the
            state, usually), `channel_in` that of state, inputs seen and features together. Staggered components keep
            their own faces.
        coupling: how output and physics make the new state: `Additive()`, `Parallel(Additive())`, `Forcing(0)`, …, or a
            function `(state before, state after the physics, output) -> state` of native tensors.
        sees: which inputs (0 for the first after the state) the network sees; all by default.
        features: constant fields or parameters that the network sees besides, e.g. masks or coordinates `(x, y)`.
        project: PhiFlow function `state -> state` or block applied to the new state, e.g. a captured
            `lambda v: fluid.make_incompressible(v)[0]` that removes the divergence of the correction.

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
        coupling: Coupling | Combination = Additive(),
        *,
        sees: Sequence[int] | None = None,
        features: Sequence[Any] = (),
        project: Callable | None = None,
    ) -> None:
        super().__init__()
        self.physics = as_step(physics)
        self.network = network
        self.coupling = as_coupling(coupling)
        self.project = None if project is None else as_step(project)
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
        self._steps: list[HybridStep] = []

    def rollout(self, state: Any, steps: int, *inputs: Any, check: bool = True) -> Any:
        """Trajectory u₀ … u_steps with a batch dim `time` of size `steps + 1`; see `phi_hybrid.rollout`."""
        return rollout(self, state, steps, *inputs, check=check)

    def bind(self, layout: Layout, tensors: Tensors) -> HybridStep:
        """The hybrid step for this layout and these shapes, precision and device."""
        for step in self._steps:
            if step.layout == layout and step.accepts(tensors):
                return step
        self._steps = [HybridStep(self, layout, tensors), *self._steps][:16]
        return self._steps[0]

    def known_steps(self) -> Sequence[HybridStep]:
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
