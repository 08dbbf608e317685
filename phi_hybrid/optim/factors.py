"""A layer's part of J·Jᵀ from what it saw, a, and what the outputs feel of it, δ = ∂y/∂z, without its part of J.

Sample i and output p have ∂y_ip/∂W = Σ_t δ_ipt ⊗ a_it, and so

    K[(i,p), (j,q)] = Σ_ts (a_it·a_js + [bias])·(δ_ipt·δ_jqs),

t and s running over all applications of the layer. Where a layer is applied so often that these sums cost more than
the rows of J that belong to it, as in convolutions, the rows are held instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from phi_hybrid.optim.engines import add_square
from phi_hybrid.optim.layers import Layer
from phi_hybrid.optim.processes import Processes

_BLOCK = 512
"""Rows of K that are worked on at once."""


@dataclass
class Factor:
    """What is held of one layer until its part of K is formed.

    Args:
        layer: that was recorded.
        rows: m of this process.
        samples: b of this process.
    """

    layer: Layer
    rows: int
    samples: int

    def __post_init__(self) -> None:
        layer = self.layer
        self.weight = layer.module.weight.requires_grad
        self.bias = layer.module.bias is not None and layer.module.bias.requires_grad
        t, units, inputs = layer.applications, layer.units, layer.inputs_per_unit
        self.by_products = t**2 * units < units * inputs + t * units * inputs / self.rows
        self.width = t * units if self.by_products else units * (inputs * self.weight + self.bias)
        self._held: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        return 8 * self.rows * self.width

    def flops(self, rows: int) -> float:
        """Of forming K with so many rows in all."""
        t, units, inputs = self.layer.applications, self.layer.units, self.layer.inputs_per_unit
        if self.by_products:
            return rows**2 * t**2 * units
        return rows**2 * self.width + 2 * rows * t * units * inputs

    def fill(self, outputs: slice, sensitivities: list[torch.Tensor]) -> None:
        """Takes in δ of some outputs p, one tensor `(output, sample, …)` for each call of the layer."""
        delta = self.layer.felt(sensitivities)  # (sample, output, application, unit)
        if self._held is None:
            self._seen = self.layer.seen()
            self._held = delta.new_empty(self.samples, self.rows // self.samples, self.width)
        if self.by_products:
            self._held[:, outputs] = delta.flatten(2)
            return
        parts = []
        if self.weight:
            parts.append(torch.einsum("iptu,itk->ipuk", delta, self._seen).flatten(2))
        if self.bias:
            parts.append(delta.sum(2))
        self._held[:, outputs] = torch.cat(parts, 2)

    def gradient(self, sensitivities: list[torch.Tensor]) -> list[torch.Tensor]:
        """Σ_it δ_it ⊗ a_it and Σ_it δ_it for δ of one product of the outputs, like the parameters of the layer."""
        delta = self.layer.felt([d[None] for d in sensitivities])[:, 0]
        weight = torch.einsum("itu,itk->uk", delta, self.layer.seen()).view_as(self.layer.module.weight)
        return [weight] * self.weight + [delta.sum((0, 1))] * self.bias

    def add_to(self, gram: torch.Tensor, processes: Processes) -> None:
        """Adds the layer's part to the lower triangle of K, and lets go of what was held."""
        held, self._held = processes.gathered(self._held), None
        if self.by_products:
            self._add_products(gram, processes.gathered(self._seen), held)
        else:
            add_square(gram, held.flatten(0, 1), _BLOCK)

    def _add_products(self, gram: torch.Tensor, seen: torch.Tensor, held: torch.Tensor) -> None:
        samples, outputs, applications = *held.shape[:2], seen.shape[1]
        delta = held.view(samples * outputs, applications, -1)
        step = max(1, _BLOCK // outputs)
        for start in range(0, samples, step):
            stop = min(start + step, samples)
            rows, columns = slice(start * outputs, stop * outputs), slice(0, stop * outputs)
            block = gram[rows, columns].view(stop - start, outputs, stop, outputs)
            for t in range(applications):
                for s in range(applications):
                    inputs = seen[start:stop, t] @ seen[:stop, s].mT if self.weight else 0.0
                    weights = torch.as_tensor(inputs + float(self.bias), dtype=gram.dtype, device=gram.device)
                    weights = weights.expand(stop - start, stop)[:, None, :, None]
                    block.addcmul_((delta[rows, t] @ delta[columns, s].mT).view_as(block), weights)
