"""Chains of pieces against autograd, loops by hand, and published trajectories."""

from __future__ import annotations

import pytest
import torch
from cases.hig import Task, network
from cases.small import faces, forced_step, noise
from cases.updates import captured, close, square

import phi_hybrid as ph
from phi_hybrid.optim import HIG, Closure
from phi_hybrid.optim.chain import Chain, Link, absolute
from phi_hybrid.optim.inverse import Inverse, LinearInverse
from phi_hybrid.optim.newton import Newton, SeparableNewton
from phi_hybrid.optim.rules import Damped, GaussNewton, Gradient, HalfInverse

DOUBLE = torch.float64

# --- the toy of Holl et al. 2022: y = (x₀, x₁²), L = ‖y‖² ---


def toy(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, 0], x[:, 1] ** 2], 1)


def toy_inverse(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([y[:, 0], torch.sign(x[:, 1]) * torch.sqrt(y[:, 1])], 1)


@pytest.mark.parametrize(
    "chain, published",
    [
        (Chain(Link(toy, Gradient()), Link(square, Damped(Gradient(), 0.01))), (2.4512, 0.9617)),
        (Chain(Link(lambda x: square(toy(x)), Damped(Newton(), 1 / 3))), (0.0520, 0.9238)),
        (Chain(Link(toy, Inverse(toy_inverse)), Link(square, Damped(Newton(), 0.3))), (0.0847, 0.5042)),
    ],
    ids=["gradient descent", "Newton", "physical gradients"],
)
def test_toy_trajectories_are_those_published(chain: Chain, published: tuple[float, float]) -> None:
    x = torch.full((2, 2), 3.0, dtype=DOUBLE)  # two samples, which must not know of each other
    for _ in range(10):
        x = x + chain.update(x).update
    expected = torch.tensor([published, published], dtype=DOUBLE)
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=0)


# --- all-Gradient chains are backpropagation ---


def field_network(seed: int) -> torch.nn.Module:
    """On a line of cells, `(sample, x, vector)`."""
    torch.manual_seed(seed)
    layers = torch.nn.Flatten(), torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, 6)
    return torch.nn.Sequential(*layers, torch.nn.Unflatten(1, (6, 1))).double()


def test_gradient_through_a_captured_step_between_two_networks() -> None:
    """Gradients by the weights of both networks, and by the input, are those of autograd."""
    block, u = captured()
    first, second = field_network(0), field_network(1)
    chain = Chain(Link(block.native, Gradient()), Link(second, Gradient()), Link(square, Gradient()))
    x = first(u)
    step = chain.update(x)
    loss = square(second(*block.native(x)))
    expected = torch.autograd.grad(loss.mean(), [*first.parameters(), *second.parameters()], retain_graph=True)
    found = [
        *torch.autograd.grad(chain.proxy(first(u)), list(first.parameters())),
        *torch.autograd.grad(step.proxy(second(*step.inputs[1]), link=2), list(second.parameters())),
    ]
    for a, b in zip(found, expected, strict=True):
        assert close(a, b, 1e-12)
    assert torch.equal(step.loss, loss)
    (by_input,) = torch.autograd.grad(loss.sum(), x)
    assert close(-step.update, by_input, 1e-12)
    assert all(p.grad is None for p in second.parameters())


def test_states_of_several_tensors() -> None:
    """Faces of a staggered grid with a force beside it, which is no part of the chain."""
    block = ph.capture(forced_step)
    u, f = (faces("closed", n, DOUBLE, b=2) for n in (0, 1))
    tensors = block.flatten(u, f)
    state, force = tensors[:2], tensors[2:]

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return square(a) + 3 * square(b)

    chain = Chain(Link(lambda *u: block.native(*u, *force), Gradient()), Link(loss, Gradient()))
    leaves = [t.clone().requires_grad_() for t in state]
    expected = torch.autograd.grad(loss(*block.native(*leaves, *force)).sum(), leaves)
    update = chain.update(state).update
    assert isinstance(update, tuple)
    for dx, g, t in zip(update, expected, state, strict=True):
        assert dx.shape == t.shape and close(-dx, g, 1e-12)
    proxied = torch.autograd.grad(chain.proxy(leaves), leaves)
    for g, expected_gradient in zip(proxied, expected):
        assert close(2 * g, expected_gradient, 1e-12)


def test_complex_states() -> None:
    z = torch.view_as_complex(noise(3, 4, 2, dtype=DOUBLE).contiguous()).requires_grad_()

    def rotated(z: torch.Tensor) -> torch.Tensor:
        return (1 + 2j) * z**2

    chain = Chain(Link(rotated, Gradient()), Link(lambda y: (y.abs() ** 4).sum(1), Gradient()))
    (expected,) = torch.autograd.grad((rotated(z).abs() ** 4).sum(), z)
    assert close(torch.view_as_real(-chain.update(z).update), torch.view_as_real(expected), 1e-12)
    (proxied,) = torch.autograd.grad(chain.proxy(z), z)
    assert close(torch.view_as_real(3 * proxied), torch.view_as_real(expected), 1e-12)


# --- physical gradients ---


def test_physical_gradients_do_not_depend_on_the_scale_of_the_output() -> None:
    matrix, x, goal = noise(4, 4, dtype=DOUBLE), noise(3, 4, seed=1, dtype=DOUBLE), noise(3, 4, seed=2, dtype=DOUBLE)

    def chain(scale: float, loss_scale: float, rule: object = None) -> Chain:
        def inverse(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.solve(matrix, (y / scale).T).T

        return Chain(
            Link(lambda x: scale * (x @ matrix.T), rule or Inverse(inverse)),
            Link(lambda y: loss_scale * square(y - scale * goal), Gradient() if rule else SeparableNewton()),
        )

    usual = chain(1.0, 1.0).update(x).update
    assert close(usual, torch.linalg.solve(matrix, goal.T).T - x)
    for loss_scale in (1.0, 1e-12):
        assert close(chain(1e6, loss_scale).update(x).update, usual, 1e-8)
    gradients = [chain(scale, 1.0, Gradient()).update(x).update for scale in (1.0, 1e6)]
    assert close(gradients[1], 1e12 * gradients[0])  # which is what it is about


def test_physical_gradients_train_a_network_where_gradients_are_badly_scaled() -> None:
    """y = x·(1, 1e-3): plain SGD towards the proxy reaches in both components what they should be."""
    weights, inputs = torch.tensor([1.0, 1e-3], dtype=DOUBLE), noise(8, 3, dtype=DOUBLE)
    goal = (inputs @ noise(3, 2, seed=1, dtype=DOUBLE)) * weights
    physics = Link(lambda x: x * weights, LinearInverse(lambda dy: dy / weights))
    chain = Chain(physics, Link(lambda y: square(y - goal), SeparableNewton()))
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2).double()
    optimizer = torch.optim.SGD(net.parameters(), 0.3)
    for _ in range(150):
        optimizer.zero_grad()
        chain.proxy(net(inputs)).backward()
        optimizer.step()
    assert float((net(inputs) - goal / weights).detach().abs().max()) < 1e-3


# --- half-inverse gradients as chains of one line ---


def moved(task: Task, closure: Closure) -> torch.Tensor:
    before = task.weights().copy()
    HIG(task.net, progress=False).step(closure)
    return torch.from_numpy(task.weights() - before)


def test_half_inverse_gradients_are_a_chain() -> None:
    direct, chained = Task(), Task()
    chain = Chain(Link(lambda y: ((y - chained.target) ** 2).sum(1), Gradient()))
    assert close(moved(chained, Closure(chained.outputs, chain.proxy)), moved(direct, direct.closure))


def test_rules_may_differ_from_link_to_link() -> None:
    """Half-inverse of the physics, Gauss–Newton of a network: the product of the matrices by hand."""
    net, x = network(3, 4), noise(2, 3, dtype=DOUBLE)
    last, goal = noise(4, 4, seed=1, dtype=DOUBLE), noise(2, 4, seed=2, dtype=DOUBLE)
    loss = Link(lambda y: square(y - goal) / 2, Gradient())
    update = Chain(Link(net, GaussNewton()), Link(lambda y: y @ last.T, HalfInverse(1.0)), loss).update(x).update
    dy = torch.linalg.solve(last, (goal - net(x) @ last.T).T).T
    jacobian = torch.func.vmap(torch.func.jacrev(net))(x)
    assert close(update, torch.einsum("sio,so->si", torch.linalg.pinv(jacobian), dy))


# --- precision and distance ---


def test_physics_in_double_precision_under_a_single_precision_network() -> None:
    block, u = captured()
    seen = []

    def physics(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.dtype)
        return block.native(x)[0]

    links = Link(physics, GaussNewton()), Link(square, Damped(SeparableNewton(), 1e-6))
    x = u.float()
    update = Chain(*links, precision=DOUBLE).update(x).update
    exact = Chain(*links).update(x.double()).update
    assert set(seen) == {DOUBLE} and update.dtype == torch.float32
    assert torch.equal(update, exact.float())


def test_small_updates_survive_next_to_large_states() -> None:
    """x + Δx is x in single precision, and still the gradient of the proxy is −Δx/b."""
    x = torch.full((2, 3), 1e6, requires_grad=True)
    chain = Chain(Link(lambda x: 1e-3 * x.sum(1), Gradient()), precision=DOUBLE)
    assert torch.equal(x + chain.update(x).update, x)
    (gradient,) = torch.autograd.grad(chain.proxy(x), x)
    assert torch.equal(gradient, torch.full((2, 3), 0.5e-3))


def test_absolute_distance() -> None:
    x = noise(4, 3, dtype=DOUBLE).requires_grad_()
    chain = Chain(Link(square, Gradient()), distance=absolute)
    proxy = chain.proxy(x)
    assert float(proxy.detach()) == pytest.approx(float((2 * x).detach().abs().sum(1).mean()))
    (gradient,) = torch.autograd.grad(proxy, x)
    assert torch.equal(gradient, torch.sign(x) / 4)


# --- what goes wrong ---


def test_errors_name_the_link() -> None:
    x = torch.ones(2, 3, dtype=DOUBLE)

    def blown_up(x: torch.Tensor) -> torch.Tensor:
        return x / 0

    with pytest.raises(ph.NonFiniteError, match=r"output of link 1 of 2 \(.*blown_up with Gradient\(\)\) holds 6"):
        Chain(Link(blown_up, Gradient()), Link(square, Gradient())).update(x)
    with pytest.raises(ph.NonFiniteError, match=r"Δx of link 1 of 2 \(.*<lambda> with Gradient"):
        Chain(Link(lambda x: torch.sqrt(x - 1), Gradient()), Link(lambda y: y.sum(1), Gradient())).update(x)
    with pytest.raises(ph.NonFiniteError, match="input of the chain"):
        Chain(Link(square, Gradient())).update(x / 0)
    with pytest.raises(ph.NonFiniteError, match="torch.float32"):  # too large for the precision of the network
        Chain(Link(lambda x: 1e60 * x.sum(1), Gradient()), precision=DOUBLE).update(x.float())


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x: x, "per sample"),
        (lambda x: (x**2).sum(), "first axis"),
        (lambda x: (x**2).sum(0), "first axis"),
        (lambda x: (x.detach() ** 2).sum(1), "records no gradient"),
    ],
)
def test_losses_that_are_none(function: object, message: str) -> None:
    with pytest.raises(ph.StateError, match=message):
        Chain(Link(function, Gradient())).update(torch.ones(2, 3))


@pytest.mark.parametrize("change", [lambda dx: dx[:, :1], lambda dx: dx[:1], lambda dx: dx.float(), lambda dx: 1j * dx])
def test_rules_that_return_something_unlike_x(change: object) -> None:
    """It would be broadcast or lose digits."""

    class Wrong:
        def __call__(self, function: object, x: tuple) -> tuple:
            return (function(*x)[0].detach(),), lambda dy: (change(x[0]),)

    with pytest.raises(ph.StateError, match=r"Δx of link 1 of 2 .*expected \(2, 3\) torch.float64"):
        Chain(Link(lambda x: x, Wrong()), Link(square, Gradient())).update(torch.ones(2, 3, dtype=DOUBLE))


def test_a_step_is_for_the_samples_it_was_made_for() -> None:
    step = Chain(Link(lambda x: 2 * x, Gradient()), Link(square, Gradient())).update(torch.ones(1, 2))
    for link in (0, 1):
        assert float(step.proxy(step.inputs[link], link)) == float((step.updates[link][0] ** 2).sum() / 2)
        with pytest.raises(ph.StateError, match=r"\[\(5, 2\)\], but this step was made for \[\(1, 2\)\]"):
            step.proxy(torch.ones(5, 2), link)


@pytest.mark.parametrize("x", [torch.ones(0, 3), torch.ones(2, 3, dtype=torch.int64)])
def test_inputs_without_samples_or_derivatives(x: torch.Tensor) -> None:
    with pytest.raises(ph.StateError, match=r"\[\(., 3\)\]"):
        Chain(Link(square, Gradient())).update(x)


def test_chains_that_are_none() -> None:
    with pytest.raises(ph.StateError, match="expected Chain"):
        Chain()
    with pytest.raises(ph.StateError, match="expected Chain"):
        Chain(square)
    with pytest.raises(ph.StateError, match="rule = .*expected Link"):
        Link(square, Gradient)
    with pytest.raises(ph.StateError, match="precision = torch.int64"):
        Chain(Link(square, Gradient()), precision=torch.int64)
