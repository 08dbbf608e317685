"""Structured Gram matrices against rows of the Jacobian, for all kinds of layers and of use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases.small import SmallNet, forced_step, line
from torch import nn

import phi_hybrid as ph
from phi_hybrid.optim import HIG, Closure, Dense, Gram, Smooth, Structured

torch.set_num_threads(1)


class Recurrent(nn.Module):
    """The same layers three times, between a nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = x + self.second(torch.tanh(self.first(x)))
        return x


class Tied(nn.Module):
    """Two layers with one weight and one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight, self.second.bias = self.first.weight, self.first.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


class HalfTied(Tied):
    """Two layers with one weight and a bias each."""

    def __init__(self) -> None:
        super().__init__()
        self.second.bias = nn.Parameter(torch.randn(4))


def frozen() -> nn.Module:
    """A weight and a bias that are not trained."""
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    module[0].weight.requires_grad_(False)
    module[2].bias.requires_grad_(False)
    return module


def conv(dims: int, **settings: Any) -> Callable[[], nn.Module]:
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return lambda: nn.Sequential(layer(2, 3, 3, **settings), nn.Tanh(), layer(3, 2, 3, **settings))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (4,)),
    "positions": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (5, 4)),
    "recurrent": (Recurrent, (4,)),
    "tied": (Tied, (4,)),
    "half tied": (HalfTied, (4,)),
    "conv 1D": (conv(1, padding=1), (2, 7)),
    "conv 1D circular": (conv(1, padding=1, padding_mode="circular"), (2, 7)),
    "conv 1D same": (conv(1, padding="same", padding_mode="reflect"), (2, 7)),
    "conv 1D stride": (conv(1, stride=2, bias=False), (2, 13)),
    "conv 2D": (conv(2, padding=(1, 0), padding_mode="replicate"), (2, 5, 6)),
    "conv 3D": (conv(3, padding=1), (2, 3, 2, 4)),
    "dilated": (conv(1, dilation=2, padding=2), (2, 7)),
    "groups": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3, groups=2), nn.Tanh(), nn.Conv1d(4, 2, 3)), (2, 7)),
    "frozen": (frozen, (4,)),
    "norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)), (4,)),
}


@pytest.mark.parametrize("name", MODULES)
def test_update_equals_that_of_the_rows(name: str) -> None:
    """Under κ = ½ and a smooth enough cutoff, with layers that are covered and layers that are not."""
    make, shape = MODULES[name]
    torch.manual_seed(0)
    module = make().double()
    x = torch.randn(4, *shape, dtype=torch.float64)
    target = torch.randn_like(module(x))

    def loss(y: torch.Tensor) -> torch.Tensor:
        return ((y - target) ** 2).flatten(1).sum(1).mean()

    found = {}
    for engine in (Dense(), Gram(), Structured(chunk=3)):
        optimizer = HIG(module, 0.0, rcond=Smooth(1e-6, damping=0.1), engine=engine)
        optimizer.step(Closure(lambda: module(x), loss))
        found[type(engine)] = torch.cat([d.reshape(-1) for d in optimizer.last.direction])
    for engine in (Gram, Structured):
        assert (found[engine] - found[Dense]).norm() < 1e-8 * found[Dense].norm(), engine


def test_unrolled_hybrid_solver() -> None:
    """Layers are called in every unrolled step; physics stands between the calls."""
    data = ph.Trajectories.generate(
        lambda u, f: 0.9 * forced_step(u, f), line(0, b=3, dtype=torch.float64), 4,
        (line(1, b=3, dtype=torch.float64),), progress=False,
    )  # fmt: skip
    solver = ph.HybridSolver(ph.capture(forced_step), SmallNet(2, 1, 1, width=2).double(), ph.coupling.Forcing())
    objective, batch = ph.Unrolled(3), data.windows(3).collate([data.windows(3)[n] for n in (0, 3, 5)])
    directions = []
    for engine in (Dense(), Structured()):
        optimizer = HIG(solver, 0.0, rcond=Smooth(1e-6, 0.1), engine=engine)
        optimizer.step(Closure(lambda: objective.outputs(solver, batch), lambda y: objective.loss(y, batch)))
        directions.append(torch.cat([d.reshape(-1) for d in optimizer.last.direction]))
    assert (directions[0] - directions[1]).norm() < 1e-8 * directions[0].norm()


def test_coupled_samples_are_noticed() -> None:
    module, x = nn.Linear(3, 2).double(), torch.randn(4, 3).double()
    optimizer = HIG(module, engine=Structured())
    with pytest.raises(ph.StateError, match="samples of the batch influence each other"):
        optimizer.step(Closure(lambda: module(x) * module(x).mean(0), lambda y: (y**2).sum(1).mean()))
