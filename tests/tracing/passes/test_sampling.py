from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch.nn.functional import grid_sample

from phi_hybrid.tracing.kernels import is_available
from phi_hybrid.tracing.operators import GridSampler
from phi_hybrid.tracing.passes.sampling import PeriodicSampler, PointSampler

SIZES = {1: (7,), 2: (4, 6), 3: (3, 4, 5)}
NATIVE = [False, is_available()]
needs_kernel = pytest.mark.skipif(not is_available(), reason="no compiler")


def case(dims: int, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 3, *SIZES[dims], generator=generator, dtype=torch.float64)
    points = [30 * torch.rand(2, 5, 4, generator=generator, dtype=torch.float64) - 12 for _ in range(dims)]
    return values, points


def sampler_of(periodic: bool, native: bool) -> Callable[..., torch.Tensor]:
    """Interpolation at points in cells, `(values, points)`."""
    if periodic:
        return PeriodicSampler(native)

    def sample(values: torch.Tensor, points: Sequence[torch.Tensor]) -> torch.Tensor:
        scaled = [2 * p / (size - 1) - 1 for p, size in zip(points, values.shape[2:])]
        return PointSampler(GridSampler(), native)(values, scaled[::-1], 0, 1, True)

    return sample


def by_loop(values: torch.Tensor, points: list[torch.Tensor], periodic: bool) -> torch.Tensor:
    """Corner by corner, point by point."""
    result = torch.zeros(*values.shape[:2], *points[0].shape[1:], dtype=values.dtype)
    for b, *p in itertools.product(*map(range, points[0].shape)):
        x = [c[(b, *p)].item() for c in points]
        if not periodic:
            x = [min(max(c, 0.0), n - 1.0) for c, n in zip(x, values.shape[2:])]
        for corner in itertools.product((0, 1), repeat=len(x)):
            low = [int(c // 1) for c in x]
            weight = 1.0
            for c, i, up in zip(x, low, corner):
                weight *= c - i if up else 1 - (c - i)
            at = [i + up for i, up in zip(low, corner)]
            at = [i % n if periodic else min(i, n - 1) for i, n in zip(at, values.shape[2:])]
            result[(b, slice(None), *p)] += weight * values[(b, slice(None), *at)]
    return result


@pytest.mark.parametrize(("dims", "native"), [(2, False), *((d, NATIVE[1]) for d in SIZES)])
@pytest.mark.parametrize("periodic", [True, False])
def test_values_and_gradients(dims: int, periodic: bool, native: bool) -> None:
    values, points = case(dims)
    sample = sampler_of(periodic, native)
    with torch.no_grad():
        torch.testing.assert_close(sample(values, points), by_loop(values, points, periodic))
    leaves = [t.requires_grad_() for t in (values, *points)]
    assert torch.autograd.gradcheck(lambda v, *p: sample(v, p), leaves)


@needs_kernel
@pytest.mark.parametrize("periodic", [True, False])
def test_points_that_are_no_numbers(periodic: bool) -> None:
    values, points = case(2)
    points[0][0, 0, 0], points[1][1, 2, 3], points[1][0, 1, 1] = torch.nan, torch.inf, 1e30
    result = sampler_of(periodic, True)(values.requires_grad_(), points)
    assert result[0, :, 0, 0].isnan().all()
    assert torch.equal(result[1, :, :2], sampler_of(periodic, True)(*case(2))[1, :, :2])
    result.sum().backward()  # reads and writes nowhere else


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("dims", [2, 3])
def test_points_beyond_the_outermost_values(dims: int, native: bool) -> None:
    """As torch's `grid_sample` with border padding."""
    values, _ = case(dims)
    points = [3 * torch.rand(2, 5, 4, 3, dtype=torch.float64) - 1.5 for _ in range(dims)]
    points = [p[..., 0] if dims == 2 else p for p in points]
    sampler = PointSampler(GridSampler(), native)
    expected = grid_sample(values, torch.stack(points, -1), padding_mode="border", align_corners=True)
    torch.testing.assert_close(sampler(values, points, 0, 1, True), expected)
    nearest = grid_sample(values, torch.stack(points, -1), "nearest", padding_mode="zeros", align_corners=True)
    assert torch.equal(sampler(values, points, 1, 0, True), nearest)
