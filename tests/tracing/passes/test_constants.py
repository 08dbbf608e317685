from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases.graphs import graph_of, operations, rewritten

from phi_hybrid.tracing.passes.constants import Constants

A = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
THIRD, THREE = torch.tensor(0.3), torch.tensor(3)
PLAIN = torch.randn(5, 6)
ROWS, EVERYWHERE = torch.randn(5, 1).expand(5, 6).contiguous(), torch.full((2, 5, 6), 0.3)

NUMBERS: dict[str, Callable] = {
    "0-dimensional": lambda a: (a * THIRD, THIRD + a, a / THIRD),
    "full": lambda a: (a - EVERYWHERE, EVERYWHERE * a),
}
KEPT: dict[str, Callable] = {
    "of a higher precision": lambda a: (a * EVERYWHERE.double(),),
    "that gives the shape": lambda a: (a[:1] * EVERYWHERE,),
    "that is subtracted from": lambda a: (THIRD - a,),
    "of different numbers": lambda a: (a * PLAIN,),
    "that is no operand": lambda a: (EVERYWHERE, a),
    "of integers": lambda a: (a * THREE,),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_constants_become_numbers(name: str) -> None:
    assert rewritten(NUMBERS[name], Constants, A)["_tensor_constant0"] == 0
    assert not any(node.op == "get_attr" for node in Constants(graph_of(NUMBERS[name], A)).run().graph.nodes)


@pytest.mark.parametrize("name", KEPT)
def test_constants_that_stay(name: str) -> None:
    rewritten(KEPT[name], Constants, A)
    assert any(node.op == "get_attr" for node in Constants(graph_of(KEPT[name], A)).run().graph.nodes)


def test_repeated_numbers_are_kept_once() -> None:
    assert rewritten(lambda a: (a * ROWS, ROWS.exp() + a), Constants, A)["expand"] == 2
    module = Constants(graph_of(lambda a: (a * ROWS,), A)).run()
    assert [tuple(b.shape) for b in module.buffers()] == [(5, 1)]
    assert operations(module)["expand"] == 1
    result = module(A)[0]
    result += 1  # which writes into no constant
    assert torch.equal(module(A)[0], A * ROWS)
