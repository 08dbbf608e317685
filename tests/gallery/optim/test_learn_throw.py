"""A ballistic throw: one formula, captured for single throws and batches, its gradient inside and outside of the block."""

from __future__ import annotations

from cases.gallery import Kind, assert_same, check_derivatives, check_values
from phi.torch.flow import *

import phi_hybrid as ph


def hit(pos, height, vel, angle, gravity=1.2):
    vx, vy = math.cos(angle) * vel, math.sin(angle) * vel
    height = math.maximum(height, 0.02)
    time = (vy + math.sqrt(vy**2 + 2 * gravity * height)) / gravity
    return pos + vx * time, time, height, vx, vy


def trajectory(pos, height, vel, angle, gravity=1.2, steps=spatial(time=12)):
    _, time, height, vx, vy = hit(pos, height, vel, angle, gravity)
    t = math.linspace(0, time, steps)
    return vec(x=pos + vx * t, y=height + vy * t - gravity / 2 * t**2)


@jit_compile
def loss(pos, height, vel, angle, target):
    return math.l2_loss(hit(pos, height, vel, angle)[0] - target)


gradient_of = math.gradient(loss, wrt="vel", get_output=False)


def step(vel, pos, height, angle, target, rate=0.08):
    return vel - rate * gradient_of(pos, height, vel, angle, target)


def throws():
    size = batch(example=7)
    return tuple(math.random_uniform(size) + offset for offset in (0, 0.5, 0.3, 0.1))


AIM = {"pos": tensor(0.0), "height": tensor(1.0), "angle": tensor(0.2), "target": tensor(6.0)}
KINDS = {
    "Throw": Kind(hit, throws, repeats=False),
    "Throw, path": Kind(trajectory, throws, repeats=False),
    "Throw, descent": Kind(step, lambda: (tensor(1.0),), AIM),
}


def test_values_of_the_hit() -> None:
    check_values(KINDS["Throw"])


def test_values_of_the_path() -> None:
    check_values(KINDS["Throw, path"])


def test_derivatives_of_the_hit() -> None:
    check_derivatives(KINDS["Throw"])


def test_values_of_the_descent() -> None:
    check_values(KINDS["Throw, descent"], steps=4)


def test_gradient_of_the_captured_loss() -> None:
    """PhiFlow's `math.gradient` around a block, as around the function in it."""
    arguments = tuple(AIM[name] for name in ("pos", "height")) + (tensor(1.0), AIM["angle"], AIM["target"])

    def of_loss(pos, height, vel, angle, target):
        return math.l2_loss(hit(pos, height, vel, angle)[0] - target)

    block = ph.capture(of_loss)

    def captured(pos, height, vel, angle, target):
        return block(pos, height, vel, angle, target)

    found = math.gradient(captured, wrt="vel", get_output=False)(*arguments)
    assert_same(found, math.gradient(of_loss, wrt="vel", get_output=False)(*arguments), 0.0)
