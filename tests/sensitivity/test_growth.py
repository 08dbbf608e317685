"""Growth of gradients through linear steps, against powers of their matrices."""

from __future__ import annotations

import math

import pytest
import torch

from phi_hybrid.sensitivity.growth import EXPLODING, NOT_FINITE, STEADY, VANISHING, Curve, Probes, growth

A = 1.1 * torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
EYE = torch.eye(4, dtype=torch.float64)


def test_norms_are_those_of_products_of_jacobians() -> None:
    states = [torch.ones(4, dtype=torch.float64) for _ in range(6)]
    steps = [A + 0.1 * n * EYE for n in range(5)]
    found = growth(lambda n: lambda x: steps[n] @ x, states, Probes(EYE, EYE), True)
    product = torch.linalg.multi_dot(steps[::-1])
    torch.testing.assert_close(found.forward.norms[:, -1], product.norm(dim=0))
    torch.testing.assert_close(found.reverse.norms[:, -1], product.norm(dim=1))
    assert found.not_finite is None and found.finite_state


def curve(*norms: float) -> Curve:
    return Curve(torch.tensor([norms], dtype=torch.float64))


def test_rate_and_verdict() -> None:
    assert curve(*(1.1**n for n in range(9))).rate == pytest.approx(1.1)
    assert curve(1, 100, 10, 10, 10).rate == pytest.approx(1)  # the second half tells
    assert [curve(1, g).verdict for g in (0.5, 2e3, 1e-4, math.nan)] == [STEADY, EXPLODING, VANISHING, NOT_FINITE]
    assert curve(1, 0, 0).rate == 0 and curve(1, 0).verdict == VANISHING
    assert curve(1, 10, 100, 1e4).horizon == 3 and curve(1, 1).horizon is None


def test_digits_are_extrapolated_by_the_rate() -> None:
    assert curve(*(2.0**n for n in range(11))).digits_lost_after == pytest.approx(math.log2(1 / 1.2e-7))
    assert curve(*(0.5**n for n in range(11))).digits_lost_after == pytest.approx(math.log2(1 / 1.2e-7))
    assert curve(1, 1, 1).digits_lost_after == math.inf
    assert curve(1, 1e3, 1e9).digits_lost_after == 2
