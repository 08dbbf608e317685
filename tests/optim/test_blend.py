"""Updates of several rules, added up."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cases.small import noise
from cases.updates import SAMPLES, bent

import phi_hybrid as ph
from phi_hybrid.optim import Blend, Chain, Damped, GaussNewton, Gradient, LinearInverse, Link

noise64 = partial(noise, dtype=torch.float64)


def half(y: torch.Tensor) -> torch.Tensor:
    return (y**2).sum(1) / 2


def test_updates_are_added() -> None:
    x = noise64(SAMPLES, 3, seed=1)

    def update(rule: ph.optim.Rule) -> torch.Tensor:
        return Chain(Link(bent, rule), Link(half, Gradient())).update(x).update

    expected = 0.3 * update(Gradient()) + 2 * update(GaussNewton(0.1))
    torch.testing.assert_close(update(Blend((Gradient(), 0.3), (GaussNewton(0.1), 2.0))), expected)
    torch.testing.assert_close(update(Blend((Gradient(), 0.3))), update(Damped(Gradient(), 0.3)))


def test_it_descends_both_distances() -> None:
    """Of linear physics: the gradient of ½‖x − x*‖² + c/2·‖y − y*‖² by autograd."""
    matrix, truth = noise64(4, 4, seed=2) + 3 * torch.eye(4, dtype=torch.float64), noise64(SAMPLES, 4, seed=3)
    x, c = noise64(SAMPLES, 4, seed=4).requires_grad_(), 7.0
    rule = Blend((LinearInverse(lambda dy: torch.linalg.solve(matrix, dy.T).T), 1.0), (Gradient(), c))
    chain = Chain(Link(lambda x: x @ matrix.T, rule), Link(lambda y: half(y - truth @ matrix.T), Gradient()))
    loss = ((x - truth) ** 2).sum() / 2 + c / 2 * (((x - truth) @ matrix.T) ** 2).sum()
    torch.testing.assert_close(chain.update(x.detach()).update, -torch.autograd.grad(loss, x)[0])


@pytest.mark.parametrize(
    "parts", [(), (Gradient(),), ((Gradient(), 0.0),), ((Gradient(), float("nan")),), ((1.0, 2.0),)]
)
def test_wrong_parts_are_refused(parts: tuple) -> None:
    with pytest.raises(ph.StateError, match=r"Blend|weight"):
        Blend(*parts)
