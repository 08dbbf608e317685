"""Closures: the gradients that they leave, for torch optimizers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import phi_hybrid as ph
from phi_hybrid.optim import HIG, Closure, LevenbergMarquardt


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


def test_networks_and_losses_that_have_nothing_to_do_with_one_another() -> None:
    """The three ways to train nothing."""
    net, copied, x = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2), torch.ones(4, 3)
    of_copy = Closure(lambda: copied(x), lambda y: y.square().mean(), list(net.parameters()))
    with pytest.raises(ph.StateError, match="does not depend on the parameters"):
        torch.optim.SGD(net.parameters(), 0.1).step(of_copy)
    with pytest.raises(ph.StateError, match="do not depend on the trained parameters: .* such as a copy"):
        HIG(net, progress=False).step(of_copy)
    deaf = Closure(lambda: net(x), lambda y: net(x).square().mean())
    with pytest.raises(ph.StateError, match="does not depend on its argument"):
        HIG(net, progress=False).step(deaf)
    with pytest.raises(ph.StateError, match="parameters = .*tensors in a list"):
        Closure(lambda: net(x), lambda y: y.square().mean(), net.weight)


@pytest.mark.parametrize(
    "outputs, expected",
    [
        (lambda y: None, "NoneType where torch tensors"),
        (lambda y: {"velocity": y}, r"dict where torch tensors .* tuple\(y.values\(\)\)"),
        (lambda y: (y, "velocity"), r"\['Tensor', 'str'\] where torch tensors"),
        (lambda y: (y, y[:2]), r"shapes \[\(4, 2\), \(2, 2\)\]: the first axis"),
        (lambda y: y.sum(), r"shapes \[\(\)\]: the first axis"),
    ],
)
def test_outputs_that_are_no_samples(outputs: Callable, expected: str) -> None:
    net, x = torch.nn.Linear(3, 2), torch.ones(4, 3)
    with pytest.raises(ph.StateError, match=expected):
        HIG(net, progress=False).step(Closure(lambda: outputs(net(x)), lambda y: y.sum()))


@pytest.mark.parametrize(
    "loss, expected",
    [
        (lambda y: y.square().mean(1), r"of shape \(4,\), expected one real number .* mean over the samples"),
        (lambda y: 0.0, "of type float"),
        (lambda y: y.sum() * 1j, "expected one real number"),
    ],
)
@pytest.mark.parametrize(
    "make", [lambda net: HIG(net, progress=False), lambda net: torch.optim.SGD(net.parameters(), 0.1)]
)
def test_losses_that_are_no_number(make: Callable, loss: Callable, expected: str) -> None:
    net, x = torch.nn.Linear(3, 2), torch.ones(4, 3)
    with pytest.raises(ph.StateError, match=expected):
        make(net).step(Closure(lambda: net(x), loss, list(net.parameters())))


@pytest.mark.parametrize("make", [lambda net, lr: HIG(net, lr, 1.0, progress=False),
                                  lambda net, lr: LevenbergMarquardt(net, lr, 1e-6, progress=False)])  # fmt: skip
def test_a_whole_gauss_newton_step(make: Callable) -> None:
    """Of ½·Σ|y − y*|² at the default rate, of Σ|y − y*|² at half of it: the linear least-squares solution."""
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(8, n, generator=generator).double() for n in (3, 2))
    ones = torch.cat([x, torch.ones(8, 1, dtype=x.dtype)], 1)
    least = (ones @ torch.linalg.lstsq(ones, target).solution - target).square().sum(1).mean()
    for factor, lr in ((0.5, 1.0), (1.0, 0.5)):
        net = torch.nn.Linear(3, 2).double()
        closure = Closure(lambda net=net: net(x), lambda y, f=factor: f * (y - target).square().sum(1).mean())
        make(net, lr).step(closure)
        assert float(closure.loss(closure.outputs())) == pytest.approx(factor * float(least), rel=1e-9)
