"""Small simulators, sound and unsound, with their analytic derivatives; each is applied to every cell by itself."""

from __future__ import annotations

import torch
from phi.torch.flow import Field, math


def smooth(u: Field) -> Field:
    """0.9·u + 0.1·sin u, derivative 0.9 + 0.1·cos u."""
    return u.with_values(0.9 * u.values + 0.1 * math.sin(u.values))


def clamped(u: Field) -> Field:
    """u within ±1, derivative 1 inside and 0 outside."""
    return u.with_values(math.clip(u.values, -1, 1))


def detached(u: Field) -> Field:
    """u − u²/10, derivative 1 − u/5, of which torch sees 1 − u/10."""
    speed = math.stop_gradient(u)
    return u - 0.1 * speed * u


def growing(u: Field) -> Field:
    """1.5·u: gradients grow by 1.5 a step."""
    return 1.5 * u


def decaying(u: Field) -> Field:
    """u/2."""
    return 0.5 * u


class Cube(torch.autograd.Function):
    """u³ with the gradient 2u² instead of 3u²."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return u**3

    @staticmethod
    def backward(ctx, gradient):
        (u,) = ctx.saved_tensors
        return 2 * u**2 * gradient


def falsified(u: Field) -> Field:
    """u³ by a function whose gradient is a third too small."""
    cube = Cube.apply(u.values.native(u.values.shape))
    return u.with_values(math.reshaped_tensor(cube, [*u.values.shape]))


def branching(u: Field) -> Field:
    """u, but −u where u > ½: a jump of 1, and derivative ±1."""
    high = u.values > 0.5
    return u.with_values(math.where(high, -u.values, u.values))


def rounded(u: Field) -> Field:
    """u to the nearest third: derivative 0, jumps of 1/3."""
    return u.with_values(math.round(3 * u.values) / 3)


def rooted(u: Field) -> Field:
    """√|u|, without a derivative at 0."""
    return u.with_values(math.sqrt(abs(u.values)))
