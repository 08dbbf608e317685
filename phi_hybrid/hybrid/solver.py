"""A PhiFlow step corrected by a network, itself a step."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any

import torch
from phi import math

from phi_hybrid import _compat
from phi_hybrid.bridge.channels import require_tensors
from phi_hybrid.bridge.checks import require, require_arguments, require_instance
from phi_hybrid.bridge.layout import Layout, TreeLayout, describe_leaves, flatten
from phi_hybrid.deployment import save_step
from phi_hybrid.errors import StateError
from phi_hybrid.hybrid.choices import require_real
from phi_hybrid.hybrid.coupling import Additive, Combination, Coupling, as_coupling
from phi_hybrid.hybrid.step import Features, HybridStep
from phi_hybrid.steps import Step, as_step, rollout
from phi_hybrid.steps.face import Call, Tensors


class HybridSolver(Step):
    """Physics with a network: u⁺ = K(u, P(u, f), σ_out · C(([P(u, f), f, features] − μ_in) / σ_in)).

    With additive coupling K, u⁺ = P(u) + σ·C (Um et al. 2020, arXiv 2007.00016). Other couplings place the network
    before or beside the physics, or let it set an input of the step, see `phi_hybrid.coupling`. A solver is a step like
    the one it wraps: call it with PhiFlow states, roll it out, capture nothing again, wrap it in another solver. Where
    physics and network are both compiled, by `capture(…, compile=True)` and `torch.compile(network)`, the step is one
    program. The scales σ are buffers, one per channel, 1 until `set_scales` or a `Trainer` estimates them from data; μ is 0 unless
    `estimate_scales(…, centred=True)` estimates it, too.

    Args:
        physics: `state, *inputs -> state`; a `PhysicsBlock` from `capture`, or plain PhiFlow code (slow).
        network: torch module `(batch, channel_in, *spatial) -> (batch, channel_out, *spatial)`, in float32 or float64
            independently of the physics. `channel_out` is the number of channels of what the coupling changes (the
            state, usually), `channel_in` that of state, inputs seen and features together. Staggered components keep
            their own faces.
        coupling: how output and physics make the new state: `Additive()`, `Parallel(Additive())`, `Forcing(0)`, …, or a
            function `(state before, state after the physics, output) -> state` of native tensors.
        sees: name or number (0 for the first after the state) of the input that the network sees, e.g. `"force"`, or
            several; all by default.
        corrects: name (of a dict) or number (of a tuple) of the part of the state that the network corrects, e.g.
            `"velocity"`, or several; all by default. It works on their grid; parts on other grids are seen there as cell means.
        features: constant fields or parameters that the network sees besides, e.g. masks or coordinates `(x, y)`.
        project: PhiFlow function `state -> state` or block applied to the new state, e.g. a captured
            `lambda v: fluid.make_incompressible(v)[0]` that removes the divergence of the correction.

    Raises:
        StateError: for complex features; on the first call, if resolutions or channel numbers do not fit, or the state or an
            input that is seen is complex; later, for a state whose boundaries are of another kind than those of the data that
            the scales come from.
    """

    input_mean: torch.Tensor
    input_scale: torch.Tensor
    output_scale: torch.Tensor

    def __init__(
        self,
        physics: Callable[..., Any],
        network: torch.nn.Module,
        coupling: Coupling | Combination = Additive(),
        *,
        sees: Sequence[int | str] | int | str | None = None,
        corrects: Sequence[str | int] | str | int | None = None,
        features: Sequence[Any] = (),
        project: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        fits = isinstance(network, torch.nn.Module) and not isinstance(network, Step)
        require(fits, "network", network, "a torch module on channels, second: HybridSolver(physics, network)")
        require_arguments("network", network.forward, "channels")
        self.physics = as_step(physics, "physics")
        self.network = network
        self.coupling = as_coupling(coupling)
        self.project = None if project is None else as_step(project, "project")
        self.sees = _choice(
            "sees", sees, (Integral, str), 'names or numbers of inputs, e.g. ("force",), or () for none'
        )
        self.corrects = _choice("corrects", corrects, (Integral, str), 'names or numbers of parts, e.g. ("velocity",)')
        require_instance("features", features, (tuple, list), "fields or tensors in a tuple, e.g. (mask,)")
        tensors, self._features_layout = flatten(tuple(features))
        require_real("features", tensors)
        require_tensors(self._features_layout, "features")
        self._features = len(tensors)
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"feature{number}", tensor, persistent=False)
        self.register_buffer("input_mean", torch.zeros(1))
        self.register_buffer("input_scale", torch.ones(1))
        self.register_buffer("output_scale", torch.ones(1))
        self.register_buffer("scaled", torch.tensor(False))
        self.boundaries: tuple[tuple[str, str], ...] = ()

    def rollout(self, state: Any, steps: int, *inputs: Any, check: bool = True, **keywords: Any) -> Any:
        """Trajectory u₀ … u_steps with a batch dim `time` of size `steps + 1`; see `phi_hybrid.rollout`."""
        return rollout(self, state, steps, *inputs, check=check, **keywords)

    def arguments(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.physics.arguments(args, keywords)

    @property
    def argument_names(self) -> tuple[str, ...]:
        return self.physics.argument_names

    def make(self, layout: TreeLayout, tensors: Tensors, call: Call | None = None) -> HybridStep:
        self.check_boundaries(layout.children[0])
        step = HybridStep(
            self.physics,
            self.scaled_network,
            self.coupling,
            Features(self._features_layout, self.feature_tensors),
            self.project,
            layout,
            tensors,
            self.sees,
            self.corrects,
        )
        if self.physics.compiles and _compat.is_compiled(self.network):
            step.compile()
        for scale, channels in zip((self.input_scale, self.output_scale), step.channels):
            if scale.numel() not in (1, channels):
                raise StateError(
                    f"the solver has scales for {scale.numel()} channels but this state has {channels}; estimate them from "
                    "data of this kind"
                )
        return step

    def scaled_network(self, channels: torch.Tensor) -> torch.Tensor:
        """σ_out · C((x − μ_in) / σ_in) of channels `(batch, channel, *spatial)`, in their precision."""
        dtype, shape = channels.dtype, (1, -1, *[1] * (channels.ndim - 2))
        inputs = (channels - self.input_mean.to(dtype).view(shape)) / self.input_scale.to(dtype).view(shape)
        precisions = {p.dtype for p in self.network.parameters() if p.is_floating_point()}
        if len(precisions) == 1:  # several are the business of the network
            inputs = inputs.to(*precisions)
        with _precision_like(inputs):
            outputs = self.network(inputs)
        require_instance("output of the network", outputs, torch.Tensor, "one torch tensor (batch, channel, *spatial)")
        if not outputs.is_floating_point():
            raise StateError(
                f"the network returns {outputs.dtype}, but a correction is made of real numbers; let it return floats, e.g. "
                "the real part of what it computes"
            )
        outputs = outputs.to(dtype)
        if outputs.ndim < 2 or self.output_scale.numel() not in (1, outputs.shape[1]):
            return outputs  # of a number of channels that `from_channels` refuses, and explains
        return outputs * self.output_scale.to(dtype).view(shape)

    def feature_tensors(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """Native tensors of the features in the precision of the state."""
        return [getattr(self, f"feature{n}").to(dtype) for n in range(self._features)]

    @torch.no_grad()
    def set_scales(
        self,
        input_scale: torch.Tensor,
        output_scale: torch.Tensor,
        boundaries: Sequence[tuple[str, str]] = (),
        input_mean: torch.Tensor | None = None,
    ) -> None:
        """Sets σ and μ per channel, `(channel,)`; where σ is zero it is taken as 1.

        Args:
            input_scale: of state, inputs and features, in this order.
            output_scale: of the correction.
            boundaries: kind of boundary per side of the training states; states of another kind are refused from now
                on, since the network has never seen any.
            input_mean: of state, inputs and features, 0 by default.

        Raises:
            StateError: for negative or non-finite scales, and a mean of another number of channels.
        """
        scales = {"input_scale": input_scale, "output_scale": output_scale}
        for name, scale in scales.items():
            require_instance(name, scale, torch.Tensor, "a tensor (channel,), e.g. torch.tensor([1.0, 0.5])")
            if not torch.isfinite(scale).all() or (scale < 0).any():
                raise StateError(
                    f"{name} = {scale.tolist()}: scales must be finite and not negative; 1 leaves a channel as it is"
                )
        mean = torch.zeros_like(input_scale) if input_mean is None else input_mean
        fits = isinstance(mean, torch.Tensor) and mean.shape == input_scale.shape and bool(torch.isfinite(mean).all())
        require(
            fits, "input_mean", mean, f"finite numbers in a tensor of {input_scale.numel()} channels, as input_scale"
        )
        for name, scale in scales.items():
            setattr(self, name, torch.where(scale > 0, scale, torch.ones_like(scale)).to(getattr(self, name)))
        self.input_mean = mean.to(self.input_mean, copy=True)
        self.scaled.fill_(True)
        self.boundaries = tuple((side, kind) for side, kind in boundaries)
        self.remember(())  # steps known so far may have boundaries that are refused from now on

    def check_boundaries(self, state: Layout) -> None:
        """Raises StateError if the boundaries are of another kind than those of the training data."""
        if self.boundaries and state.boundary_kinds != self.boundaries:
            known, given = (", ".join(map(" ".join, kinds)) for kinds in (self.boundaries, state.boundary_kinds))
            raise StateError(
                f"this solver was trained on states with the boundaries {known} but this one, {describe_leaves(state)}, has {given or 'none'}. Give the "
                "state the boundary of the data, train on such states, or wrap the network anew, "
                "HybridSolver(physics, solver.network), to try it all the same"
            )

    def extra_repr(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        scales = (
            f"{self.input_scale.numel()} → {self.output_scale.numel()} channels" if self.scaled else "not yet known"
        )
        chosen = {"sees": self.sees, "corrects": self.corrects, "features": self._features or None}
        settings = "".join(f", {name}={value}" for name, value in chosen.items() if value is not None)
        return f"{self.coupling}{settings}; {count} parameters, scales {scales}"

    def settings(self) -> dict[str, Any]:
        """Coupling, choices and kinds of features, as a file names them."""
        return {
            "coupling": re.sub(r" at 0x[0-9a-f]+", "", repr(self.coupling)),  # of functions
            "sees": self.sees if self.sees is None else list(self.sees),
            "corrects": self.corrects if self.corrects is None else list(self.corrects),
            "features": describe_leaves(self._features_layout) if self._features else None,
            "project": self.project is not None,
        }

    def save(self, path: str | os.PathLike[str], *example: Any, **keywords: Any) -> None:
        """Writes this solver to one file: weights, scales, features, boundaries, and the whole step as data.

        `ph.load(path)` gives a step that runs where neither the network's nor the physics' code is known, equal to the last
        bit on the same kind of machine; `ph.load(path, into=solver)` fills a solver made of that code. Nothing in the file
        is executed when it is loaded, so that files of strangers can be.

        Args:
            path: of the file, e.g. `"wake.safetensors"`; it can be read by other programs for safetensors.
            *example: state and inputs to save the step for, e.g. fields of shape `(batch, x, y, vector)`; by default those
                that the solver was called with last, filled with numbers around 1. Domain, boundaries and Python numbers
                are fixed by it, the batch size is not.
            **keywords: inputs by name.

        Raises:
            StateError: for a solver that was never called and no example; for physics that was not captured; for states
                and operators that a file does not hold.
            CaptureError: if the network looks at values, or batch entries depend on one another.
            DataError: if the file cannot be written.
        """
        save_step(self, path, example, keywords)

    def get_extra_state(self) -> list[list[str]]:
        """Kinds of boundaries of the training data, saved with the scales."""
        return [list(entry) for entry in self.boundaries]

    def set_extra_state(self, state: Sequence[Sequence[str]]) -> None:
        self.boundaries = tuple((side, kind) for side, kind in state)

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """As of every module, but without what a network puts beside its own entries.

        Neural operators of libraries put their settings there, which no `load_state_dict` of a larger module takes back.
        """
        before = set(destination or ())
        found = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        own = {"_extra_state", *dict(self.named_children()), *dict(self.named_buffers(recurse=False))}
        for name in set(found) - before:
            if not name.startswith(prefix) or name.removeprefix(prefix).partition(".")[0] not in own:
                del found[name]
        return found

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        if (scale := state_dict.get(prefix + "input_scale")) is not None:  # files of 0.1 have no mean
            state_dict.setdefault(prefix + "input_mean", torch.zeros_like(scale))
        for name in ("input_mean", "input_scale", "output_scale"):  # of a size not known before the first data
            if prefix + name in state_dict:
                setattr(self, name, torch.ones_like(state_dict[prefix + name], device=getattr(self, name).device))
        if (text := state_dict.pop(prefix + "boundaries", None)) is not None:  # JSON in a tensor until version 0.1
            state_dict[prefix + "_extra_state"] = json.loads(bytes(text.tolist()) or "[]")
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.remember(())


def _choice(name: str, chosen: Any, kinds: tuple[type, ...], expected: str) -> tuple | None:
    """A single name or number as a choice of one, several in a tuple, `None` for all."""
    if chosen is None:
        return None
    several = isinstance(chosen, Iterable) and not isinstance(chosen, str)
    entries = tuple(chosen) if several else (chosen,)
    require(all(isinstance(e, kinds) and not isinstance(e, bool) for e in entries), name, chosen, expected)
    return entries


def _precision_like(tensor: torch.Tensor) -> AbstractContextManager:
    """PhiFlow's precision that of a tensor: phiml's networks convert what they see to it."""
    bits = torch.finfo(tensor.dtype).bits
    return nullcontext() if bits < 32 or bits == math.get_precision() else math.precision(bits)
