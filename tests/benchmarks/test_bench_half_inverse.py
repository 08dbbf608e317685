"""Half-inverse updates by different engines: time, peak memory and error against dense decompositions.

    pytest tests/benchmarks/test_bench_half_inverse.py -n 0 -s [-k physics]

Poisson's equation: network 64-64-128-64-64, 64 outputs a sample, after 300 updates of Adam. Oscillators:
chains of few to many outputs, behind 24 to 384 steps of physics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from phi.math import batch, zeros

import phi_hybrid as ph
from phi_hybrid.optim import HIG, Automatic, Closure, Dense, GolubKahan, Gram, Smooth, Structured
from phi_hybrid.optim.engines import Engine
from phi_hybrid.optim.filters import Cutoff, Filter
from phi_hybrid.pde import poisson
from phi_hybrid.pde.oscillators import nonlinear_oscillators

FASTER, LESS_MEMORY = 4.0, 1 / 3
"""Of the structured engine, than the dense one in single precision."""
HARD, SMOOTH = Cutoff(1e-5), Smooth(1e-3)


@lru_cache(maxsize=1)
def poisson_task(samples: int, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, Closure]:
    laplace = ph.capture(poisson.laplace)
    f = laplace.flatten(poisson.noise(poisson.square(8), 4096, 0))[0].float()
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = [torch.nn.Flatten()]
    for width, following in zip((64, 64, 128), (64, 128, 64)):
        layers += [torch.nn.Linear(width, following), torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(64, 64))

    def closure(f: torch.Tensor) -> Closure:
        return Closure(
            lambda: laplace.native(net(f).view_as(f))[0],
            lambda y: ((y - f) ** 2).flatten(1).sum(1).mean(),
            net.parameters(),
        )

    adam = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(300):
        adam.step(closure(f[torch.randint(0, len(f), (128,))]))
    net.to(dtype)
    return net, closure(f[:samples].to(dtype))


def update(net: torch.nn.Module, closure: Closure, engine: Engine, filter: Filter) -> torch.Tensor:
    optimizer = HIG(net, 0.0, 0.5, filter, engine=engine, progress=False)
    optimizer.step(closure)
    return torch.cat([d.flatten().double() for d in optimizer.last.direction])


def peak_memory(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, seconds, and GiB that the process takes at most beyond what it has before (Linux)."""

    def resident(row: str) -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(r for r in status if r.startswith(row)).split()[1])

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value until now
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began, (resident("VmHWM") - before) / 2**20


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def test_poisson_4096_outputs() -> None:
    """One update of 4096 × 24,896 against the dense one in single and, for the direction, in double precision."""
    net, closure = poisson_task(64)
    update(net, closure, GolubKahan(iterations=30, tolerance=1), SMOOTH)  # starts whatever starts late
    dense, seconds, memory = peak_memory(lambda: update(net, closure, Dense(torch.float32), HARD))
    exact = update(*poisson_task(64, torch.float64), Gram(), HARD)
    smooth = update(*poisson_task(64, torch.float64), Gram(), SMOOTH)
    net, closure = poisson_task(64)
    print(f"\ndense, single: {seconds:.1f} s, {memory:.2f} GiB, cosine to double {cosine(dense, exact):.6f}")
    for engine in (Structured(), Gram(), GolubKahan()):
        filter, expected = (SMOOTH, smooth) if isinstance(engine, GolubKahan) else (HARD, exact)
        found, own, needed = peak_memory(lambda engine=engine, filter=filter: update(net, closure, engine, filter))
        print(
            f"{engine}, {filter}: {own:.1f} s ({seconds / own:.1f}×), {needed:.2f} GiB ({needed / memory:.2f}×), ",
            end="",
        )
        print(f"cosine {cosine(found, expected):.7f}, error {relative(found, expected):.2g}")
        if isinstance(engine, Structured):
            assert seconds >= FASTER * own and needed <= LESS_MEMORY * memory and cosine(found, exact) >= 0.9999
        if isinstance(engine, GolubKahan):
            assert own < seconds and relative(found, expected) < 0.02


def test_poisson_16384_outputs() -> None:
    """Without a matrix, which would need more than 10 GiB with its eigenvectors and workspace."""
    net, closure = poisson_task(256)
    for rcond in (1e-2, 1e-3):
        _, seconds, memory = peak_memory(lambda rcond=rcond: update(net, closure, GolubKahan(), Smooth(rcond)))
        print(f"\n16384 outputs, rcond {rcond:g}: {seconds:.1f} s, {memory:.2f} GiB")
        assert memory < 4


def peak_of_tensors(work: Callable[[], Any]) -> float:
    """MiB that torch's tensors take at most beyond what they take before, the graph of the outputs included."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak / 2**20


# --- few outputs behind much physics, and many ---


@dataclass(frozen=True)
class Chain:
    """A chain of oscillators under the control of a network of three hidden layers."""

    oscillators: int
    steps: int
    samples: int
    width: int = 20

    def __str__(self) -> str:
        return f"{2 * self.oscillators} outputs × {self.samples} samples, {self.steps} steps, width {self.width}"

    def task(self) -> tuple[torch.nn.Module, Closure]:
        chain = nonlinear_oscillators(self.oscillators, dt=12 / self.steps, steps=self.steps)
        states = chain.random_states(self.samples, 0)
        controls = zeros(batch(time=self.steps, trajectory=2))
        physics = ph.capture(chain.controlled).bind(states.trajectory[:2], controls)
        x = ph.bridge.flatten(states)[0][0].float()
        torch.manual_seed(0)
        layers: list[torch.nn.Module] = [torch.nn.Flatten()]
        for width in (2 * self.oscillators, self.width, self.width):
            layers += [torch.nn.Linear(width, self.width), torch.nn.Tanh()]
        net = torch.nn.Sequential(*layers, torch.nn.Linear(self.width, self.steps))
        return net, Closure(
            lambda: physics.native(x, net(x).T)[0], lambda y: ((y - x) ** 2).flatten(1).sum(1).mean(), net.parameters()
        )


CHAINS = [
    Chain(2, 24, 2),
    Chain(2, 24, 8),
    Chain(2, 24, 32),
    Chain(2, 24, 128),
    Chain(2, 96, 2),
    Chain(2, 96, 8),
    Chain(2, 96, 32),
    Chain(2, 96, 128),
    Chain(2, 96, 8, width=100),
    Chain(2, 384, 8),
]
WAYS: dict[str, tuple[Engine | Automatic, Filter]] = {
    "Dense": (Dense(), Cutoff()),
    "Automatic": (Automatic(), Cutoff()),
    "Structured": (Structured(), Cutoff()),
    "Gram": (Gram(), Cutoff()),
    "GolubKahan": (GolubKahan(), SMOOTH),
    "GolubKahan(memory=0)": (GolubKahan(memory=0), SMOOTH),
}


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_few_outputs_behind_much_physics(by_turns: Callable, chain: Chain) -> None:
    """Time in turns and memory of an update by each engine; `Dense` comes first."""
    net, closure = chain.task()
    optimizers = {way: HIG(net, 0.0, 0.5, f, engine=e, progress=False) for way, (e, f) in WAYS.items()}
    if chain.steps * chain.samples > 200:
        del optimizers["GolubKahan(memory=0)"]  # seconds an update
    steps = {way: partial(optimizer.step, closure) for way, optimizer in optimizers.items()}
    by_turns(str(chain), steps, rounds=15 if chain.steps < 96 else 5)
    peaks = {way: peak_of_tensors(steps[way]) for way in ("Dense", "Automatic")}
    engine = type(next(iter(optimizers["Automatic"]._chosen.values()))).__name__
    print(f"\n{chain}: {engine}, MiB " + ", ".join(f"{way} {mib:.1f}" for way, mib in peaks.items()))
