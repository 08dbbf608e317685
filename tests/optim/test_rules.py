"""Rules that use the Jacobian, against dense linear algebra of NumPy, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases.small import noise
from cases.updates import bent, captured, close, jacobians, per_sample, square

import phi_hybrid as ph
from phi_hybrid.optim import Cutoff, Smooth
from phi_hybrid.optim.chain import Chain, Link
from phi_hybrid.optim.inverse import LinearInverse
from phi_hybrid.optim.newton import Newton, SeparableNewton
from phi_hybrid.optim.rules import Blend, Damped, GaussNewton, GaussNewtonCG, Gradient, HalfInverse, Rule, TrustRegion

DOUBLE = torch.float64
MATRIX = noise(5, 2, seed=7, dtype=DOUBLE)


def wide(x: torch.Tensor) -> torch.Tensor:
    """`(sample, 5)` to `(sample, 2)`."""
    return torch.tanh(x @ MATRIX) + x[:, :2] ** 2


def burgers(x: torch.Tensor) -> torch.Tensor:
    return BLOCK.native(x)[0]


BLOCK, STATE = captured()
CASES = {
    "tall": (bent, noise(3, 3, dtype=DOUBLE)),
    "wide": (wide, noise(3, 5, dtype=DOUBLE)),
    "captured": (burgers, STATE),
}


def applied(rule: Rule, function: object, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    y, pullback = rule(function, (x,))
    assert torch.equal(y[0], function(x))
    (dx,) = pullback((dy,))
    assert dx.shape == x.shape and dx.dtype == x.dtype
    return dx


def case(name: str) -> tuple[object, torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    """f, x, Δy, and J and Δy as matrices and vectors of every sample."""
    function, x = CASES[name]
    dy = noise(*function(x).shape, seed=3, dtype=DOUBLE)
    return function, x, dy, jacobians(function, x), dy.flatten(1).numpy()


def by_decomposition(jacobian: np.ndarray, dy: np.ndarray, kappa: float, rcond: float = 0) -> np.ndarray:
    u, sigma, vt = np.linalg.svd(jacobian, full_matrices=False)
    kept = sigma > rcond * sigma[0]
    return vt[kept].T @ (sigma[kept] ** -kappa * (u[:, kept].T @ dy))


def test_gradient() -> None:
    function, x, dy, jacobian, vector = case("captured")
    assert close(applied(Gradient(), function, x, dy), per_sample(lambda j, v: j.T @ v, jacobian, vector), 1e-12)
    x = noise(3, 4, dtype=DOUBLE)
    assert close(applied(Gradient(), COUPLED["mean"], x, x), x - x.mean(0))  # samples may depend on each other


@pytest.mark.parametrize("kappa", [-1, 0.5, 1])
@pytest.mark.parametrize("name", CASES)
def test_half_inverse(name: str, kappa: float) -> None:
    function, x, dy, jacobian, vector = case(name)
    expected = per_sample(lambda j, v: by_decomposition(j, v, kappa), jacobian, vector)
    for chunk in (256, 2):
        assert close(applied(HalfInverse(kappa, chunk=chunk), function, x, dy), expected)


def test_half_inverse_drops_by_the_largest_singular_value_of_each_sample() -> None:
    """One sample is a million times as sensitive as the other, and both keep the same directions."""
    function, x, dy, jacobian, vector = case("captured")
    scale = torch.tensor([1.0, 1e6, 1.0], dtype=DOUBLE)[:, None, None]
    found = applied(HalfInverse(0.5, 0.2), lambda x: scale * function(x), x, dy)
    jacobian = jacobian * scale.numpy()
    assert close(found, per_sample(lambda j, v: by_decomposition(j, v, 0.5, 0.2), jacobian, vector))
    assert not close(found, per_sample(lambda j, v: by_decomposition(j, v, 0.5), jacobian, vector), 1e-3)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("name", CASES)
def test_gauss_newton_dense_and_matrix_free(name: str, damping: float) -> None:
    function, x, dy, jacobian, vector = case(name)

    def solved(j: np.ndarray, v: np.ndarray) -> np.ndarray:
        if damping == 0:
            return np.linalg.lstsq(j, v, rcond=None)[0]
        return np.linalg.solve(j.T @ j + damping**2 * np.eye(j.shape[1]), j.T @ v)

    expected = per_sample(solved, jacobian, vector)
    assert close(applied(GaussNewton(damping), function, x, dy), expected)
    assert close(applied(GaussNewtonCG(damping, 1e-12), function, x, dy), expected, 1e-8)


def test_conjugate_gradients_that_do_not_converge() -> None:
    """The residual that the error names is that of the iterate, sample by sample."""
    x, scales = torch.zeros(2, 40, dtype=DOUBLE), torch.logspace(-6, 0, 40, dtype=DOUBLE)
    with pytest.raises(ph.SolveError, match="5 iterations") as caught:
        applied(GaussNewtonCG(iterations=5), lambda x: x * scales, x, torch.ones_like(x))
    assert caught.value.iterations == 5 and 1e-4 < caught.value.residual < 1
    found = applied(GaussNewtonCG(damping=0.5, iterations=20), lambda x: x * scales, x, torch.ones_like(x))
    assert close(found, (scales / (scales**2 + 0.25)).expand_as(x), 1e-3)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize(("scale", "dtype"), [(1e-20, torch.float32), (1e-11, torch.float32), (1e25, DOUBLE)])
def test_conjugate_gradients_do_not_depend_on_scale(scale: float, dtype: torch.dtype, damping: float) -> None:
    """Squares of J·Δy would vanish or overflow in single precision; the second sample has another size of Δy."""
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
    dy = torch.tensor([[1.0], [1e-15]], dtype=dtype) * weights * scale
    found = applied(GaussNewtonCG(damping * scale, 1e-6), lambda x: (x * scale) * weights, torch.ones_like(dy), dy)
    expected = torch.tensor([[1.0], [1e-15]]).double() * weights**2 / (weights**2 + damping**2)
    for a, b in zip(found, expected):
        assert close(a, b, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_conjugate_gradients_where_nothing_can_be_reached(dtype: torch.dtype) -> None:
    """Δy of the first sample is orthogonal to all that J reaches, up to rounding; the second is solved beside it."""
    basis = torch.linalg.qr(noise(6, 6, dtype=DOUBLE))[0]
    matrix = basis[:, :3] @ noise(3, 4, seed=1, dtype=DOUBLE)
    dy = torch.stack([basis[:, 4], basis[:, 0] + basis[:, 5]])
    expected = dy @ torch.linalg.pinv(matrix).T
    physics, x = matrix.to(dtype), torch.ones(2, 4, dtype=dtype)
    found = applied(GaussNewtonCG(), lambda x: x @ physics.T, x, dy.to(dtype))
    assert float(found[0].norm()) < 100 * torch.finfo(dtype).eps * float(expected[1].norm())
    assert close(found[1], expected[1], 1e-3)


@pytest.mark.parametrize("rule", [HalfInverse(), GaussNewtonCG(), GaussNewton(0.1)])
def test_singular_jacobian(rule: Rule) -> None:
    """Directions that the output does not depend on do not move; the others do as if those were not there."""
    x, dy = noise(3, 4, dtype=DOUBLE), noise(3, 3, seed=1, dtype=DOUBLE)

    def blind(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([3 * x[:, 0] + x[:, 1], 3 * x[:, 0] + x[:, 1], x[:, 2] ** 2], 1)

    def seeing(x: torch.Tensor) -> torch.Tensor:
        return blind(torch.cat([x, x.new_zeros(len(x), 1)], 1))

    found = applied(rule, blind, x, dy)
    assert found[:, 3].eq(0).all()
    assert close(found[:, :3], applied(rule, seeing, x[:, :3], dy), 1e-4)
    assert close(found[:, 0], 3 * found[:, 1])
    assert found.abs().max() < 20


@pytest.mark.parametrize("rule", [Gradient(), HalfInverse(), HalfInverse(0.5, Smooth()), GaussNewtonCG()])
def test_zero_jacobian(rule: Rule) -> None:
    x = noise(3, 4, dtype=DOUBLE)
    assert applied(rule, lambda x: 0 * x, x, torch.ones_like(x)).eq(0).all()


def test_complex_physics() -> None:
    """A unitary rotation by i: the inverse turns back, in real and imaginary parts."""
    z, dy = (torch.view_as_complex(noise(2, 3, 2, seed=n, dtype=DOUBLE)) for n in (0, 1))
    for rule in (Gradient(), HalfInverse(), GaussNewton(), GaussNewtonCG()):
        assert close(torch.view_as_real(applied(rule, lambda z: 1j * z, z, dy)), torch.view_as_real(-1j * dy))


COUPLED = {
    "mean": lambda x: x - x.mean(0),
    "to later samples": lambda x: x.cumsum(0),
    "to the first": lambda x: torch.cat([2 * x[:1] - x[1:].sum(0), x[1:]]),
    "from the first": lambda x: 2 * x - x[:1],
    "from 1 to 3": lambda x: x + 1e-9 * x[[0, 1, 2, 1, 4]],
    "from 2 to 3": lambda x: x + 1e-9 * x[[0, 1, 2, 2, 4]],
    "from 0 to 4": lambda x: x + 1e-9 * x[[0, 1, 2, 3, 0]],
}


@pytest.mark.parametrize("name", COUPLED)
def test_samples_that_depend_on_each_other_are_refused(name: str) -> None:
    x = noise(5, 4, dtype=DOUBLE)
    for rule in (HalfInverse(), GaussNewtonCG(), Newton()):
        with pytest.raises(ph.StateError, match="depend on each other"):
            applied(rule, COUPLED[name], x, x)


@pytest.mark.parametrize("rule", [Gradient(), HalfInverse(), GaussNewtonCG(), Newton(), SeparableNewton()])
def test_infinite_derivatives_have_a_link(rule: Rule) -> None:
    """√x has a value at 0; conjugate gradients must not go on with NaN, and the sample is not taken for coupled."""
    x = torch.ones(2, 3, dtype=DOUBLE)
    x[1, 1] = 0
    calls = []

    def root(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return torch.sqrt(x)

    chain = Chain(Link(root, rule), Link(lambda y: square(y - 2), Gradient()))
    with pytest.raises(ph.NonFiniteError, match=r"link 1 of 2 \(.*root with .*\): 1 derivatives"):
        chain.update(x)
    assert len(calls) < 5


# --- modifiers ---


def double(*shape: int, seed: int) -> torch.Tensor:
    return noise(*shape, seed=seed, dtype=DOUBLE)


def test_blended_updates_are_added() -> None:
    x = double(3, 3, seed=1)

    def update(rule: Rule) -> torch.Tensor:
        return Chain(Link(bent, rule), Link(lambda y: square(y) / 2, Gradient())).update(x).update

    expected = 0.3 * update(Gradient()) + 2 * update(GaussNewton(0.1))
    torch.testing.assert_close(update(Blend((Gradient(), 0.3), (GaussNewton(0.1), 2.0))), expected)
    torch.testing.assert_close(update(Blend((Gradient(), 0.3))), update(Damped(Gradient(), 0.3)))


def test_a_blend_descends_both_distances() -> None:
    """Of linear physics: the gradient of ½‖x − x*‖² + c/2·‖y − y*‖² by autograd."""
    matrix, truth = double(4, 4, seed=2) + 3 * torch.eye(4, dtype=torch.float64), double(3, 4, seed=3)
    x, c = double(3, 4, seed=4).requires_grad_(), 7.0
    rule = Blend((LinearInverse(lambda dy: torch.linalg.solve(matrix, dy.T).T), 1.0), (Gradient(), c))
    chain = Chain(Link(lambda x: x @ matrix.T, rule), Link(lambda y: square(y - truth @ matrix.T) / 2, Gradient()))
    loss = ((x - truth) ** 2).sum() / 2 + c / 2 * (((x - truth) @ matrix.T) ** 2).sum()
    torch.testing.assert_close(chain.update(x.detach()).update, -torch.autograd.grad(loss, x)[0])


@pytest.mark.parametrize(
    "parts", [(), (Gradient(),), ((Gradient(), 0.0),), ((Gradient(), float("nan")),), ((1.0, 2.0),)]
)
def test_wrong_parts_of_a_blend(parts: tuple) -> None:
    with pytest.raises(ph.StateError, match=r"Blend|weight"):
        Blend(*parts)


def test_damped_and_trust_region() -> None:
    function, x, dy, *_ = case("tall")
    full = applied(GaussNewton(), function, x, dy)
    assert close(applied(Damped(GaussNewton(), 0.3), function, x, dy), 0.3 * full)
    radius = float(full.norm(dim=1).median())
    bounded = applied(TrustRegion(GaussNewton(), radius), function, x, dy)
    for found, wanted in zip(bounded, full):
        assert close(found, wanted * min(1.0, radius / float(wanted.norm())))


def test_trust_region_holds_a_huge_step() -> None:
    """Squares of its entries would overflow; of several tensors, the length is that of all together."""
    x = torch.ones(2, 3, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE)
    y, pullback = TrustRegion(Gradient(), 0.5)(lambda a, b: 1e300 * (a.sum(1) + b), x)
    a, b = pullback((torch.tensor([1.0, 1e-310], dtype=DOUBLE),))
    assert torch.allclose(a[0], torch.full((3,), 0.25, dtype=DOUBLE)) and float(b[0]) == pytest.approx(0.25)
    assert float(b[1]) == pytest.approx(1e-10)
    assert applied(TrustRegion(Gradient(), 0.5), lambda x: 0 * x, x[0], x[0]).eq(0).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        (lambda: HalfInverse(kappa=2), "kappa = 2"),
        (lambda: HalfInverse(rcond=-1), "rcond = -1"),
        (lambda: HalfInverse(rcond=Cutoff(1e-3, -1)), "damping = -1"),
        (lambda: GaussNewton(damping=-1), "damping = -1"),
        (lambda: GaussNewtonCG(damping=-1), "damping = -1"),
        (lambda: GaussNewtonCG(tolerance=0), "tolerance = 0"),
        (lambda: GaussNewtonCG(iterations=0), "iterations = 0"),
        (lambda: Damped(Gradient(), 0), "factor = 0"),
        (lambda: TrustRegion(Gradient(), float("nan")), "radius = nan"),
    ],
)
def test_settings_out_of_range(settings: object, message: str) -> None:
    with pytest.raises(ph.StateError, match=message):
        settings()
