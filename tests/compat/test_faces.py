"""Staggered fields whose faces are laid out once per grid are refused where PhiFlow refuses them."""

from __future__ import annotations

import copy
from itertools import product

import pytest
from cases.states import MORE_BOUNDARIES, random_field
from phi.torch.flow import Box, Field, StaggeredGrid, math, vec

from phi_hybrid._compat import faces_laid_out_once


def refused(field: Field) -> bool:
    """By the check that a field makes of itself."""
    try:
        field.__post_init__()
    except (math.IncompatibleShapes, AssertionError, ValueError):
        return True
    return False


@pytest.mark.parametrize("dims", [1, 2])
def test_verdicts_are_those_of_phiflow(dims: int) -> None:
    """The grid and the sides of one field with the values of another, for all pairs, twice."""
    fields = [random_field("staggered", kind, dims, b=2) for kind in MORE_BOUNDARIES]
    fields.append(
        StaggeredGrid(0, fields[0].boundary, Box(**dict.fromkeys("xy"[:dims], 1.0)), **dict.fromkeys("xy"[:dims], 9))
    )
    mixtures = []
    for one, other in product(fields, fields):
        mixtures.append(copy.copy(one))
        object.__setattr__(mixtures[-1], "values", other.values)
    expected = [refused(m) for m in mixtures]
    assert set(expected) == {True, False}
    with faces_laid_out_once():
        assert [refused(m) for m in mixtures * 2] == expected * 2


def test_faces_are_laid_out_once_unless_bounds_are_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace sees what is computed with tensors. When this fails, PhiFlow may lay out no faces for the comparison."""
    laid_out, own = [], Field.sampled_elements
    monkeypatch.setattr(Field, "sampled_elements", property(lambda f: laid_out.append(f) or own.__get__(f)))
    for size, times in ((vec(x=1.0, y=2.0), 1), (math.tensor(vec(x=1.0, y=2.0)), 3)):
        field = StaggeredGrid(0, 0, Box(0 * size, size), x=4, y=3)
        laid_out.clear()
        field.__post_init__()
        assert len(laid_out) == 1
        laid_out.clear()
        with faces_laid_out_once():
            for _ in range(3):
                field.__post_init__()
        assert len(laid_out) == times
