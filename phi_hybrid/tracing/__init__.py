"""Floor 4: a PhiFlow step, captured once as a torch graph and run without PhiFlow's overhead."""

from phi_hybrid.tracing.block import PhysicsBlock, capture

__all__ = ["PhysicsBlock", "capture"]
