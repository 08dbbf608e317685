"""Tensors as one vector of real numbers without units, in which directions and norms mean something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Tensors = Sequence[torch.Tensor]


_NOTHING = 1e-9
"""A part so much smaller than the largest one is rounding, and has no size of its own."""


@dataclass(frozen=True)
class Coordinates:
    """Coordinates ξ = x/σ of tensors x, one σ for each; complex numbers are pairs, integers and booleans have none."""

    scales: tuple[float | None, ...]
    """σ, `None` for tensors without coordinates."""

    @classmethod
    def measured(
        cls, examples: Sequence[Tensors], parts: Sequence[int], otherwise: Coordinates | None = None
    ) -> Coordinates:
        """Root mean squares of the parts of a state, the largest among the examples.

        Args:
            examples: tensors of states; non-finite ones do not count.
            parts: number of the part, for example of the field, that each tensor belongs to; components share a scale.
            otherwise: scales of parts that are zero, 1 by default.
        """
        sizes = dict.fromkeys(parts, 0.0)
        for tensors in examples:
            for part in sizes:
                own = [_pairs(t).reshape(-1) for t, p in zip(tensors, parts) if p == part and is_real(t)]
                values = torch.cat(own) if own else torch.zeros(1)
                size = float(values.square().mean().sqrt()) if values.numel() else 0.0
                sizes[part] = max(sizes[part], size if size < float("inf") else 0.0)
        least = _NOTHING * max(sizes.values(), default=0.0)
        spare = otherwise.scales if otherwise else [1.0 if is_real(t) else None for t in examples[0]]
        return cls(tuple(sizes[p] if s and sizes[p] > least else s for p, s in zip(parts, spare)))

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


def is_real(tensor: torch.Tensor) -> bool:
    """Tells if a tensor holds real or complex numbers."""
    return tensor.is_floating_point() or tensor.is_complex()


def _pairs(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
