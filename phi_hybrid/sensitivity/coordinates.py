"""Tensors as one vector of real numbers without units, in which directions and norms mean something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Coordinates:
    """Coordinates ξ = x/σ of tensors x, one σ for each: the root mean square of its values, 1 where they are all zero.

    Complex numbers are pairs of coordinates; integers and booleans have none.
    """

    scales: tuple[float | None, ...]
    """σ, `None` for tensors without coordinates."""

    @classmethod
    def measured(cls, *examples: Tensors) -> Coordinates:
        """Scales of the first of the examples in which a tensor is not zero."""
        scales: list[float | None] = []
        for tensors in zip(*examples):
            if not _is_real(tensors[0]):
                scales.append(None)
                continue
            sizes = [float(t.abs().square().mean().sqrt()) if t.numel() else 0.0 for t in tensors]
            scales.append(next((s for s in sizes if 0 < s < float("inf")), 1.0))
        return cls(tuple(scales))

    def vector(self, tensors: Tensors) -> torch.Tensor:
        """ξ, all coordinates in a row, differentiable."""
        parts = [_pairs(t).reshape(-1) / s for t, s in zip(tensors, self.scales) if s is not None]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def tensors(self, vector: torch.Tensor, like: Tensors) -> tuple[torch.Tensor, ...]:
        """x of these coordinates, differentiable; tensors without coordinates and all shapes are those of `like`."""
        result, start = [], 0
        for tensor, scale in zip(like, self.scales):
            if scale is None:
                result.append(tensor)
                continue
            pairs = _pairs(tensor)
            values = scale * vector[start : start + pairs.numel()].reshape(pairs.shape)
            result.append(torch.view_as_complex(values) if tensor.is_complex() else values)
            start += pairs.numel()
        return tuple(result)


def _is_real(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _pairs(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
