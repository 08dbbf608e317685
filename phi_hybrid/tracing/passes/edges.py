"""Repeated edges as concatenations: compilers fuse those, and their gradients, with what comes before and after.

Torch's operators that repeat the outermost values have gradients that inductor calls one by one. Exact, but for the order
of sums in gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from phi_hybrid.tracing.passes.rewriter import Rewriter

_aten = torch.ops.aten


class Edges(Rewriter):
    """Replaces paddings that repeat the outermost values."""

    rules = {
        _aten.replication_pad1d.default: "pad",
        _aten.replication_pad2d.default: "pad",
        _aten.replication_pad3d.default: "pad",
    }

    def pad(self, node: Node, value: Node, widths: list[int]) -> Any:
        """Widths are those of the last axis, lower and upper, then those of the one before."""
        if any(not isinstance(w, int) or w < 0 for w in widths):
            return NotImplemented
        for n, (lower, upper) in enumerate(zip(widths[::2], widths[1::2])):
            axis = self.ndim(value) - 1 - n
            last = self.size(value, axis) - 1
            pieces = [self._edge(value, axis, 0)] * lower + [value] + [self._edge(value, axis, last)] * upper
            value = value if len(pieces) == 1 else self.emit(_aten.cat.default, pieces, axis)
        return value

    def _edge(self, value: Node, axis: int, at: int) -> Node:
        return self.emit(_aten.slice.Tensor, value, axis, at, at + 1)
