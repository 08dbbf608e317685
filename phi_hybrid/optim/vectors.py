"""States as vectors: torch tensors `(sample, …)`, real or complex ↔ real numbers `(sample, entry)`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from phi_hybrid.errors import StateError

Tensors = tuple[torch.Tensor, ...]


def as_tuple(tensors: torch.Tensor | Sequence[torch.Tensor]) -> Tensors:
    """A tuple, also of a single tensor.

    Raises:
        StateError: for anything else, such as None or a dict.
    """
    if isinstance(tensors, torch.Tensor):
        return (tensors,)
    if not isinstance(tensors, Sequence) or not all(isinstance(t, torch.Tensor) for t in tensors):
        given = [type(t).__name__ for t in tensors] if isinstance(tensors, (tuple, list)) else type(tensors).__name__
        raise StateError(
            f"{given} where torch tensors are expected: inputs and outputs of a network, a link or a closure are a tensor or a "
            "tuple of them; return e.g. y['velocity'] or tuple(y.values()) of a dict, and block.native(…) of physics"
        )
    return tuple(tensors)


def pack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Real numbers `(sample, entry)`: real and imaginary parts of complex tensors. Differentiable."""
    real = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors]
    return torch.cat([t.reshape(t.shape[0], -1) for t in real], 1)


def unpack(vectors: torch.Tensor, like: Sequence[torch.Tensor]) -> Tensors:
    """Inverse of `pack`, in the shapes and precisions of other tensors. Differentiable."""
    sizes = [t[0].numel() * (2 if t.is_complex() else 1) for t in like]
    return tuple(_shaped(part, t) for part, t in zip(vectors.split(sizes, 1), like))


def lengths(vectors: torch.Tensor) -> torch.Tensor:
    """‖v‖ of every sample, `(sample, entry)` → `(sample, 1)`, without overflow of the squares."""
    largest = vectors.abs().amax(1, keepdim=True)
    scale = positive(largest)
    return scale * torch.linalg.vector_norm(vectors / scale, dim=1, keepdim=True)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """v/‖v‖ of every sample, 0 where v = 0."""
    return vectors / positive(lengths(vectors))


def positive(sizes: torch.Tensor) -> torch.Tensor:
    """Sizes to divide by: 1 where they are 0."""
    return torch.where(sizes > 0, sizes, torch.ones_like(sizes))


def probe(like: torch.Tensor) -> torch.Tensor:
    """Vectors without any pattern, so that sums of their entries do not cancel; `(sample, entry)`."""
    return torch.cos(torch.arange(like.numel(), dtype=like.dtype, device=like.device)).view_as(like)


def require_like(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], what: str) -> None:
    """Raises StateError unless shapes agree, all are real or complex alike, and nothing has lost precision."""
    if len(found) != len(expected) or not all(map(_alike, found, expected)):
        raise StateError(
            f"{what} is {_described(found)}, expected {_described(expected)}: return tensors like those of x, e.g. with "
            ".reshape(x.shape), .to(x.dtype), or .real where the imaginary part means nothing"
        )


def _alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    precise = torch.promote_types(found.dtype, expected.dtype) == found.dtype
    return found.shape == expected.shape and found.is_complex() == expected.is_complex() and precise


def _described(tensors: Sequence[torch.Tensor]) -> str:
    return ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in tensors)


def _shaped(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if like.is_complex():
        return torch.view_as_complex(part.reshape(*like.shape, 2).contiguous()).to(like.dtype)
    return part.reshape(like.shape).to(like.dtype)
