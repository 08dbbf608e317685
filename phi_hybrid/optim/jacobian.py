"""Products with the Jacobian J = ∂y/∂θ of real outputs y, `(m,)`, by all trained parameters θ, `(P,)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from phi_hybrid.errors import StateError

# --- rows in several processes ---


@dataclass(frozen=True)
class Processes:
    """Knowledge that one process has of the others; by default there are none."""

    size: int = 1
    rank: int = 0
    group: Any = None

    @classmethod
    def of(cls, module: torch.nn.Module) -> Processes:
        """The processes among which `DistributedDataParallel`, around the module or within it, shares the samples."""
        for part in module.modules():
            if isinstance(part, DistributedDataParallel):
                group = part.process_group
                return cls(distributed.get_world_size(group), distributed.get_rank(group), group)
        return cls()

    def gathered(self, x: torch.Tensor) -> torch.Tensor:
        """The x of all processes one after another along the first axis; all must have the same shape."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        distributed.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts)

    def require_equal(self, count: int) -> None:
        """Raises a `StateError` unless all have the same number of outputs."""
        if self.size > 1:
            counts: list[Any] = [None] * self.size
            distributed.all_gather_object(counts, count, group=self.group)
            if len(set(counts)) > 1:
                raise StateError(f"processes have {counts} outputs; give each the same number of samples")

    def own(self, x: torch.Tensor) -> torch.Tensor:
        """This process's part of what was gathered."""
        return x.chunk(self.size)[self.rank]

    def summed(self, x: torch.Tensor) -> torch.Tensor:
        """Σ x over all processes; x is overwritten."""
        if self.size > 1:
            distributed.all_reduce(x, group=self.group)
        return x


# --- rows and products ---


class Jacobian:
    """J of one evaluation. Its graph is kept until the object goes.

    Args:
        outputs: y `(m,)`, real, with their graph; of several processes, those of this one.
        parameters: θ, tensors of any shapes and precisions.
        samples: number b of samples; the outputs of one follow those of another.
        layers: layers that were recorded when the outputs were computed, for engines that look at them.
        processes: processes that have rows of J; those of the first come first.
    """

    def __init__(
        self,
        outputs: torch.Tensor,
        parameters: Sequence[torch.Tensor],
        samples: int = 1,
        layers: Mapping[Any, Any] = MappingProxyType({}),
        processes: Processes = Processes(),
    ) -> None:
        self.outputs = outputs
        self.parameters = tuple(parameters)
        self.samples = samples
        self.layers = layers
        self.processes = processes

    @property
    def rows(self) -> int:
        """m, of all processes together."""
        return self.outputs.numel() * self.processes.size

    @property
    def columns(self) -> int:
        """P."""
        return sum(p.numel() for p in self.parameters)

    def of(self, parameters: Sequence[torch.Tensor]) -> Jacobian:
        """The columns of some parameters."""
        return Jacobian(self.outputs, parameters, self.samples, self.layers, self.processes)

    def transposed_times(self, cotangent: torch.Tensor) -> list[torch.Tensor]:
        """Jᵀ·c for c `(m,)`, shaped like the parameters and in their precision."""
        back = torch.autograd.grad(
            self.outputs,
            self.parameters,
            self.processes.own(cotangent).to(self.outputs),
            retain_graph=True,
            allow_unused=True,
        )
        return [
            torch.zeros_like(p) if g is None else self.processes.summed(g.contiguous())
            for g, p in zip(back, self.parameters)
        ]

    def times(self, tangent: Sequence[torch.Tensor]) -> torch.Tensor:
        """J·t for t like the parameters, `(m,)`: the derivative of Jᵀ·c, which is linear in c, by c."""
        cotangent, back = self._transposed
        pairs = [(g, t) for g, t in zip(back, tangent) if g is not None and g.requires_grad]
        if not pairs:
            return self.processes.gathered(torch.zeros_like(self.outputs))
        product = torch.autograd.grad(
            [g for g, _ in pairs], cotangent, [t.to(g) for g, t in pairs], retain_graph=True, allow_unused=True
        )[0]
        return self.processes.gathered(torch.zeros_like(self.outputs) if product is None else product)

    def rows_of(self, size: int, precision: torch.dtype = torch.float64) -> torch.Tensor:
        """J as a matrix `(m, P)`, computed `size` rows at a time."""
        full = torch.empty(self.outputs.numel(), self.columns, dtype=precision, device=self.outputs.device)
        for part, rows in self.chunks(size):
            full[part] = rows
        return self.processes.gathered(full)

    def chunks(self, size: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows of this process's samples, `size` at a time: which ones, and `(rows, P)` in double precision."""
        count = self.outputs.numel()
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            seeds = torch.zeros(part.stop - part.start, count, dtype=self.outputs.dtype, device=self.outputs.device)
            seeds[torch.arange(part.stop - part.start), torch.arange(part.start, part.stop)] = 1
            back = products(self.outputs, self.parameters, seeds)
            yield part, torch.cat([g.reshape(len(seeds), -1).double() for g in back], 1)

    def groups(self, columns: int) -> list[list[torch.Tensor]]:
        """The parameters in groups of at most this many columns; a tensor with more is a group by itself."""
        groups: list[list[torch.Tensor]] = [[]]
        for parameter in self.parameters:
            if groups[-1] and sum(p.numel() for p in groups[-1]) + parameter.numel() > columns:
                groups.append([])
            groups[-1].append(parameter)
        return groups

    @cached_property
    def _transposed(self) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        """c, and Jᵀ·c with the graph that leads to it."""
        cotangent = torch.zeros_like(self.outputs, requires_grad=True)
        return cotangent, torch.autograd.grad(
            self.outputs, self.parameters, cotangent, create_graph=True, allow_unused=True
        )


def products(
    outputs: torch.Tensor, inputs: Sequence[torch.Tensor], cotangents: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """cᵀ·∂y/∂x for many c at once, `(cotangent, m)`; zero for inputs that y does not depend on.

    By `torch.func.vmap`: the older `is_grads_batched` knows no rule for captured linear solves.
    """

    def product(cotangent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True, materialize_grads=True)

    return torch.func.vmap(product)(cotangents)
