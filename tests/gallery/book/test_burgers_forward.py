"""Burgers as the book begins with it: scalar values on a line from NumPy, explicit diffusion, advection."""

from __future__ import annotations

from cases.gallery import Kind, assert_same, check_derivatives, check_values
from phi.torch.flow import *

import phi_hybrid as ph

N = 64
DT = 1 / 16
NU = 0.01 / (N * np.pi)
INITIAL = np.asarray([-np.sin(np.pi * x) for x in np.linspace(-1 + 1 / N, 1 - 1 / N, N)])


def step(velocity, nu=NU):
    diffused = diffuse.explicit(velocity, nu, DT)
    return advect.semi_lagrangian(diffused, diffused, DT)


def start():
    return (CenteredGrid(math.tensor(INITIAL, spatial("x")), extrapolation.PERIODIC, x=N, bounds=Box(x=(-1, 1))),)


def smooth():
    return (CenteredGrid(lambda x: -math.sin(PI * x), extrapolation.PERIODIC, x=N, bounds=Box(x=(-1, 1))),)


KINDS = {"Book: Burgers": Kind(step, start)}


def test_values() -> None:
    check_values(KINDS["Book: Burgers"], steps=8)


def test_derivatives_by_the_viscosity() -> None:
    check_derivatives(KINDS["Book: Burgers"], steps=4, nu=NU)


def test_gradient_of_a_loss_after_steps_as_the_book_takes_it() -> None:
    """`math.gradient` of a function that runs steps and returns the loss with all states."""
    target = smooth()[0]
    block = ph.capture(step)

    def gradient_with(step):
        def loss(velocity):
            states = [velocity]
            for _ in range(4):
                states.append(step(1.0 * states[-1]))
            return field.l2_loss(states[-1] - target) * 2.0 / N, states

        (value, states), (gradient,) = math.gradient(loss)(0.5 * target)
        return value, states[-1], gradient

    assert_same(gradient_with(block), gradient_with(step), 0.0)
