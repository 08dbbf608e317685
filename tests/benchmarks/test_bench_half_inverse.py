"""Half-inverse updates by different engines: time, peak memory and error against dense decompositions.

    pytest tests/benchmarks/test_bench_half_inverse.py -s

Poisson's equation: network 64-64-128-64-64, 64 outputs a sample, after 300 updates of Adam. Oscillators: the linear chain.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hig_oscillators import LINEAR, make_task

import phi_hybrid as ph
from phi_hybrid.optim import HIG, Automatic, Closure, Dense, GolubKahan, Gram, ParameterGram, Smooth, Structured
from phi_hybrid.optim.engines import Engine
from phi_hybrid.optim.filters import Cutoff, Filter
from phi_hybrid.pde import poisson

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


@pytest.mark.parametrize(
    "engine",
    [Dense(), Gram(), ParameterGram(), Structured(), Automatic(), GolubKahan()],
    ids=lambda engine: type(engine).__name__,
)
def test_linear_oscillators(measure: Callable, engine: Engine) -> None:
    """128 outputs, 1444 parameters, 24 steps of physics; one thread."""
    torch.set_num_threads(1)
    task = make_task(LINEAR, 0)
    closure = task.closure(task.training[:32])
    optimizer = HIG(task.network, 0.0, 0.5, SMOOTH, engine=engine, progress=False)
    measure("oscillators, 32 samples", type(engine).__name__, lambda: optimizer.step(closure))
