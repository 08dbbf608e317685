"""Products with the Jacobian J = ∂y/∂θ of real outputs y, `(m,)`, by all trained parameters θ, `(P,)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch


class Jacobian:
    """J of one evaluation. Its graph is kept until the object goes.

    Args:
        outputs: y, real and flat, `(m,)`, with their graph.
        parameters: θ, tensors of any shapes and precisions.
        samples: b, number of samples; the outputs of one follow those of another.
        layers: what layers saw when the outputs were computed, for engines that look at them.
    """

    def __init__(
        self,
        outputs: torch.Tensor,
        parameters: Sequence[torch.Tensor],
        samples: int = 1,
        layers: Mapping[Any, Any] = MappingProxyType({}),
    ) -> None:
        self.outputs = outputs
        self.parameters = tuple(parameters)
        self.samples = samples
        self.layers = layers

    @property
    def rows(self) -> int:
        """m."""
        return self.outputs.numel()

    @property
    def columns(self) -> int:
        """P."""
        return sum(p.numel() for p in self.parameters)

    def transposed_times(self, cotangent: torch.Tensor) -> list[torch.Tensor]:
        """Jᵀ·c, shaped like the parameters and in their precision."""
        back = torch.autograd.grad(
            self.outputs, self.parameters, cotangent.to(self.outputs), retain_graph=True, allow_unused=True
        )
        return [torch.zeros_like(p) if g is None else g for g, p in zip(back, self.parameters)]

    def chunks(
        self, size: int, parameters: Sequence[torch.Tensor] | None = None
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows of J, `size` at a time: which ones, and `(rows, columns)` in double precision.

        Args:
            size: number of rows of a chunk.
            parameters: whose columns; all by default.
        """
        chosen = self.parameters if parameters is None else tuple(parameters)
        for start in range(0, self.rows, size):
            part = slice(start, min(start + size, self.rows))
            seeds = torch.zeros(part.stop - part.start, self.rows, dtype=self.outputs.dtype, device=self.outputs.device)
            seeds[torch.arange(part.stop - part.start), torch.arange(part.start, part.stop)] = 1
            back = products(self.outputs, chosen, seeds)
            yield part, torch.cat([g.reshape(len(seeds), -1).double() for g in back], 1)

    def groups(self, columns: int) -> list[list[torch.Tensor]]:
        """The parameters in groups of at most so many columns, as far as a single tensor does not have more."""
        groups: list[list[torch.Tensor]] = [[]]
        for parameter in self.parameters:
            if groups[-1] and sum(p.numel() for p in groups[-1]) + parameter.numel() > columns:
                groups.append([])
            groups[-1].append(parameter)
        return groups


def products(
    outputs: torch.Tensor, inputs: Sequence[torch.Tensor], cotangents: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """cᵀ·∂y/∂x for many c at once, `(cotangent, m)`; zero for inputs that y does not depend on.

    By `torch.func.vmap`: the older `is_grads_batched` knows no rule for captured linear solves.
    """
    known = torch.autograd.grad(outputs, inputs, cotangents[0], retain_graph=True, allow_unused=True)
    used = [x for x, g in zip(inputs, known) if g is not None]
    if not used:
        return tuple(x.new_zeros(len(cotangents), *x.shape) for x in inputs)
    found = iter(torch.func.vmap(lambda c: torch.autograd.grad(outputs, used, c, retain_graph=True))(cotangents))
    return tuple(x.new_zeros(len(cotangents), *x.shape) if g is None else next(found) for x, g in zip(inputs, known))
