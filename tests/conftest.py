"""One thread per process: the tests are small, and run side by side."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from cases.staggered import PLAIN_CHECK, with_known_faces
from hypothesis import settings
from phi.field import Field

gc.set_threshold(20_000, 10, 20)  # seldom: it takes a twelfth of the time otherwise
torch.set_num_threads(1)
settings.register_profile("thorough", max_examples=1000)


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the garbage collector need not look at it again."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def quick_fields(request: pytest.FixtureRequest) -> Iterator[None]:
    """Except in benchmarks, which measure PhiFlow as it is."""
    with pytest.MonkeyPatch.context() as patch:
        if "benchmarks" not in request.path.parts:
            patch.setattr(Field, "__post_init__", with_known_faces(PLAIN_CHECK))
        yield


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a GPU where there is one."""
    return torch.device(request.param)
