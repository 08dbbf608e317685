"""Rows of a Jacobian that several processes share, each with the samples of its own (data-parallel training)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from phi_hybrid.errors import StateError


@dataclass(frozen=True)
class Processes:
    """What one process must know of the others; by default there are none."""

    size: int = 1
    rank: int = 0
    group: Any = None

    @classmethod
    def of(cls, module: torch.nn.Module) -> Processes:
        """Those among which `DistributedDataParallel`, around the module or within it, shares the samples."""
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
