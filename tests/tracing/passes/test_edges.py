from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases.graphs import rewritten
from torch.nn.functional import pad

from phi_hybrid.tracing.passes.edges import Edges

A = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
PADDINGS: dict[str, Callable] = {
    "1D": lambda a: (pad(a[0], (1, 2), "replicate"),),
    "2D": lambda a: (pad(a, (1, 1, 2, 0), "replicate") * 2,),
    "3D": lambda a: (pad(a[None], (0, 1, 3, 1, 0, 2), "replicate"),),
    "no batch": lambda a: (pad(a[0, 0][None], (0, 2), "replicate").sum(0),),
    "of a padded tensor": lambda a: (pad(pad(a, (1, 0, 0, 0), "replicate"), (1, 0, 0, 1), "replicate"),),
    "one value": lambda a: (pad(a[:, :, :1, :1], (2, 2, 1, 1), "replicate"),),
}


@pytest.mark.parametrize("name", PADDINGS)
def test_edges_are_repeated_by_concatenation(name: str) -> None:
    found = rewritten(PADDINGS[name], Edges, A)
    assert found["cat"] and not any("pad" in operation for operation in found)


def test_padding_that_cuts_stays() -> None:
    assert rewritten(lambda a: (pad(a, (-1, 1, 0, 0), "replicate"),), Edges, A)["replication_pad2d"] == 1
