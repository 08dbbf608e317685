"""An optimizer for convolutions, Muon: one direction is as good as another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Muon(torch.optim.Optimizer):
    """Kernels move by orthogonal matrices, W ← W − lr·0.2·√max(n, m)·UVᵀ, where UΣVᵀ is the gradient with its momentum.

    Kernels count as matrices of n outputs by m inputs times places. What has one dim, such as a bias, moves by Adam. The
    factor makes steps as large as Adam's. `torch.optim.Muon` is the same for matrices, and takes no kernels.

    Sources: Jordan et al. 2024, "Muon"; the factor: Liu et al. 2025, arXiv 2502.16982.

    Args:
        parameters: what is trained.
        lr: learning rate.
        momentum: share of the earlier gradients, of kernels.
        betas: shares of Adam.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__(parameters, dict(lr=lr, momentum=momentum, betas=betas))

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One step; returns what the closure does."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move = _by_matrix if parameter.ndim > 1 else _by_adam
                    move(parameter, parameter.grad, self.state[parameter], group)
        return loss


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About UVᵀ of UΣVᵀ, by five steps of a Newton–Schulz iteration that leaves singular values in 0.7 … 1.2."""
    x = matrix / (matrix.norm() + 1e-20)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def _by_matrix(parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], settings: dict) -> None:
    mean = state.setdefault("mean", torch.zeros_like(parameter))
    mean.lerp_(gradient, 1 - settings["momentum"])
    direction = orthogonal(gradient.lerp(mean, settings["momentum"]).reshape(len(parameter), -1))
    size = 0.2 * max(direction.shape) ** 0.5
    parameter.sub_(direction.reshape(parameter.shape), alpha=settings["lr"] * size)


def _by_adam(parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], settings: dict) -> None:
    first, second = settings["betas"]
    mean = state.setdefault("mean", torch.zeros_like(parameter)).lerp_(gradient, 1 - first)
    square = state.setdefault("square", torch.zeros_like(parameter)).lerp_(gradient**2, 1 - second)
    state["steps"] = count = state.get("steps", 0) + 1
    scale = (square / (1 - second**count)).sqrt() + 1e-10
    parameter.sub_(mean / (1 - first**count) / scale, alpha=settings["lr"])
