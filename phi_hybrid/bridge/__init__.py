"""Floor 1: PhiFlow states ↔ flat torch tensors, and fields ↔ network channels."""

from phi_hybrid.bridge.channels import *
from phi_hybrid.bridge.layout import Layout, flatten

__all__ = ["ChannelMap", "Layout", "flatten", "from_channels", "to_channels"]
