"""Newton's rule against finite differences and eigenvectors of NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases.small import noise
from cases.updates import bent, captured, close, square

import phi_hybrid as ph
from phi_hybrid.optim.chain import Chain, Link
from phi_hybrid.optim.newton import Clipped, Dropped, Newton, SeparableNewton
from phi_hybrid.optim.rules import Gradient

DOUBLE = torch.float64


def slope(function: Callable, x: np.ndarray, dy: np.ndarray, h: float = 1e-4) -> tuple[np.ndarray, np.ndarray]:
    """∇φ and H of φ = −⟨Δy, f⟩ for one sample, by central differences."""
    count, shape = x.size, x.shape

    def phi(v: np.ndarray) -> float:
        y = function(torch.from_numpy(v.reshape(1, *shape)))
        return -float((y if isinstance(y, torch.Tensor) else y[0]).numpy().ravel() @ dy.ravel())

    e, x = h * np.eye(count), x.ravel()
    gradient = np.array([(phi(x + a) - phi(x - a)) / (2 * h) for a in e])
    hessian = [
        [(phi(x + a + b) - phi(x + a - b) - phi(x - a + b) + phi(x - a - b)) / (4 * h * h) for b in e] for a in e
    ]
    return gradient, np.array(hessian)


def by_hand(gradient: np.ndarray, hessian: np.ndarray, rcond: float = 1e-6, floor: float = 0) -> np.ndarray:
    values, vectors = np.linalg.eigh(hessian)
    size = np.maximum(np.maximum(abs(values), floor), rcond * abs(values).max())
    return -vectors @ ((vectors.T @ gradient) / size)


def applied(rule: Newton | SeparableNewton, function: Callable, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    return rule(function, (x,))[1]((dy,))[0]


@pytest.mark.parametrize("name", ["bent", "captured"])
def test_newton_is_that_of_finite_differences(name: str) -> None:
    block, state = captured()
    function, x = {"bent": (bent, noise(3, 3, dtype=DOUBLE)), "captured": (lambda x: block.native(x)[0], state)}[name]
    dy = noise(*function(x).shape, seed=1, dtype=DOUBLE)
    rcond = 0.3  # so that some are clipped, and errors of the differences are not magnified
    found = applied(Newton(Clipped(rcond)), function, x, dy)
    for sample in range(3):
        gradient, hessian = slope(function, x[sample].numpy(), dy[sample].numpy())
        assert close(found[sample], by_hand(gradient, hessian, rcond), 1e-5)


def test_saddles_and_maxima_are_left_downhill() -> None:
    x = torch.tensor([[0.5, 0.1]], dtype=DOUBLE)
    update = Chain(Link(lambda x: x[:, 0] ** 2 - 3 * x[:, 1] ** 2, Newton())).update(x).update
    assert close(update, np.array([[-0.5, 0.1]]))


def test_small_curvatures() -> None:
    """ℓ = ½·(4·x₀² + 1e-4·x₁² + x₂): no curvature along x₂."""
    x = torch.ones(1, 3, dtype=DOUBLE)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (4 * x[:, 0] ** 2 + 1e-4 * x[:, 1] ** 2 + x[:, 2]) / 2

    for kind in (Newton, SeparableNewton):
        for curvature, expected in (
            (Clipped(), [-1, -1, -0.5 / 4e-6]),
            (Clipped(0.01), [-1, -1e-4 / 0.04, -0.5 / 0.04]),
            (Clipped(0, 0.5), [-1, -2e-4, -1]),
            (Dropped(), [-1, -1, 0]),
            (Dropped(1e-3), [-1, 0, 0]),
        ):
            assert close(Chain(Link(loss, kind(curvature))).update(x).update, np.array([expected]))


@pytest.mark.parametrize("rule", [Newton(), SeparableNewton()])
def test_without_any_curvature(rule: Newton | SeparableNewton) -> None:
    """A slope has no Newton step; where there is no slope either, nothing moves."""
    x = torch.ones(2, 3, dtype=DOUBLE)
    with pytest.raises(ph.NonFiniteError, match="Newton"):
        Chain(Link(lambda x: x.sum(1), rule)).update(x)
    assert Chain(Link(lambda x: 0 * x, rule), Link(square, Gradient())).update(x).update.eq(0).all()


def test_separable_newton_is_newton_for_separable_losses() -> None:
    x, goal = noise(3, 4, dtype=DOUBLE), noise(3, 4, seed=1, dtype=DOUBLE)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (torch.cosh(x - goal) + x**4).sum(1)

    found = Chain(Link(loss, SeparableNewton())).update(x).update
    assert close(found, Chain(Link(loss, Newton())).update(x).update)
    assert close(found, -(torch.sinh(x - goal) + 4 * x**3) / (torch.cosh(x - goal) + 12 * x**2))


def test_separable_newton_refuses_other_losses() -> None:
    x = noise(3, 4, dtype=DOUBLE)
    for loss in (lambda x: square(x) ** 2, lambda x: square(x) + x[:, 0] * x[:, 1]):
        with pytest.raises(ph.StateError, match="not diagonal: use Newton"):
            Chain(Link(loss, SeparableNewton())).update(x)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_separable_newton_judges_every_sample_by_itself(dtype: torch.dtype) -> None:
    """Next to a sample of huge curvature, the coupling in another one is not rounding."""
    x = torch.tensor([[1e4, 1e4], [1.0, 2.0]], dtype=dtype)
    with pytest.raises(ph.StateError, match="not diagonal: use Newton"):
        Chain(Link(lambda x: (x**4).sum(1) + x[:, 0] * x[:, 1], SeparableNewton())).update(x)
    assert close(Chain(Link(lambda x: (x**4).sum(1), SeparableNewton())).update(x).update, -x / 3, 1e-6)


@pytest.mark.parametrize("rule", [Newton(), SeparableNewton()])
def test_infinite_curvature_is_named(rule: Newton | SeparableNewton) -> None:
    """x^1.5 has a slope at 0, but no second derivative."""
    with pytest.raises(ph.NonFiniteError, match="link 1 of 1 .*derivatives"):
        Chain(Link(lambda x: (x**1.5).sum(1), rule)).update(torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=DOUBLE))


def test_settings_out_of_range() -> None:
    for settings in (lambda: Clipped(-1), lambda: Clipped(floor=float("inf")), lambda: Dropped(-1)):
        with pytest.raises(ph.StateError, match="= (-1|inf)"):
            settings()
