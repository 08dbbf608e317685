from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from phi_hybrid.tracing.kernels import is_available, pull_back, takes
from phi_hybrid.tracing.kernels.build import library

compiled = pytest.mark.skipif(not is_available(), reason="no compiler")


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("periodic", [True, False])
def test_threads_add_up_to_the_same(dtype: torch.dtype, batch: int, periodic: bool) -> None:
    """Many points, so that several threads share them; the same numbers twice, and to rounding for one thread."""
    values = torch.randn(batch, 2, 40, 50, dtype=dtype)
    points = [60 * torch.rand(batch, 70, 80, dtype=dtype) - 5 for _ in range(2)]
    cotangent = torch.randn(batch, 2, 70, 80, dtype=dtype)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3, 3):
            torch.set_num_threads(count)
            found.append(pull_back(cotangent, values, points, periodic))
    finally:
        torch.set_num_threads(threads)
    for one, three, again in zip(*found):
        torch.testing.assert_close(three, one, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-13)
        assert torch.equal(three, again)


@compiled
def test_sums_of_gradients() -> None:
    """Weights add up to 1, so that gradients by values add up to the cotangents."""
    values, cotangent = torch.randn(2, 1, 9, 11), torch.randn(2, 1, 2000)
    points = [20 * torch.rand(2, 2000) - 5, 20 * torch.rand(2, 2000) - 5]
    for periodic in (True, False):
        by_values, *_ = pull_back(cotangent, values, points, periodic)
        torch.testing.assert_close(by_values.sum((2, 3)), cotangent.sum(2), rtol=0, atol=1e-3)


def test_what_the_kernel_takes() -> None:
    values, points = torch.zeros(1, 1, 4, 4), [torch.zeros(1, 3), torch.zeros(1, 3)]
    assert takes(values, points)
    assert not takes(values.half(), [p.half() for p in points])
    assert not takes(values, [points[0], points[1].double()])
    assert not takes(values, [points[0], torch.zeros(1, 1)])
    assert not takes(values.to("meta"), points)
    assert not takes(values.expand(2, 1, 4, 4), points)
    assert not takes(torch.zeros(1, 1, 2, 2, 2, 2), points * 2)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="no-such-compiler"):
        assert library.__wrapped__("sampling") is None


@compiled
def test_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library.__wrapped__("sampling") is not None
        (built,) = (tmp_path / "phi_hybrid").iterdir()
        before = built.stat().st_mtime_ns
        library.__wrapped__("sampling")
    assert built.stat().st_mtime_ns == before
