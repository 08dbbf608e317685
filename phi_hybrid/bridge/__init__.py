"""Floor 1: PhiFlow states ↔ flat torch tensors, and fields ↔ network channels."""

from phi_hybrid.bridge.channels import ChannelMap, from_channels, to_channels
from phi_hybrid.bridge.layout import Layout, flatten, unflatten

__all__ = ["ChannelMap", "Layout", "flatten", "from_channels", "to_channels", "unflatten"]
