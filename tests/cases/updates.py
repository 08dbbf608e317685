"""Physics, losses and matrices for the tests of chains and rules; dense Jacobians by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from phi.torch.flow import Field, advect, diffuse

import phi_hybrid as ph
from cases.small import line, noise

SAMPLES, CELLS = 3, 6
MATRIX = noise(3, 4, seed=5, dtype=torch.float64)


def step(u: Field) -> Field:
    """Advection, which is not linear, and diffusion by a linear solve."""
    u = advect.semi_lagrangian(u, u, 0.3)
    return diffuse.implicit(u, 0.05, 0.3)


def captured(dtype: torch.dtype = torch.float64, samples: int = SAMPLES) -> tuple[ph.PhysicsBlock, torch.Tensor]:
    """A captured step, and a state `(sample, x, vector)` for it."""
    block = ph.capture(step)
    (x,) = block.flatten(line(cells=CELLS, dtype=dtype, b=samples))
    return block, 0.5 * x


def bent(x: torch.Tensor) -> torch.Tensor:
    """y = sin(A·x) + ‖x‖²/4 with A `(4, 3)`: more outputs than inputs."""
    return torch.sin(x @ MATRIX) + (x**2).sum(1, keepdim=True) / 4


def jacobians(function: Callable, x: torch.Tensor) -> np.ndarray:
    """`(sample, d_y, d_x)`, one sample and one output at a time."""
    found = []
    for sample in x:
        leaf = sample[None].clone().requires_grad_()
        y = function(leaf)
        y = (y if isinstance(y, torch.Tensor) else y[0]).reshape(-1)
        rows = [torch.autograd.grad(value, leaf, retain_graph=True)[0].reshape(-1) for value in y]
        found.append(torch.stack(rows).detach().numpy())
    return np.stack(found)


def square(y: torch.Tensor) -> torch.Tensor:
    """‖y‖² of every sample."""
    return (y.flatten(1) ** 2).sum(1)


def per_sample(f: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    return np.stack([f(*entries) for entries in zip(*arrays)])


def close(found: torch.Tensor, expected: np.ndarray | torch.Tensor, tolerance: float = 1e-10) -> bool:
    """Whether the difference is small relative to what is expected."""
    found, expected = (np.asarray(t.detach() if isinstance(t, torch.Tensor) else t).ravel() for t in (found, expected))
    return float(np.linalg.norm(found - expected)) <= tolerance * float(np.linalg.norm(expected))
