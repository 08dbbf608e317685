"""Steps at module level, so that blocks can be pickled and loaded in other processes."""

from __future__ import annotations

from typing import Any

import torch
from phi.torch.flow import Field, advect, diffuse


def burgers(u: Field) -> Field:
    return diffuse.explicit(advect.semi_lagrangian(u, u, 0.1), 0.02, 0.1)


def viscous(u: Field, nu: Any) -> Field:
    return diffuse.explicit(u, nu, 0.1)


class Model(torch.nn.Module):
    """One trainable number between two physics steps."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block
        self.gain = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.block.native(*(self.gain * t for t in self.block.native(*tensors)))
