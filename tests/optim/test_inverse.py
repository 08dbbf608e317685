"""Inverses as rules: against algebra, and what happens where there is none."""

from __future__ import annotations

import pytest
import torch
from cases.small import noise
from cases.updates import captured, close, square

import phi_hybrid as ph
from phi_hybrid.optim.chain import Chain, Link
from phi_hybrid.optim.inverse import Inverse, InverseByOptimization, LinearInverse, NewtonKrylov, QuasiNewton
from phi_hybrid.optim.newton import SeparableNewton
from phi_hybrid.optim.rules import Damped, Rule, TrustRegion

DOUBLE = torch.float64
HALF = Damped(SeparableNewton(), 0.5)


def cubic(x: torch.Tensor) -> torch.Tensor:
    return x**3 + x


def test_inverse_of_rounded_physics() -> None:
    """f has no derivatives, and f⁻¹ knows the branch from x."""
    x = torch.tensor([[3.0, -2.0], [-1.0, 4.0]], dtype=DOUBLE)

    def inverse(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.sign(x) * torch.sqrt(y)

    chain = Chain(Link(lambda x: torch.round(x.detach() ** 2), Inverse(inverse)), Link(square, HALF))
    assert close(x + chain.update(x).update, x * 0.5**0.5)


def test_inverse_of_several_tensors() -> None:
    a, b = noise(3, 2, dtype=DOUBLE), noise(3, 4, seed=1, dtype=DOUBLE)
    physics = Link(lambda a, b: (2 * a, 3 * b), Inverse(lambda ya, yb, a, b: (ya / 2, yb / 3)))
    update = Chain(physics, Link(lambda a, b: square(a) + square(b), HALF)).update((a, b)).update
    assert close(update[0], -a / 2) and close(update[1], -b / 2)


def test_linear_inverse_loses_no_digits() -> None:
    """A relative update of 1e-12 in single precision, where the difference of two states is zero."""
    x = noise(3, 4)
    physics, tiny = (lambda x: 4 * x), Damped(SeparableNewton(), 1e-12)
    update = Chain(Link(physics, LinearInverse(lambda dy: dy / 4)), Link(square, tiny)).update(x).update
    assert close(update, -1e-12 * x.double(), 1e-6)
    lost = Chain(Link(physics, Inverse(lambda y, x: y / 4)), Link(square, tiny)).update(x).update
    assert lost.eq(0).all()
    kept = Chain(Link(physics, Inverse(lambda y, x: y / 4)), Link(square, tiny), precision=DOUBLE).update(x).update
    assert close(kept, -1e-12 * x.double(), 1e-3)


@pytest.mark.parametrize("rule", [Inverse, LinearInverse])
def test_an_inverse_that_returns_something_unlike_x(rule: type) -> None:
    """Complex, in single precision, one sample, two tensors, integers; more digits than those of x will do."""
    for change in (
        lambda x: 1j * x,
        lambda x: x.float(),
        lambda x: x[:1],
        lambda x: (x, x),
        lambda x: x.round().long(),
    ):
        physics = Link(lambda x: x, Damped(rule(lambda y, *x: change(y)), 0.5))  # noqa: B023
        with pytest.raises(ph.StateError, match=r"<lambda> .*\(3, 4\) torch.float64"):
            Chain(physics, Link(square, HALF)).update(noise(3, 4, dtype=DOUBLE))
    update = Chain(Link(lambda x: x, rule(lambda y, *x: y.double())), Link(square, HALF)).update(noise(3, 4)).update
    assert update.dtype == torch.float32 and close(update, -noise(3, 4) / 2, 1e-6)


def test_an_inverse_that_returns_nan_is_named() -> None:
    def root(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(y - 100)

    with pytest.raises(ph.NonFiniteError, match=r"Δx of link 1 of 2 .*Inverse\(.*root.* holds 12 NaN"):
        Chain(Link(cubic, Inverse(root)), Link(square, HALF)).update(noise(3, 4))
    bounded = TrustRegion(Inverse(root), 1.0)  # does not hide it
    with pytest.raises(ph.NonFiniteError, match="link 1 of 2"):
        Chain(Link(cubic, bounded), Link(square, HALF)).update(noise(3, 4))


@pytest.mark.parametrize("scale", [1e6, 1e-6])
@pytest.mark.parametrize("method", [QuasiNewton(), NewtonKrylov()])
def test_inverse_by_optimization(method: QuasiNewton | NewtonKrylov, scale: float) -> None:
    """The root of a cubic; nothing depends on the scale of the output."""
    x = noise(3, 4, dtype=DOUBLE)
    rule = InverseByOptimization(method, 1e-8)
    update = Chain(Link(lambda x: scale * cubic(x), rule), Link(square, HALF)).update(x).update
    assert close(cubic(x + update), cubic(x) / 2, 1e-7)


@pytest.mark.parametrize("method", [QuasiNewton(), NewtonKrylov()])
def test_inverse_of_a_captured_step(method: QuasiNewton | NewtonKrylov) -> None:
    block, x = captured()
    nearby = x + 0.02 * noise(*x.shape, seed=1, dtype=DOUBLE)
    dy = block.native(nearby)[0] - block.native(x)[0]
    y, pullback = InverseByOptimization(method, 1e-6)(block.native, (x,))
    (update,) = pullback((dy,))
    assert close(block.native(x + update)[0] - y[0], dy, 1e-6)


def test_nothing_wanted_is_nothing_done() -> None:
    x = noise(3, 4, dtype=DOUBLE)
    for method in (QuasiNewton(), NewtonKrylov()):
        (update,) = InverseByOptimization(method)(cubic, (x,))[1]((torch.zeros_like(x),))
        assert update.eq(0).all()


@pytest.mark.parametrize("method", [QuasiNewton(), NewtonKrylov()])
def test_an_output_out_of_reach(method: QuasiNewton | NewtonKrylov) -> None:
    """y = x² ≥ 0 cannot become negative; what is found may be allowed, and is then the best there is."""
    x, dy = torch.ones(2, 3, dtype=DOUBLE), torch.full((2, 3), -2.0, dtype=DOUBLE)
    with pytest.raises(ph.SolveError, match=type(method).__name__) as caught:
        InverseByOptimization(method)(torch.square, (x,))[1]((dy,))
    assert caught.value.residual >= 0.5
    (update,) = InverseByOptimization(method, float("inf"))(torch.square, (x,))[1]((dy,))
    assert torch.isfinite(update).all()
    if isinstance(method, QuasiNewton):
        assert float((x + update).abs().max()) < 0.1  # nearest to −1 is 0
    loss = Link(lambda y: square(y + 1), SeparableNewton())
    with pytest.raises(ph.SolveError, match=r"link 1 of 2 \(.*InverseByOptimization") as caught:
        Chain(Link(torch.square, InverseByOptimization(method)), loss).update(x)
    assert caught.value.iterations > 0


@pytest.mark.parametrize("method", [QuasiNewton(), NewtonKrylov()])
def test_the_search_ends_at_the_tolerance(method: QuasiNewton | NewtonKrylov) -> None:
    """Of smaller and of larger ones; where any residual will do, it is sought as by default."""
    stretch = torch.logspace(0, 1, 10, dtype=DOUBLE)
    calls = {}

    def physics(x: torch.Tensor) -> torch.Tensor:
        calls[tolerance] = calls.get(tolerance, 0) + 1
        return torch.tanh(0.1 * stretch * x)

    wanted = torch.full((2, 10), 0.8, dtype=DOUBLE)
    for tolerance in (1e-6, 1e-3, 0.3, float("inf")):
        (update,) = InverseByOptimization(method, tolerance)(physics, (torch.zeros_like(wanted),))[1]((wanted,))
        misses = (torch.tanh(0.1 * stretch * update) - wanted).norm(dim=1) / wanted.norm(dim=1)
        assert float(misses.max()) <= min(tolerance, 1)
    assert calls[0.3] < calls[1e-3] < calls[1e-6] and calls[float("inf")] == calls[1e-3]


@pytest.mark.parametrize("method", [QuasiNewton(), NewtonKrylov()])
def test_physics_that_blows_up_on_the_way(method: QuasiNewton | NewtonKrylov) -> None:
    """Logarithms of negative numbers are met in the search; the error is one of the solve, and names NaN or a residual."""
    x, dy = torch.full((1, 2), 1e-2, dtype=DOUBLE), torch.full((1, 2), -1e3, dtype=DOUBLE)
    rule: Rule = InverseByOptimization(method)
    with pytest.raises(ph.SolveError, match="no inverse was found"):
        rule(torch.log, (x,))[1]((dy,))


def test_newton_krylov_says_what_it_needs() -> None:
    x = noise(3, 4)
    with pytest.raises(ph.StateError, match="torch.float32.*precision=torch.float64"):
        InverseByOptimization(NewtonKrylov())(cubic, (x,))[1]((torch.ones_like(x),))
    with pytest.raises(ph.StateError, match="2 equations for 4 unknowns"):
        InverseByOptimization(NewtonKrylov())(lambda x: x[:, :2], (x.double(),))[1]((x[:, :2].double(),))


def test_settings_out_of_range() -> None:
    with pytest.raises(ph.StateError, match="tolerance = 0"):
        InverseByOptimization(tolerance=0)
