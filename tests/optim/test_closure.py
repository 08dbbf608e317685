"""Closures: the gradients that they leave, for torch optimizers."""

from __future__ import annotations

import pytest
import torch

import phi_hybrid as ph
from phi_hybrid.optim import Closure


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_gradients_that_come_transposed(line_search: str | None) -> None:
    """torch's L-BFGS views gradients as vectors; `backward` leaves them laid out like the parameters, and so do closures."""
    weights = torch.arange(6.0).reshape(2, 3).requires_grad_()
    closure = Closure(lambda: weights.T.contiguous().T * 2, lambda y: ((y - 1) ** 2).sum(), [weights])
    (transposed,) = torch.autograd.grad(closure.loss(closure.outputs()), weights)
    assert not transposed.is_contiguous()
    closure()
    torch.testing.assert_close(weights.grad, transposed, rtol=0, atol=0)
    optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn=line_search)
    optimizer.step(closure)
    torch.testing.assert_close(weights.detach(), torch.full((2, 3), 0.5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["Adam", "SGD", "LBFGS"])
def test_torch_optimizers_take_the_same_closure(name: str) -> None:
    """Like a loop that clears gradients, computes the loss and goes backward."""
    nets = [torch.nn.Linear(3, 2).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x, target = torch.rand(5, 3, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    own, usual = (getattr(torch.optim, name)(net.parameters(), 0.1) for net in nets)

    def backward() -> torch.Tensor:
        usual.zero_grad()
        value = ((nets[1](x) - target) ** 2).mean()
        value.backward()
        return value

    closure = Closure(lambda: nets[0](x), lambda y: ((y - target) ** 2).mean(), nets[0].parameters())
    for _ in range(3):
        own.step(closure)
        usual.step(backward)
    torch.testing.assert_close(nets[0].weight, nets[1].weight, rtol=0, atol=1e-15)


def test_a_closure_without_parameters_gives_no_gradient() -> None:
    net = torch.nn.Linear(3, 2)
    with pytest.raises(ph.StateError, match="parameters"):
        torch.optim.Adam(net.parameters()).step(Closure(lambda: net(torch.rand(4, 3)), lambda y: y.sum()))
