"""Whole steps, rewritten for the compiler: the same numbers to rounding, and the form that is fast."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases.equations import EQUATIONS
from cases.graphs import operations
from cases.programs import programs
from cases.verdicts import judge
from hypothesis import HealthCheck, Phase, given, seed, settings
from phi.torch.flow import Field, Tensor, advect, math, spatial

import phi_hybrid as ph
from phi_hybrid.pde.navier_stokes import divergence_free_noise, navier_stokes_step, periodic_square
from phi_hybrid.tracing.passes import for_compiler


def rewritten_capture(step: Callable, *example: Any, **options: Any) -> ph.PhysicsBlock:
    """`capture`, with graphs as a compiler would see them."""
    block = ph.capture(step, *example, **options)
    for graph in block.graphs:
        graph.module = for_compiler(graph.module)
    return block


def flow_block(cells: int = 8, advection: Callable = advect.semi_lagrangian) -> tuple[ph.PhysicsBlock, Field]:
    start = divergence_free_noise(periodic_square(cells), 2, wavenumber=1, speed=1.0, seed=0)
    step = navier_stokes_step(0.1, advection=advection)
    return ph.capture(lambda u: step(u, 0.01), start), start


@pytest.mark.parametrize("count", [pytest.param(10, marks=pytest.mark.ci), pytest.param(300, marks=pytest.mark.slow)])
def test_random_steps(count: int) -> None:
    """Only the first ten of a seed are drawn afresh; `test_programs.py` compares more of them as they are captured."""

    @seed(0)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def check(program: Any) -> None:
        verdict = judge(program, rewritten_capture)
        assert verdict.kind in ("equal", "invalid", "refused"), verdict.detail

    check()


@pytest.mark.parametrize("name", EQUATIONS)
def test_equations(name: str) -> None:
    step, arguments = EQUATIONS[name]()
    plain, own = ph.capture(step, *arguments), rewritten_capture(step, *arguments)
    leaves = [t.requires_grad_(t.is_floating_point()) for t in plain.flatten(*arguments)]
    expected, found = plain.native(*leaves), own.native(*leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1.0, float(b.abs().max())))
    inputs = [t for t in leaves if t.requires_grad]
    gradients = [gradient_of(results, inputs) for results in (found, expected)]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * max(1.0, float(b.abs().max())))


def gradient_of(results: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    total = sum((t * t.conj()).real.sum() for t in results if t.requires_grad)
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves)]


@pytest.mark.parametrize("advection", [advect.semi_lagrangian, advect.mac_cormack])
def test_a_periodic_flow_is_pointwise(advection: Callable) -> None:
    """No vector is put together, nothing is padded: what is left are gathers, shifts and the solve."""
    block, _ = flow_block(advection=advection)
    found = operations(for_compiler(block.graphs[0].module))
    assert found["roll"] > 0 and found["periodic_sampler"] == (2 if advection is advect.semi_lagrangian else 4)
    if advection is advect.semi_lagrangian:
        assert found["stack"] == found["cat"] == found["slice"] == found["remainder"] == 0


def test_copies_know_their_shapes() -> None:
    block, start = flow_block()
    expected = for_compiler(block.graphs[0].module)
    copy = pickle.loads(pickle.dumps(block)).graphs[0].module
    assert operations(for_compiler(copy)) == operations(expected)
    for a, b in zip(for_compiler(copy)(*block.flatten(start)), expected(*block.flatten(start))):
        assert torch.equal(a, b)
    for node in copy.graph.nodes:
        node.meta.pop("val", None)
    assert for_compiler(copy) is copy  # nothing is known: it stays


def test_graphs_that_write_stay() -> None:
    def step(u: Tensor) -> Tensor:
        total = torch.zeros_like(u.native("x,y"))
        total += u.native("x,y")
        return math.wrap(total, spatial("x,y"))

    module = ph.capture(step, math.wrap(torch.rand(3, 4), spatial("x,y"))).graphs[0].module
    assert for_compiler(module) is module
