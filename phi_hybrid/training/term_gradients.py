"""Gradients of the named contributions to a loss, one by one, for rules that combine them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from phi_hybrid.bridge.checks import require
from phi_hybrid.optim import Combination, pack, unpack
from phi_hybrid.training.gradient import GradientMode
from phi_hybrid.training.processes import Processes


class TermGradients:
    """Gradient of each contribution by the parameters, added up over the parts of an update.

    Args:
        parameters: in whose `grad` the combined gradient is left.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._of: dict[str, list[torch.Tensor | None]] = {}

    def add(self, contributions: Mapping[str, torch.Tensor], mode: GradientMode) -> None:
        """Differentiates every contribution once."""
        left = len(contributions)
        for name, value in contributions.items():
            left -= 1
            for parameter, grad in zip(self._parameters, self._of.get(name, [None] * len(self._parameters))):
                parameter.grad = grad
            if value.requires_grad:
                mode.backward(value, self._parameters, again=left > 0)
            self._of[name] = [parameter.grad for parameter in self._parameters]

    def tensors(self, processes: Processes) -> list[torch.Tensor]:
        """All gradients, the same ones in the same order in all processes."""
        for name, grads in self._of.items():
            self._of[name] = processes.filled(grads, self._parameters)
        return [grad for grads in self._of.values() for grad in grads if grad is not None]

    @torch.no_grad()
    def combine(self, combination: Combination, generator: torch.Generator) -> None:
        """Leaves the combined gradient in the parameters; `None` where no contribution depends on one."""
        for parameter in self._parameters:
            parameter.grad = None
        rows = list(zip(*self._of.values()))  # parameter → gradients of all contributions
        touched = [n for n, grads in enumerate(rows) if any(g is not None for g in grads)]
        if not touched:
            return
        stacked = []
        for n in touched:
            zero = torch.zeros_like(self._parameters[n])
            stacked.append(torch.stack([zero if g is None else g for g in rows[n]]))
        gradients = pack(stacked)
        combined = combination(gradients, generator)
        fits = isinstance(combined, torch.Tensor) and combined.shape == gradients.shape[1:]
        shape = tuple(getattr(combined, "shape", ()))
        require(
            fits, f"result of {combination!r}", shape, f"one gradient, a tensor of shape {tuple(gradients.shape[1:])}"
        )
        for n, grad in zip(touched, unpack(combined[None], [s[:1] for s in stacked])):
            self._parameters[n].grad = grad[0].contiguous()
