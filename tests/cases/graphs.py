"""Graphs of torch functions, before and after a pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from phi_hybrid.tracing.operators import GridSampler
from phi_hybrid.tracing.passes.rewriter import Rewriter

_aten = torch.ops.aten


def graph_of(function: Callable, *tensors: torch.Tensor) -> GraphModule:
    """The graph of a function with a tuple of results, its samplers being modules as in captured steps."""
    module = make_fx(function)(*tensors)
    module.add_submodule("grid_sampler", GridSampler())
    for node in module.graph.nodes:
        if node.target is _aten.view.default:
            node.target = _aten.reshape.default
        if node.target in (_aten.grid_sampler_2d.default, _aten.grid_sampler_3d.default):
            node.op, node.target = "call_module", "grid_sampler"
    module.recompile()
    return module


def operations(module: GraphModule) -> Counter[str]:
    """How often each operation occurs."""
    return Counter(str(node.target).removeprefix("aten.").split(".")[0] for node in module.graph.nodes)


def rewritten(
    function: Callable, rewriter: type[Rewriter], *tensors: torch.Tensor, rounding: float = 0.0
) -> Counter[str]:
    """Operations of the graph of a function after a pass, which has changed its values by rounding at most."""
    module = rewriter(graph_of(function, *tensors)).run()
    for new, old in zip(module(*tensors), function(*tensors), strict=True):
        assert new.dtype == old.dtype
        torch.testing.assert_close(new, old, rtol=0, atol=rounding, equal_nan=True)
    return operations(module)
