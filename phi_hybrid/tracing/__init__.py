"""Floor 4: a PhiFlow step, captured once as a torch graph and run without PhiFlow's overhead."""

from phi_hybrid.tracing.block import PhysicsBlock, capture
from phi_hybrid.tracing.graph import graphs_in
from phi_hybrid.tracing.lines import Line, line_of
from phi_hybrid.tracing.operators import SparseProduct
from phi_hybrid.tracing.tracer import fold_constants, owner_of_memory

__all__ = [
    "Line",
    "PhysicsBlock",
    "SparseProduct",
    "capture",
    "fold_constants",
    "graphs_in",
    "line_of",
    "owner_of_memory",
]
