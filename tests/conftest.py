"""One thread per process: the tests are small, and run side by side."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import settings

gc.set_threshold(20_000, 10, 20)  # seldom: it takes a twelfth of the time otherwise
torch.set_num_threads(1)
settings.register_profile("thorough", max_examples=1000)


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the garbage collector need not look at it again."""
    gc.freeze()


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a GPU where there is one."""
    return torch.device(request.param)
