"""Staggered fields of the tests, whose faces are laid out once per grid, are refused where PhiFlow refuses them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product

import pytest
from cases.staggered import PLAIN_CHECK, with_known_faces
from cases.states import MORE_BOUNDARIES, random_field
from phi.torch.flow import Box, Field, StaggeredGrid, math, vec


def refuses(check: Callable[[Field], None], u: Field) -> bool:
    try:
        check(u)
    except (math.IncompatibleShapes, AssertionError, ValueError):
        return True
    return False


@pytest.mark.parametrize("dims", [1, 2])
def test_verdicts_are_those_of_phiflow(dims: int) -> None:
    """The grid and the sides of one field with the values of another, for all pairs, twice."""
    check, verdicts = with_known_faces(PLAIN_CHECK), set()
    fields = [random_field("staggered", kind, dims, b=2) for kind in MORE_BOUNDARIES]
    fields.append(
        StaggeredGrid(0, fields[0].boundary, Box(**dict.fromkeys("xy"[:dims], 1.0)), **dict.fromkeys("xy"[:dims], 9))
    )
    for one, other in [*product(fields, fields)] * 2:
        mixed = copy.copy(one)
        object.__setattr__(mixed, "values", other.values)
        verdict = refuses(PLAIN_CHECK, mixed)
        assert refuses(check, mixed) == verdict, (one, other)
        verdicts.add(verdict)
    assert verdicts == {True, False}


def test_bounds_of_tensors_are_left_to_phiflow() -> None:
    """A trace sees what is computed with them."""
    asked: list[Field] = []
    check = with_known_faces(asked.append)
    for size in (vec(x=1.0, y=2.0), math.tensor(vec(x=1.0, y=2.0))):
        check(StaggeredGrid(0, 0, Box(0 * size, size), x=4, y=3))
    assert len(asked) == 1 and asked[0].bounds.size.default_backend.name == "torch"
