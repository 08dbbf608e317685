"""Nodes of a graph know the line of the step that they come from."""

from __future__ import annotations

import inspect

import torch
from cases.small import faces
from phi.torch.flow import Field, advect, fluid, math

import phi_hybrid as ph
from phi_hybrid.tracing import line_of


def shifted(v: Field) -> Field:
    return v + math.stop_gradient(v)  # a helper's line, not that of its caller


def step(v: Field) -> Field:
    v = advect.semi_lagrangian(v, v, 0.1)
    v = shifted(v)
    return fluid.make_incompressible(v)[0]


def text_of(node: torch.fx.Node) -> str:
    return str(line_of(node)).split(": ", 1)[1]


def test_nodes_know_the_innermost_line_of_the_step() -> None:
    graph = ph.capture(step).graph_for(faces("closed")).module.graph
    texts = {
        str(n.target).rstrip("0123456789"): text_of(n)
        for n in graph.nodes
        if n.op in ("call_function", "call_module") and line_of(n)
    }
    assert texts["grid_sampler"] == "v = advect.semi_lagrangian(v, v, 0.1)"
    assert texts["aten.detach.default"].startswith("return v + math.stop_gradient(v)")
    assert texts["linear_solve"] == "return fluid.make_incompressible(v)[0]"
    assert {line_of(n) for n in graph.nodes if n.op == "placeholder"} == {None}
    first = inspect.getsourcelines(step)[1]
    assert {line_of(n).number for n in graph.nodes if n.target == "grid_sampler"} == {first + 1}
