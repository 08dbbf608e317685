"""What a graph consists of."""

from __future__ import annotations

import torch
from phi.torch.flow import Tensor, math, spatial

from phi_hybrid import capture


def test_a_frozen_network_becomes_constants_and_leaves_no_parameters() -> None:
    network = torch.nn.Linear(5, 5).requires_grad_(False)

    def step(u: Tensor) -> Tensor:
        return math.wrap(network(u.native("x")), spatial("x"))

    u = math.random_normal(spatial(x=5))
    block = capture(step, u)
    assert not list(block.parameters()) and not block.state_dict()
    assert torch.equal(block(u).native("x"), network(u.native("x")))


def test_a_compiled_function_is_captured_by_its_operations() -> None:
    """Compiled code in the graph would be a constant: torch does not tell what it computes."""
    compiled = torch.compile(lambda x: x.sin() * 2)
    u = math.random_normal(spatial(x=5))
    graph = capture(lambda u: math.wrap(compiled(u.native("x")), spatial("x")), u, check=False).known[0].module
    assert [n.name for n in graph.graph.nodes if n.op == "call_function"] == ["sin", "mul"]
