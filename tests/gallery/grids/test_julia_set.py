"""Complex numbers that are squared again and again, and a count of those that stay bounded."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

PLANE = dict(re=12, im=10, bounds=Box(re=(-1.5, 1.5), im=(-1.2, 1.2)))


def julia(z, counter, c):
    following = z**2 + c
    counter += abs(z) < 2
    return following, counter


def members(c, count=6):
    """The set on a grid whose values come from a function of the position, with iterations inside."""

    def belongs(re, im):
        return iterate(julia, count, re + im * 1j, 0, c=c)[1]

    return CenteredGrid(belongs, **PLANE)


def numbers():
    points = CenteredGrid(0, **PLANE).points
    return points.vector["re"] + points.vector["im"] * 1j, 0


def parameters():
    return (0.75 * math.exp(1j * math.linspace(0, 2 * PI, batch(angle=5))),)


KINDS = {
    "Julia map": Kind(julia, numbers, {"c": tensor(-0.4 + 0.6j)}, captures=2),
    "Julia set": Kind(members, parameters, repeats=False),
}


def test_values_of_the_map() -> None:
    check_values(KINDS["Julia map"])


def test_values_of_the_set() -> None:
    check_values(KINDS["Julia set"])


def test_derivatives_of_the_map() -> None:
    check_derivatives(KINDS["Julia map"], c=tensor(-0.4 + 0.6j))
