"""Finite differences know their own error; derivatives are known in closed form."""

from __future__ import annotations

import pytest
import torch

from phi_hybrid.sensitivity.differences import SIZES, agreement, noise, pull_back, slope

X = torch.linspace(-2, 2, 9, dtype=torch.float64) + 0.05
D = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
W = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_slopes_lie_within_their_bounds() -> None:
    found = slope(lambda x: torch.exp(torch.sin(3 * x)), X, D)
    exact = 3 * torch.cos(3 * X) * torch.exp(torch.sin(3 * X)) * D
    assert ((found.value - exact).abs() <= found.error).all() and found.error.max() < 1e-6
    assert not found.kinked.any()


def test_errors_of_differences_fall_like_the_square_of_the_step() -> None:
    curve = agreement(torch.sin, X, D, W, forward=True).curve
    assert curve[0] / curve[1] == pytest.approx(100, rel=0.1) and SIZES[0] / SIZES[1] == pytest.approx(10)


@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-7, 1e-5, 3e-3])
def test_a_kink_nearby_is_no_wrong_gradient(distance: float) -> None:
    """|x − c| with c at any distance from the point: the gradient is one of the two slopes."""
    found = agreement(lambda x: (x - X - distance).abs(), X, torch.ones_like(X), W, forward=True)
    assert not found.wrong_reverse and not found.wrong_forward


@pytest.mark.parametrize("distance", [1e-12, 1e-6, 1e-4, 3e-3])
def test_a_jump_nearby_is_no_wrong_gradient(distance: float) -> None:
    found = agreement(lambda x: x**2 + (x > X + distance), X, torch.ones_like(X), W, forward=True)
    assert not found.wrong_reverse and not found.wrong_forward


@pytest.mark.parametrize("factor", [1 + 1e-4, 0.5, 0.0])
def test_wrong_factors_are_seen(factor: float) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = torch.sin(x)
        return factor * y + (1 - factor) * y.detach()

    found = agreement(f, X, D, W, forward=True)
    assert found.wrong_reverse and found.wrong_forward
    assert found.forward == pytest.approx(abs(1 - factor), rel=1e-3)


def test_noise_is_estimated_and_forgiven() -> None:
    """Noise of 1e-8, as of iterations that stop early, is no wrong gradient."""
    generator = torch.Generator().manual_seed(2)

    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + 1e-8 * torch.randn(9, generator=generator, dtype=torch.float64)

    assert noise(f, X, D).mean() == pytest.approx(1e-8, rel=0.5)
    found = agreement(f, X, D, W, forward=False)
    assert not found.wrong_reverse and found.reverse < 1e-4


def test_noise_of_exact_functions_is_rounding() -> None:
    assert noise(torch.sin, X, D).max() < 1e-14


def test_pull_back_of_several_cotangents() -> None:
    rows = pull_back(lambda x: x**2, X, torch.stack([W, 2 * W]))
    torch.testing.assert_close(rows, torch.stack([2 * X * W, 4 * X * W]))
    assert not pull_back(lambda x: torch.ones(9, dtype=x.dtype), X, W[None]).any()
