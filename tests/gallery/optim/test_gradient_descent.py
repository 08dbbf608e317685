"""Descent in a potential: `math.gradient` inside the step, for one place and for a batch of them."""

from __future__ import annotations

import pytest
from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *


def potential(pos):
    return math.cos(0.9 * math.vec_length(pos))


slope = math.gradient(potential, "pos", get_output=False)


def step(x, rate=0.15):
    return x - rate * slope(x)


def one():
    return (vec(x=1.2, y=0.3),)


def many():
    places = CenteredGrid(potential, x=6, y=5, bounds=Box(x=(-4, 4), y=(-3, 4))).points
    return (rename_dims(places, spatial, batch),)


KINDS = {"Descent": Kind(step, one, rounding=1e-6), "Descents": Kind(step, many, rounding=1e-6)}


@pytest.mark.parametrize("name", KINDS)
def test_values(name: str) -> None:
    check_values(KINDS[name])


@pytest.mark.parametrize("name", KINDS)
def test_second_derivatives(name: str) -> None:
    check_derivatives(KINDS[name], rate=0.15, rounding=1e-6)
