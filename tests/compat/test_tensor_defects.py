"""Reductions over no dims."""

from __future__ import annotations

import pytest
import torch
from phi.torch.flow import batch, instance, math, spatial, wrap

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
