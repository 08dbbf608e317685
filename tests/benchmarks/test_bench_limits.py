"""How near a compiled step comes to what it cannot do without, and the memory of its gradient, kept or computed again.

    pytest tests/benchmarks/test_bench_limits.py -n 0

The periodic flow of `test_bench_scaling`, float32, processor time of one thread. No step that projects by FFT is faster
than its FFTs, one forth and one back of one component, and a copy of the state, which is read and written once at
least. Memory is what autograd keeps for the backward pass; with checkpoints, the states between segments, which no hook
sees, and one segment that is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from benchmarks.test_bench_scaling import WAYS, bound
from cases.timed import saved_bytes

from phi_hybrid.steps import BoundStep
from phi_hybrid.training.gradient import Checkpointed, Full, GradientMode, Record

Tensors = tuple[torch.Tensor, ...]
SQUARES, BATCHES = (64, 128, 256), (1, 8)
UNROLLED = (4, 16, 64)
FULL = Full()


@pytest.mark.parametrize("size", BATCHES)
@pytest.mark.parametrize("cells", SQUARES)
def test_step(by_turns: Callable, cells: int, size: int) -> None:
    step, state = bound(cells, 2, size, "inductor")
    component, copies = state[0], [torch.empty_like(t) for t in state]
    axes = (component.dim() - 2, component.dim() - 1)
    assert component.shape[-2:] == (cells, cells)

    def ffts() -> torch.Tensor:
        return torch.fft.irfftn(torch.fft.rfftn(component, dim=axes), (cells, cells), axes)

    def copy() -> None:
        for own, t in zip(copies, state):
            own.copy_(t)

    ways = {"step": lambda: step.native(*state), "FFTs": ffts, "copy": copy}
    with torch.no_grad():
        by_turns(f"step {cells}², batch {size}", ways, rounds=200 if cells * cells * size < 10**5 else 40)


def kept(step: BoundStep, steps: int, state: Tensors) -> Tensors:
    """Four steps are one program if compiled."""
    return step.unroll(steps, *state)[-1]


def one_by_one(step: BoundStep, steps: int, state: Tensors, mode: GradientMode = FULL) -> Tensors:
    return mode.chain(lambda _, u: Record(step.native(*u)), state, steps)[-1].state


def checkpointed(step: BoundStep, steps: int, state: Tensors) -> Tensors:
    return one_by_one(step, steps, state, Checkpointed())


def gradient(unroll: Callable[..., Tensors], steps: int, cells: int, way: str) -> Callable[[], Tensors]:
    """Of Σu² after so many steps with respect to the first state."""
    step, state = bound(cells, 2, 1, way)

    def run() -> Tensors:
        leaves = tuple(t.clone().requires_grad_() for t in state)
        return torch.autograd.grad(sum((t**2).sum() for t in unroll(step, steps, leaves)), leaves)

    return run


@pytest.mark.parametrize("steps", UNROLLED)
@pytest.mark.parametrize("cells", SQUARES[:2])
@pytest.mark.parametrize("way", WAYS)
def test_memory_of_gradients(note_memory: Callable, way: str, cells: int, steps: int) -> None:
    segment = math.ceil(math.sqrt(steps))
    full, again = gradient(kept, steps, cells, way), gradient(checkpointed, steps, cells, way)
    for a, b in zip(full(), again()):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))
    case = f"gradient of {steps} steps {cells}², {way}"
    note_memory(case, "kept", saved_bytes(full) / 2**20)
    between = (math.ceil(steps / segment) - 1) * sum(t.nbytes for t in bound(cells, 2, 1, way)[1])
    once = saved_bytes(again) + saved_bytes(gradient(one_by_one, segment, cells, way))
    note_memory(case, "checkpointed", (once + between) / 2**20)
