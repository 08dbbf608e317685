"""Time to the first step of a periodic Navier–Stokes flow, 64², in fresh processes: imports, capture, compilation.

Processor time of one thread, with that of compilers that are started; the least of several processes, of which none but
the first finds empty caches of the system.

pytest tests/benchmarks/test_bench_first_step.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROCESSES = 4

STOPWATCH = """
import os

def lap(name, last=[0.0]):
    now = sum(os.times()[:4])
    print(name, now - last[0], sep="=")
    last[0] = now

lap("python")
import torch
torch.set_num_threads(1)
lap("torch")
"""
FLOW = """
from phi.torch.flow import *
lap("phi.torch.flow")
import phi_hybrid as ph
from phi_hybrid.pde import navier_stokes as flow
lap("phi_hybrid")
state = flow.divergence_free_noise(flow.periodic_square(64), 1, wavenumber=4, speed=1.0, seed=0)
step = flow.navier_stokes_step(0.05)
lap("state")
"""
EAGER = """
with ph.linear_solve.linear_solves():
    step(state, 0.01)
lap("eager")
"""
CAPTURE = """
block = ph.capture(step, state, 0.01, check={check})
block(state, 0.01)
lap("first")
ph.capture(step, state, 0.01, check={check})
lap("second")
"""
COMPILE = """
block = ph.capture(step, state, 0.01, compile=True)
lap("capture")
tensors = block.flatten(state, 0.01)
with torch.no_grad():
    block.native(*tensors)
lap("step")
leaves = [t.clone().requires_grad_() for t in tensors]
torch.autograd.grad(sum((t**2).sum() for t in block.native(*leaves)), leaves)
lap("gradient")
"""
TRIVIAL = """
torch.compile(lambda x: 2 * x.sin())(torch.ones(100))
lap("function")
"""


def laps(code: str, processes: int = PROCESSES, **environment: str) -> dict[str, float]:
    """Seconds of each lap, the least of several fresh processes."""
    command = [sys.executable, "-W", "ignore", "-c", STOPWATCH + code]
    setting = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    runs = []
    for _ in range(processes):
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=setting)
        pairs = (line.split("=") for line in run.stdout.splitlines())
        runs.append({name: float(seconds) for name, seconds in pairs})
    return {name: min(run[name] for run in runs) for name in runs[0]}


def test_imports(note: Callable) -> None:
    found = laps(FLOW)
    for name in ("torch", "phi.torch.flow", "phi_hybrid"):
        note("import, each beyond those before", name, found[name])


@pytest.mark.parametrize("check", [False, True])
def test_capture(note: Callable, check: bool) -> None:
    way = "with check" if check else "without check"
    note("first step", "plain PhiFlow", laps(FLOW + EAGER)["eager"])
    found = laps(FLOW + CAPTURE.format(check=check))
    note("first step", f"captured {way}", found["first"])
    note("first step", f"second capture {way}", found["second"])


def test_compilation(note: Callable, tmp_path: Path) -> None:
    own, other = ({"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / name)} for name in ("flow", "function"))
    cold, warm = laps(FLOW + COMPILE, 1, **own), laps(FLOW + COMPILE, **own)
    laps(TRIVIAL, 1, **other)
    note("first compiled step, after capture", "empty cache", cold["step"])
    note("first compiled step, after capture", "warm cache", warm["step"])
    note(
        "first compiled step, after capture",
        "warm cache, torch.compile of 2·sin(x)",
        laps(TRIVIAL, **other)["function"],
    )
    note("first compiled gradient, after the step", "empty cache", cold["gradient"])
    note("first compiled gradient, after the step", "warm cache", warm["gradient"])
    note("whole process to the first compiled step", "empty cache", sum(cold.values()) - cold["gradient"])
    note("whole process to the first compiled step", "warm cache", sum(warm.values()) - warm["gradient"])
