from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases.graphs import graph_of, operations, rewritten

from phi_hybrid.tracing.passes.components import MOST_PARTS, Components

A, B = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)), torch.randn(2, 5, 6)
C = torch.randn(5, 6, 2)
SCALE, LAST = torch.tensor([2.0, 3.0]), torch.randn(2)


def apart(v: torch.Tensor, axis: int = -1) -> tuple[torch.Tensor, ...]:
    return v.unbind(axis)


CASES: dict[str, Callable] = {
    "pointwise": lambda a, b: apart(torch.exp(torch.stack([a, b], 3)) * 2),
    "constant per component": lambda a, b: apart(torch.stack([a, b], 3) / SCALE),
    "plain tensor with the axis": lambda a, b: apart(torch.stack([a, b], 3) - C),
    "plain tensor without it": lambda a, b: apart(torch.stack([a, b], 1) - a[:, None], 1),
    "two stacks": lambda a, b: apart(torch.stack([a, b], 3) * torch.stack([b, a], 3)),
    "stacks along two axes": lambda a, b: apart(torch.stack([torch.stack([a, b], 3), torch.stack([b, a], 3)], 4).sum(4)),
    "unlike axes": lambda a, b: apart((torch.stack([a, b], 3)[:, :, :, :, None] * torch.stack([b, a], 3)[:, :, :, None, :]).sum(-1)),
    "select": lambda a, b: (torch.stack([a, b], 3)[..., 1], torch.stack([a, b], 0)[1, :, 2][:, None]),
    "slice": lambda a, b: apart(torch.stack([a, b], 3)[:, 1:-1, 2:]),
    "slice along it": lambda a, b: (torch.stack([a, b], 3)[..., 1:] * 2,),
    "cat across it": lambda a, b: apart(torch.cat([torch.stack([a, b], 3), torch.stack([b, a], 3), C[None].expand(2, 5, 6, 2)], 1)),
    "cat of single components": lambda a, b: apart(torch.cat([a[..., None], b[..., None]], 3).flip([3]) * SCALE),
    "cat along it": lambda a, b: (torch.cat([torch.stack([a, b], 3), torch.stack([b, a], 3)], 3),),
    "permute": lambda a, b: apart(torch.stack([a, b], 3).permute(0, 3, 2, 1), 1),
    "unsqueeze": lambda a, b: apart(torch.stack([a, b], 1).unsqueeze(1).unsqueeze(-1), 2),
    "squeeze": lambda a, b: apart(torch.stack([a[:1], b[:1]], 3).squeeze(0)),
    "flip": lambda a, b: apart(torch.stack([a, b], 3).flip([-1])),
    "sum": lambda a, b: (torch.stack([a, b], 3).sum(3),),
    "sum over several axes": lambda a, b: (torch.stack([a, b], 1).sum((1, 2)),),
    "sum across it": lambda a, b: (torch.stack([a, b], 3).sum(1),),
    "where": lambda a, b: apart(torch.where(torch.stack([a, b], 3) > 0, torch.stack([b, a], 3), 1.0)),
    "another precision": lambda a, b: apart(torch.stack([a, b], 3).double() * 2),
    "precision of numbers": lambda a, b: ((torch.stack([a.sum(), b.sum()]) * LAST.double()),),
    "reshape": lambda a, b: (torch.stack([a, b], 3).reshape(-1),),
    "result": lambda a, b: (torch.stack([a, b], 3) * 2, a),
}  # fmt: skip
WHOLE = {"slice along it", "cat along it", "sum across it", "precision of numbers", "reshape", "result"}
"""Cases in which a vector must be put together after all."""

REORDERED = {"sum across it", "sum over several axes", "unlike axes"}
"""Cases in which numbers are added in another order."""


@pytest.mark.parametrize("name", CASES)
def test_vectors_are_put_together_only_where_they_must_be(name: str) -> None:
    rounding = 1e-5 if name in REORDERED else 0.0
    assert (rewritten(CASES[name], Components, A, B, rounding=rounding)["stack"] > 0) == (name in WHOLE)


def test_long_stacks_stay() -> None:
    assert rewritten(lambda *t: ((torch.stack(t) * 2)[0],), Components, *[A] * (MOST_PARTS + 1))["stack"] == 1


def test_equal_operations_are_written_once() -> None:
    def both(number: float) -> Callable:
        return lambda a, b: (*apart(torch.stack([a, b], 3) * 1), *apart(torch.stack([a, b], 3) * number))

    assert rewritten(both(1), Components, A, B)["mul"] == 2
    assert rewritten(both(1.0), Components, A, B)["mul"] == 4


def test_random_numbers_are_drawn_as_often_as_before() -> None:
    graph = graph_of(lambda a: (torch.rand_like(a), torch.rand_like(a)), A)
    assert operations(Components(graph).run())["rand_like"] == 2
