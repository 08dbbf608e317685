"""Floor 2: a PhiFlow step, captured once as a torch graph and run without PhiFlow's overhead."""

from phi_hybrid.capture.block import PhysicsBlock, capture
from phi_hybrid.capture.face import NativeFace, NativeStep
from phi_hybrid.capture.plain import PlainStep

__all__ = ["NativeFace", "NativeStep", "PhysicsBlock", "PlainStep", "capture"]
