"""J·Jᵀ without J, from layer inputs and output sensitivities."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from phi_hybrid.errors import StateError
from phi_hybrid.optim.engines import Gram, Update, from_gram
from phi_hybrid.optim.jacobian import Jacobian, products
from phi_hybrid.optim.layers import Layer, gram, recorded
from phi_hybrid.optim.spectrum import Filter


@dataclass(frozen=True)
class Structured:
    """K = J·Jᵀ layer by layer from inputs and sensitivities of `Linear` and `Conv` layers, others by rows of J.

    The samples of a batch must not influence each other: then one backward pass serves an output of all samples at once,
    d_y passes instead of b·d_y. A random product with J is compared with autograd in every update.

    Args:
        chunk: outputs of each sample whose sensitivities are computed at once.
        rest: for parameters of other layers.
        tolerance: largest relative error of that product.
    """

    chunk: int = 64
    rest: Gram = Gram()
    tolerance: float = 1e-3

    def watching(self, module: torch.nn.Module) -> AbstractContextManager[Mapping[int, Layer]]:
        return recorded(module)

    def update(self, jacobian: Jacobian, cotangent: torch.Tensor, filter: Filter, kappa: float, scale: float) -> Update:
        layers = _usable(jacobian)
        covered = {id(p) for layer in layers for p in layer.parameters}
        others = [p for p in jacobian.parameters if id(p) not in covered]
        total = torch.zeros(jacobian.rows, jacobian.rows, dtype=torch.float64, device=cotangent.device)
        if others:
            total += self.rest.gram(Jacobian(jacobian.outputs, others))
        felt = self._felt(jacobian, layers)
        for layer, sensitivities in zip(layers, felt):
            names = {id(p) for p in layer.parameters}
            total += gram(
                layer.seen(),
                sensitivities,
                id(layer.module.weight) in names,
                layer.module.bias is not None and id(layer.module.bias) in names,
            )
        self._check(jacobian, total)
        return from_gram(total, jacobian, cotangent, filter, kappa, scale)

    def bytes(self, rows: int, columns: int) -> int:
        return 8 * 4 * rows**2

    def _felt(self, jacobian: Jacobian, layers: list[Layer]) -> list[torch.Tensor]:
        """Sensitivities of each layer, `(output, sample, application, unit)`."""
        states = [z for layer in layers for z in layer.outputs]
        if not states:
            return []
        found: list[list[torch.Tensor]] = [[] for _ in states]
        per_sample = jacobian.rows // jacobian.samples
        for start in range(0, per_sample, self.chunk):
            chosen = torch.arange(start, min(start + self.chunk, per_sample), device=jacobian.outputs.device)
            seeds = torch.nn.functional.one_hot(chosen, per_sample).to(jacobian.outputs)
            seeds = seeds[:, None].expand(-1, jacobian.samples, -1).reshape(len(chosen), -1)
            for parts, back in zip(found, products(jacobian.outputs, states, seeds)):
                parts.append(back)
        whole = iter([torch.cat(parts) for parts in found])
        return [layer.felt([next(whole) for _ in layer.outputs], layer.is_convolution) for layer in layers]

    def _check(self, jacobian: Jacobian, found: torch.Tensor) -> None:
        """‖Jᵀ·r‖² = rᵀ·K·r for random r, which coupled samples and hidden uses of a weight break."""
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (jacobian.rows,), generator=generator).to(found) * 2 - 1
        expected = sum(float((g.double() ** 2).sum()) for g in jacobian.transposed_times(signs))
        value = float(signs @ found @ signs)
        if abs(value - expected) > self.tolerance * max(abs(expected), 1e-30):
            raise StateError(
                f"the structured Gram matrix gives rᵀKr = {value:.6g} where autograd gives {expected:.6g}: the samples of the "
                "batch influence each other, or a layer's weights are used outside of it. Use engine=Gram()"
            )


def _usable(jacobian: Jacobian) -> list[Layer]:
    """Layers whose calls all have the samples in front, and whose weights belong to them alone."""
    wanted = {id(p) for p in jacobian.parameters}
    layers = [layer for layer in jacobian.layers.values() if any(id(p) in wanted for p in layer.parameters)]
    return [
        layer
        for layer in layers
        if not layer.half_shared
        and all(z.requires_grad and z.shape[0] == jacobian.samples for z in layer.outputs)
        and all(id(p) in wanted for p in layer.parameters)
    ]
