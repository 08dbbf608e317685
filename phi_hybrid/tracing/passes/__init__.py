"""What is done to a graph before a compiler sees it; equal to rounding."""

from __future__ import annotations

import torch

from phi_hybrid.tracing.passes.components import Components
from phi_hybrid.tracing.passes.constants import Constants
from phi_hybrid.tracing.passes.edges import Edges
from phi_hybrid.tracing.passes.periodic import Periodic
from phi_hybrid.tracing.passes.rewriter import has_shapes
from phi_hybrid.tracing.tracer import in_place_targets

__all__ = ["compiler_options", "for_compiler"]


def for_compiler(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The same computation in a form that compilers make fast code of, as a module of its own.

    Graphs that write into tensors, and those of older files, which have lost the shapes of their tensors, stay as they are.
    """
    if in_place_targets(module.graph) or not has_shapes(module):
        return module
    module = torch.fx.GraphModule(module, module.graph)
    for rewrite in (Components, Edges, Periodic, Constants):
        module = rewrite(module).run()
    return module


_LOOKUPS = ("embedding", "gather", "index", "scatter", "take")
"""How the names of operators begin that look up by indices, or write by them."""


def compiler_options(module: torch.fx.GraphModule) -> dict[str, bool]:
    """Options of inductor for a graph: no checks of indices where only the samplers look up, whose indices always exist."""
    graphs = [part.graph for part in module.modules() if isinstance(part, torch.fx.GraphModule)]
    names = [str(n.target).removeprefix("aten.") for g in graphs for n in g.nodes if n.op == "call_function"]
    return {} if any(name.startswith(_LOOKUPS) for name in names) else {"assert_indirect_indexing": False}
