"""A task for half-inverse gradients, and their update from NumPy's decomposition."""

from __future__ import annotations

import numpy as np
import torch

from phi_hybrid.optim import HIG, Closure


def network(inputs: int = 3, outputs: int = 4, width: int = 5, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, width), torch.nn.Tanh(), torch.nn.Linear(width, outputs)
    ).double()


class Task:
    """A network, physics y = sin(A·x) + x², and a mean square loss on a batch."""

    def __init__(self, samples: int = 6, seed: int = 0, repeat: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.net = network()
        self.x = torch.randn(samples, 3, generator=generator, dtype=torch.float64).repeat(repeat, 1)
        self.target = torch.randn(samples, 4, generator=generator, dtype=torch.float64).repeat(repeat, 1)
        self.matrix = torch.randn(4, 4, generator=generator, dtype=torch.float64)

    def outputs(self) -> torch.Tensor:
        x = self.net(self.x)
        return torch.sin(x @ self.matrix) + x**2

    def loss(self, y: torch.Tensor) -> torch.Tensor:
        return ((y - self.target) ** 2).sum(1).mean()

    @property
    def closure(self) -> Closure:
        return Closure(self.outputs, self.loss)

    def jacobian(self) -> np.ndarray:
        """One backward pass per output."""
        y, rows = self.outputs().reshape(-1), []
        for value in y:
            back = torch.autograd.grad(value, list(self.net.parameters()), retain_graph=True)
            rows.append(torch.cat([b.reshape(-1) for b in back]).numpy())
        return np.stack(rows)

    def cotangent(self) -> np.ndarray:
        y = self.outputs().detach()
        return (2 * (y - self.target) / len(y)).reshape(-1).numpy()

    def weights(self) -> np.ndarray:
        return torch.cat([p.detach().reshape(-1) for p in self.net.parameters()]).numpy()

    def moved(self, optimizer: HIG) -> np.ndarray:
        before = self.weights().copy()
        optimizer.step(self.closure)
        return self.weights() - before


def update_by_hand(task: Task, kappa: float, rcond: float, scale: float = 1.0, damping: float = 0.0) -> np.ndarray:
    """−V σ^(−κ) Uᵀ g from NumPy's decomposition."""
    jacobian, g = task.jacobian() * scale, task.cotangent() / scale
    u, sigma, vt = np.linalg.svd(jacobian, full_matrices=False)
    kept = sigma > rcond * sigma[0]
    power = sigma * (sigma**2 + damping**2) ** (-(1 + kappa) / 2)
    return -vt[kept].T @ (power[kept] * (u[:, kept].T @ g))


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
