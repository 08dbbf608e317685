"""Derivatives of native steps against finite differences, each other and loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from cases.small import noise


def check_derivatives(native: Callable, tensors: Sequence[torch.Tensor], second: bool = True) -> None:
    """Reverse mode, forward mode and second derivatives of `native`, in double precision.

    Args:
        native: `(*tensors) -> tuple of tensors`.
        tensors: float64 or complex128, few entries.
        second: whether second derivatives are compared as well.
    """
    inputs = [t.detach().clone().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(native, inputs, atol=1e-6, rtol=1e-5, check_forward_ad=True)
    if second:
        assert torch.autograd.gradgradcheck(native, inputs, atol=1e-5, rtol=1e-4)
    check_products(native, tensors)


def check_products(native: Callable, tensors: Sequence[torch.Tensor], rounding: float = 1e-11) -> None:
    """⟨w, J v⟩ = ⟨Jᵀ w, v⟩ for all pairs of some tangents v and cotangents w, with vmap over either."""
    results, vjp = torch.func.vjp(native, *tensors)
    v = directions(tensors, copies=3, seed=1)
    w = directions(results, copies=4, seed=50)
    tangents = torch.vmap(lambda *d: torch.func.jvp(native, tuple(tensors), d)[1])(*v)
    gradients = torch.vmap(lambda *d: vjp(d))(*w)
    left, right = products(w, tangents), products(gradients, v)
    assert left.abs().min() > 1e-9
    torch.testing.assert_close(left, right, rtol=rounding, atol=rounding)


def directions(like: Sequence[torch.Tensor], copies: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Random tensors of the shapes and types of others, with a leading axis."""
    shapes = [(copies, *t.shape, 2) for t in like]
    pairs = [noise(*shape, seed=seed + n, dtype=torch.float64) for n, shape in enumerate(shapes)]
    return tuple(torch.view_as_complex(p) if t.is_complex() else p[..., 0] for p, t in zip(pairs, like))


def products(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
    """Re Σ conj(aᵢ)·bⱼ over all tensors, `(i, j)`."""
    return sum((x.reshape(len(x), -1).conj() @ y.reshape(len(y), -1).T).real for x, y in zip(a, b))


def check_vmap(native: Callable, tensors: Sequence[torch.Tensor], copies: int = 3) -> None:
    """A further batch axis by `torch.vmap` gives what a loop gives: values, gradients, tangents."""
    many = [
        torch.stack([t * (1 + 0.1 * n) + 0.01 * n for n in range(copies)]) for t in tensors
    ]  # other values, same shape

    def gradients(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results, vjp = torch.func.vjp(native, *inputs)
        return vjp(tuple(torch.ones_like(r) for r in results))

    def tangents(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.func.jvp(native, inputs, tuple(torch.ones_like(t) for t in inputs))[1]

    for f in (native, gradients, tangents):
        found = torch.vmap(f)(*many)
        for n in range(copies):
            for a, b in zip(found, f(*(t[n] for t in many))):
                torch.testing.assert_close(a[n], b, rtol=1e-12, atol=1e-12)
