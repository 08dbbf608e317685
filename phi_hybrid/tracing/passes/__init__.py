"""What is done to a graph before a compiler sees it; equal to rounding."""

from __future__ import annotations

import torch

from phi_hybrid.tracing.passes.components import Components
from phi_hybrid.tracing.passes.periodic import Periodic
from phi_hybrid.tracing.passes.rewriter import has_shapes
from phi_hybrid.tracing.tracer import in_place_targets

__all__ = ["for_compiler"]


def for_compiler(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The same computation in a form that compilers make fast code of, as a module of its own.

    Graphs that write into tensors, and those of older files, which have lost the shapes of their tensors, stay as they are.
    """
    if in_place_targets(module.graph) or not has_shapes(module):
        return module
    module = torch.fx.GraphModule(module, module.graph)
    for rewrite in (Components, Periodic):
        module = rewrite(module).run()
    return module
