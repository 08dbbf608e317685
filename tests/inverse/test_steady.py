"""Steady states against linear algebra, their gradients against float64 finite differences."""

from __future__ import annotations

import weakref

import pytest
import torch

from phi_hybrid.errors import SolveError
from phi_hybrid.inverse.steady import fixed_point, steady_state


def contraction(size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = 0.95 * matrix / torch.linalg.matrix_norm(matrix, 2)
    return matrix, torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("memory", [0, 5, 20])
def test_fixed_point_of_a_linear_map(memory: int) -> None:
    matrix, offset = contraction()
    found, _ = fixed_point(lambda x: matrix @ x + offset, torch.zeros_like(offset), 1e-11, 2000, memory)
    expected = torch.linalg.solve(torch.eye(len(offset), dtype=torch.float64) - matrix, offset)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("memory", [0, 3])
def test_no_more_states_are_kept_than_are_combined(memory: int) -> None:
    """And the last two of the iteration itself."""
    matrix, offset = contraction()
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def step(x: torch.Tensor) -> torch.Tensor:
        nonlocal most
        found = matrix @ x + offset
        alive.add(found)
        most = max(most, len(alive))
        return found

    with pytest.raises(SolveError, match="after 20 steps"):
        fixed_point(step, torch.zeros_like(offset), 1e-15, 20, memory)
    assert most <= memory + 3


def test_no_convergence_is_an_error() -> None:
    with pytest.raises(SolveError, match="after 50 steps"):
        fixed_point(lambda x: x + 1, torch.zeros(3), 1e-6, 50, 0)


def test_gradient_of_a_nonlinear_steady_state() -> None:
    matrix, offset = contraction(6)

    def steady(gain: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        def step(a: torch.Tensor, b: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = torch.tanh(matrix @ (p * torch.cat([a, b.reshape(-1)])) + q)
            return x[:2], x[2:].reshape(2, 2)

        start = (torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))
        return torch.cat([part.reshape(-1) for part in steady_state(step, start, (gain, shift), 1e-13)])

    gain = torch.full((6,), 0.9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(steady, (gain, offset.clone().requires_grad_()), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_tolerance_is_reached_in_both_precisions(dtype: torch.dtype) -> None:
    """Also where nothing but rounding is left of the differences: u = ½·roll(u) + p, so that dΣu/dp = 2."""
    p = torch.linspace(0, 1, 50, dtype=dtype, requires_grad=True)
    (found,) = steady_state(lambda u, p: (0.5 * torch.roll(u, 1) + p,), (torch.zeros(50, dtype=dtype),), (p,))
    found.sum().backward()
    tolerance = dict(rtol=1e-5 if dtype == torch.float32 else 1e-7, atol=0)
    torch.testing.assert_close(found, 0.5 * torch.roll(found, 1) + p, **tolerance)
    torch.testing.assert_close(p.grad, torch.full_like(p, 2.0), **tolerance)


def test_identical_differences_are_no_end() -> None:
    """A map that jumps back and forth has differences whose Gram matrix is singular."""
    with pytest.raises(SolveError, match="after 9 steps"):
        fixed_point(lambda x: -x, torch.ones(2, dtype=torch.float64), 1e-8, 9, memory=0)
    found, _ = fixed_point(lambda x: 0 * x + 3, torch.ones(2), 1e-6)
    assert torch.equal(found, torch.full((2,), 3.0))


def test_inputs_that_are_unused_or_whole_numbers() -> None:
    one = torch.ones(1, dtype=torch.float64)
    p, unused = one.clone().requires_grad_(), one.clone().requires_grad_()
    number = torch.tensor([2])
    (found,) = steady_state(lambda u, p, q, n: (0.5 * u + p / n,), (0 * one,), (p, unused, number))
    found.sum().backward()
    assert float(found) == pytest.approx(1.0, rel=1e-7) and float(p.grad) == pytest.approx(1.0, rel=1e-7)
    assert unused.grad is None or not unused.grad.any()
    (found,) = steady_state(lambda u, p: (p**2,), (0 * one,), (p,))  # of no state at all
    (gradient,) = torch.autograd.grad(found.sum(), p)
    assert float(gradient) == pytest.approx(2.0)
