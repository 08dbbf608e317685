"""Which engine is chosen, and what is said of its cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases.hig import Task
from torch import nn

import phi_hybrid as ph
from phi_hybrid.optim import HIG, Automatic, Closure, Dense, Engine, GolubKahan, Gram, ParameterGram, Smooth, Structured
from phi_hybrid.optim.closure import flattened
from phi_hybrid.optim.filters import Cutoff
from phi_hybrid.optim.jacobian import Jacobian
from phi_hybrid.optim.layers import recorded

torch.set_num_threads(1)


def jacobian_of(module: nn.Module, x: torch.Tensor) -> Jacobian:
    with recorded(module) as layers:
        y = module(x)
    return Jacobian(flattened(y), list(module.parameters()), len(x), layers)


def test_the_fastest_engine_is_chosen() -> None:
    """Structured where there are wide layers, by parameters where there are few of them."""
    few = jacobian_of(nn.Linear(2, 40), torch.randn(100, 2))
    assert isinstance(Automatic().chosen(few, Cutoff()), ParameterGram)
    wide = jacobian_of(nn.Sequential(nn.Linear(8, 200), nn.Tanh(), nn.Linear(200, 50)), torch.randn(8, 8))
    assert isinstance(Automatic().chosen(wide, Cutoff()), Structured)


def test_coupled_samples_go_by_rows() -> None:
    class Centring(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(0)

    coupled = jacobian_of(nn.Sequential(nn.Linear(80, 3), Centring()), torch.randn(4, 80))
    assert isinstance(Automatic().chosen(coupled, Cutoff()), Gram)


def test_beyond_the_budget() -> None:
    """Without a matrix where the filter allows it; otherwise an error that says what would help."""
    large = jacobian_of(nn.Sequential(nn.Linear(8, 200), nn.Tanh(), nn.Linear(200, 500)), torch.randn(16, 8))
    small = Automatic(budget=100 * 2**20)
    assert isinstance(small.chosen(large, Smooth(1e-3)), GolubKahan)
    with pytest.raises(ph.StateError, match=r"Structured 1\.0 GiB.*rcond=Smooth\(1e-3\)"):
        small.chosen(large, Cutoff())


def test_an_engine_that_cannot_fit_is_refused_before_the_update() -> None:
    """512 000 outputs: K would have two terabytes."""
    net = nn.Linear(1, 8000)
    optimizer = HIG(net, rcond=1e-5, engine=Gram(), progress=False)
    with pytest.raises(ph.StateError, match="Gram .* 512000 outputs"):
        optimizer.step(Closure(lambda: net(torch.ones(64, 1)), lambda y: y.square().mean()))


def test_the_estimate_is_shown_once(capsys: pytest.CaptureFixture) -> None:
    task = Task()
    optimizer = HIG(task.net)
    for _ in range(2):
        optimizer.step(task.closure)
    said = capsys.readouterr().err
    assert said.count("24 outputs, 44 parameters") == 1 and "MiB, about" in said
    HIG(task.net, progress=False).step(task.closure)
    assert not capsys.readouterr().err


def wide() -> Jacobian:
    return jacobian_of(nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 32)), torch.randn(24, 8))


def convolutional() -> Jacobian:
    """Few outputs behind large activations."""
    layers = [nn.Conv1d(a, b, 3, padding=1) for a, b in ((1, 16), (16, 16), (16, 2))]
    net = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2], nn.AvgPool1d(32))
    return jacobian_of(net, torch.randn(8, 1, 256))


@pytest.mark.parametrize(
    ("engine", "make"),
    [
        *((e, wide) for e in (Dense(), Gram(), ParameterGram(), Structured())),
        (Dense(), convolutional),
        (Gram(), convolutional),
    ],
)
def test_memory_is_estimated_well(engine: Engine, make: Callable[[], Jacobian]) -> None:
    """Largest memory that tensors take in an update, counted by torch, against the estimate."""
    torch.manual_seed(0)
    jacobian = make()
    g = torch.randn(jacobian.rows, dtype=torch.float64)
    with torch.profiler.profile(profile_memory=True) as profile:
        engine.update(jacobian, g, Cutoff(), 0.5, 1.0)
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert 0.5 * peak < engine.cost(jacobian).bytes < 2.5 * peak


class Centred(nn.Module):
    """Samples influence each other behind the first layer; the last one begins with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 60), nn.Linear(60, 2)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h - h.mean(0))


def test_coupling_behind_a_last_layer_of_zeros() -> None:
    """It cannot be seen in the first update, and must be in the second."""
    x, target = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    torch.manual_seed(0)
    nets = [Centred().double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, engine in zip(nets, (Dense(), Automatic())):
        optimizer = HIG(net, 0.5, 0.5, 1e-3, engine=engine, progress=False)
        for _ in range(3):
            optimizer.step(Closure(lambda net=net: net(x), lambda y: (y - target).square().sum(1).mean()))
    torch.testing.assert_close(nets[0].first.weight, nets[1].first.weight, rtol=1e-7, atol=1e-9)


def test_layers_without_a_sample_axis_go_by_rows() -> None:
    """As many units as samples: the first axis of z is no sample axis."""

    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.inner(torch.ones(3))

    module = Embedded()
    with recorded(module) as layers:
        y = module(torch.randn(4, 4))
    chosen = Automatic().chosen(Jacobian(flattened(y), list(module.parameters()), 4, layers), Cutoff())
    assert not isinstance(chosen, Structured)
