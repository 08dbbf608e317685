"""Floor 4: a PhiFlow step, captured once as a torch graph and run without PhiFlow's overhead."""

from phi_hybrid.tracing.block import PhysicsBlock, capture
from phi_hybrid.tracing.graph import graphs_in
from phi_hybrid.tracing.lines import Line, line_of

__all__ = ["Line", "PhysicsBlock", "capture", "graphs_in", "line_of"]
