"""What surrounds a call: autocast, inference mode, default precision, seeds, threads, processes, memory of results."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases.small import same
from phi.torch.flow import PERIODIC, CenteredGrid, Field, Noise, Tensor, diffuse, field, math, spatial, wrap

import phi_hybrid as ph
from phi_hybrid.errors import CaptureError

U = CenteredGrid(Noise(), PERIODIC, x=16)
MATRIX = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))


def product(u: Field) -> Field:
    return u.with_values(wrap(u.values.native("x") @ MATRIX, spatial("x")))


@pytest.mark.parametrize("first", [True, False])
def test_autocast_holds_where_it_is_on_and_only_there(first: bool) -> None:
    block = ph.capture(product)
    for low in (first, not first):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            assert same(block(U), product(U))
    assert not same(block(U), block(U) + 1)


def test_inference_mode_and_no_grad() -> None:
    for mode in (torch.inference_mode, torch.no_grad):
        block = ph.capture(product)
        with mode():
            inside = block(U)
        (x,) = block.flatten(U)
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(block.native(x)[0].sum(), x)
        torch.testing.assert_close(gradient, MATRIX.sum(1))
        assert same(inside, product(U))


def test_default_precision_is_that_of_the_call() -> None:
    def step(u: Field) -> Field:
        return u.with_values(wrap(u.values.native("x") + torch.full((16,), 0.1), spatial("x")))

    block = ph.capture(step)
    assert same(block(U), step(U))
    torch.set_default_dtype(torch.float64)
    try:
        assert same(block(U), step(U)) and block(U).values.dtype.precision == 64
    finally:
        torch.set_default_dtype(torch.float32)


def test_steps_that_seed_are_refused() -> None:
    def seeds(u: Field) -> Field:
        torch.manual_seed(0)
        return u + math.random_normal(spatial(x=16))

    def seeds_for_a_while(u: Field) -> Field:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return u + math.random_normal(spatial(x=16))

    for step in (seeds, seeds_for_a_while):
        with pytest.raises(CaptureError, match="seed"):
            ph.capture(step, U)


def run_in_threads(*functions: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors, errors


def test_threads_capture_one_after_the_other_and_leave_others_alone() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return 7 * gradient

    done = threading.Event()

    def captures() -> None:
        for n in range(4):
            block = ph.capture(lambda u, n=n: field.laplace(u) * n, U)
            assert same(block(U), field.laplace(U) * n)

    def first() -> None:
        captures()
        done.set()

    def other_work() -> None:
        while not done.is_set():
            x = torch.ones(3, requires_grad=True)
            (gradient,) = torch.autograd.grad(Double.apply(x).sum(), x)
            assert torch.equal(gradient, torch.full((3,), 7.0))

    apply = torch.autograd.Function.__dict__["apply"]
    run_in_threads(first, captures, other_work)
    assert torch.autograd.Function.__dict__["apply"] is apply


def test_results_own_their_memory() -> None:
    """Writing into a result changes neither later calls nor the arguments nor another result."""

    def step(u: Field) -> tuple[Field, Field, Tensor, Tensor, Field]:
        double = u * 2
        return double, u.with_values(math.ones(spatial(x=16))), double.values, double.values.x[:8], u

    block = ph.capture(step, U)
    expected = step(U)
    for number in range(5):
        (x,) = block.flatten(U)
        results = block.native(x.clone())
        results[number].fill_(5.0)
        others = [i for i in range(5) if i != number]
        fresh = block.native(x.clone())
        assert all(torch.equal(results[i], fresh[i]) for i in others)
    assert all(same(a, b) for a, b in zip(block(U), expected))


def _in_child(block: Callable, u: Field, queue: Any) -> None:
    torch.set_num_threads(1)
    known, new = block(u), block(u, 0.3)  # a graph of the parent, and one captured here
    queue.put((known.values.numpy("x"), new.values.numpy("x")))


def spread(u: Field, amount: float = 0.1) -> Field:
    return diffuse.explicit(u, amount, 0.1)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_blocks_work_in_forked_processes() -> None:
    """Those in spawned ones are pickled before, see test_distributed.py."""
    u = U
    block = ph.capture(spread, u)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(block, u, queue))
    child.start()
    found = queue.get(timeout=100)
    child.join()
    for own, expected in zip(found, (spread(u), spread(u, 0.3))):
        assert (own == expected.values.numpy("x")).all()
