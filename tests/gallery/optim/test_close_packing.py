"""Spheres pushed apart: the loss of a minimisation, pairwise distances through a periodic boundary."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

R = wrap([1] * 8 + [vec(batch("d"), 1, 0.5)] * 8, instance("spheres"))
SIZE = 7.0


def loss(x: Tensor, boundary=PERIODIC):
    dx = boundary.shortest_distance(x, rename_dims(x, "spheres", "o"), SIZE)
    dr = math.vec_length(dx, eps=1e-8) / (R + rename_dims(R, "spheres", "o"))
    return math.l2_loss(math.where((dr < 2e-4) | (dr > 1), 0, 1 - dr))


def step(x, rate=0.4):
    """One descent, with PhiFlow's own gradient inside."""
    return (x - rate * math.gradient(loss, "x", get_output=False)(x)) % SIZE


def start():
    return (math.random_uniform(instance(R), batch(d=2), channel(vector="x,y"), high=SIZE),)


KINDS = {
    "Close packing, loss": Kind(loss, start, repeats=False, rounding=1e-6),
    "Close packing": Kind(step, start, rounding=1e-6),
}


def test_values_of_the_loss() -> None:
    check_values(KINDS["Close packing, loss"])


def test_values_of_the_descent() -> None:
    check_values(KINDS["Close packing"])


def test_derivatives_of_the_loss() -> None:
    check_derivatives(KINDS["Close packing, loss"], rounding=1e-6)
