"""Reductions over no dims; padding of constants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from phi.torch.flow import Box, CenteredGrid, batch, extrapolation, field, instance, math, spatial, wrap

from phi_hybrid import _compat, capture

VALUES = torch.tensor([1.0, 4.0, -2.0])


@pytest.mark.parametrize("name, own", [("mean", VALUES), ("std", torch.zeros(3))])
def test_reductions_over_no_dims_are_still_over_all_upstream(name: str, own: torch.Tensor) -> None:
    upstream = getattr(_compat.tensor_defects, f"_{name}_over_all")
    assert upstream(_compat.TORCH, VALUES, ()).ndim == 0
    assert torch.equal(getattr(_compat.TORCH, name)(VALUES, ()), own)


def test_standard_deviations_keep_the_shape_captured_and_eager() -> None:
    x = wrap(VALUES, instance(points=3))
    for dims in (spatial, batch):
        plain, block = math.std(x, dims), capture(lambda x, dims=dims: math.std(x, dims), x)
        for result in (plain, block(x)):
            assert result.shape == x.shape and torch.equal(result.native("points"), torch.zeros(3))
    assert float(math.std(x, instance)) == pytest.approx(float(VALUES.std(unbiased=False)))
    assert float(math.mean(x, instance)) == 1.0


@pytest.mark.parametrize("boundary", [extrapolation.ANTISYMMETRIC, extrapolation.ANTIREFLECT])
@pytest.mark.parametrize("upstream", [True, False])
def test_constants_change_their_sign_beside_antisymmetric_sides(
    boundary: Any, upstream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = math.expand(wrap(1.5), spatial(x=3))
    if upstream:
        monkeypatch.delattr(type(boundary), "_is_dim_separable")
        assert math.pad(constant, {"x": (1, 2)}, boundary).numpy("x").tolist() == [1.5] * 6
        return
    for value in (constant, wrap([1.5] * 3, spatial("x"))):
        assert math.pad(value, {"x": (1, 2)}, boundary).numpy("x").tolist() == [-1.5, 1.5, 1.5, 1.5, -1.5, -1.5]


def test_curvature_of_a_constant_beside_antisymmetric_sides() -> None:
    u = CenteredGrid(1.5, {"x": extrapolation.ANTISYMMETRIC}, Box(x=1), x=3)
    for step in (field.laplace, capture(field.laplace, u)):
        assert step(u).values.numpy("x") == pytest.approx([-27, 0, -27], rel=1e-6)  # ±3/dx²
