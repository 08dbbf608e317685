"""Steps under PhiFlow's decorators are captured as their users wrote them."""

from __future__ import annotations

import pytest
import torch
from cases.small import same
from cases.states import random_field
from phi.torch.flow import (
    PERIODIC,
    Field,
    Noise,
    Solve,
    StaggeredGrid,
    Tensor,
    advect,
    batch,
    diffuse,
    fluid,
    iterate,
    jit_compile,
    jit_compile_linear,
    math,
    spatial,
)
from phiml.math._functional import JitFunction

import phi_hybrid as ph
from phi_hybrid.errors import CaptureError
from phi_hybrid.linear_solve import linear_solves

U = random_field("scalar", "periodic", 2)


def plain_flow(v: Field, p: Field | None = None, dt: float = 0.1) -> tuple[Field, Field]:
    v = advect.mac_cormack(v, v, dt)
    return fluid.make_incompressible(v, (), Solve(x0=p))


def test_a_decorated_step_with_a_pressure_guess() -> None:
    v = StaggeredGrid(Noise(), PERIODIC, x=8, y=8)
    block = ph.capture(jit_compile(plain_flow))
    result, expected = block(v, dt=0.2), None
    with linear_solves():
        expected = plain_flow(v, dt=0.2)
    for _ in range(3):
        assert all(same(a, b) for a, b in zip(result, expected))
        result = block(*result, dt=0.2)
        with linear_solves():
            expected = plain_flow(*expected, dt=0.2)
    assert block._captures == 2  # without and with a guess


def test_decorators_inside() -> None:
    @jit_compile
    def spread(u: Field) -> Field:
        return diffuse.explicit(u, 0.1, 0.5)

    @jit_compile_linear
    def heavy(u: Tensor, scale: float = 1.0) -> Tensor:
        return scale * u + 0.5 * math.laplace(u, padding=PERIODIC)

    def step(u: Field) -> Field:
        u = spread(spread(u))
        u = u.with_values(heavy(u.values, scale=2.0))
        return iterate(lambda u: spread(u), 3, u)

    math.assert_close(ph.capture(step, U)(U), step(U), rel_tolerance=1e-6)  # TorchScript may round otherwise


def test_map_takes_slices_apart() -> None:
    rates = math.wrap(torch.tensor([0.1, 0.3]), batch("rate"))

    def step(u: Field, rates: Tensor) -> Field:
        return math.map(lambda rate: diffuse.explicit(u, rate, 0.5), rates, dims="rate")

    assert same(ph.capture(step, U, rates)(U, rates), step(U, rates))


def test_gradients_inside_and_outside() -> None:
    energy = math.gradient(lambda v: math.sum(v**4, spatial), "v", get_output=False)

    def descend(u: Field) -> Field:
        return u.with_values(u.values - 0.1 * energy(u.values))

    assert same(ph.capture(descend, U)(U), descend(U))

    loss = math.gradient(lambda u: math.sum(diffuse.explicit(u, 0.1, 1.0).values ** 2, spatial), "u")
    block = ph.capture(loss)
    for own, plain in zip(block(U), loss(U)):
        assert same(own, plain)


def test_a_gradient_that_was_taken_before() -> None:
    """PhiML keeps what it prepared for arguments of the same shapes, which a graph can neither use nor leave behind."""
    slope = math.gradient(lambda v, c: math.sum(c * v**3, spatial), "v", get_output=False)
    coefficient = math.wrap(torch.tensor(2.0))

    def descend(u: Field, c: Tensor) -> Field:
        return u.with_values(u.values - 0.1 * slope(u.values, c))

    expected, kept = descend(U, coefficient), dict(slope.traces)
    assert same(ph.capture(descend)(U, coefficient), expected)
    assert slope.traces == kept


def test_phiflow_is_left_as_it_was() -> None:
    """After a refusal PhiFlow's own jit works, and no function of torch or PhiML stays replaced."""
    before = torch.autograd.Function.__dict__["apply"], JitFunction.__dict__["__call__"]

    @jit_compile
    def refused(u: Field) -> Field:
        return u * float(math.sum(u.values, u.values.shape))

    with pytest.raises(CaptureError):
        ph.capture(refused, U)
    assert (torch.autograd.Function.__dict__["apply"], JitFunction.__dict__["__call__"]) == before
    spread = jit_compile(lambda u: diffuse.explicit(u, 0.1, 0.5))
    math.assert_close(spread(U), diffuse.explicit(U, 0.1, 0.5), rel_tolerance=1e-6)
