"""What optimizers are given."""

from __future__ import annotations

import pytest
import torch

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
