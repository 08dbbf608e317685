"""Constants in few numbers: those that repeat one number become that number, those that repeat along an axis are kept once.

Compilers check every tensor of a graph at each call, and read it from memory. Exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from phi_hybrid.tracing.passes.rewriter import Rewriter
from phi_hybrid.tracing.passes.sampling import number_of

_aten = torch.ops.aten

SMALL = 16
"""Numbers in constants that stay as they are."""


class Constants(Rewriter):
    """Makes the constants of a graph small."""

    rules = {
        _aten.add.Tensor: "pointwise",
        _aten.sub.Tensor: "pointwise",
        _aten.mul.Tensor: "pointwise",
        _aten.div.Tensor: "pointwise",
    }

    def run(self) -> GraphModule:
        module = super().run()
        _keep_once(module)  # at the end, since repeating a constant could be folded again
        module.recompile()
        return module

    def pointwise(self, node: Node, *args: Any, **kwargs: Any) -> Any:
        """With a Python number in place of a constant that gives neither shape nor precision to the result."""
        if len(args) != 2 or kwargs or not isinstance(args[0], Node):
            return NotImplemented
        a, b = args
        if node.target in (_aten.add.Tensor, _aten.mul.Tensor) and self._number(a, b) is not None:
            a, b = b, a
        number = self._number(b, a)
        return NotImplemented if number is None else self.emit(node.target, a, number)

    def _number(self, constant: Any, other: Any) -> float | None:
        if not isinstance(constant, Node) or constant.op != "get_attr" or not isinstance(other, Node):
            return None
        own, given = constant.meta["val"], other.meta["val"]
        if own.dtype != given.dtype or not own.is_floating_point() or given.ndim == 0:
            return None
        if torch.broadcast_shapes(own.shape, given.shape) != given.shape:
            return None
        return number_of(self.module, constant)


def _keep_once(module: GraphModule) -> None:
    """Keeps one entry along the axes that a constant does not vary along."""
    for node in list(module.graph.find_nodes(op="get_attr")):
        constant = module.get_buffer(node.target)
        axes = [a for a, n in enumerate(constant.shape) if n > 1 and bool((constant == constant.narrow(a, 0, 1)).all())]
        if constant.numel() <= SMALL or not axes:
            continue
        once = constant[tuple(slice(0, 1) if a in axes else slice(None) for a in range(constant.ndim))].clone()
        module.register_buffer(node.target, once, persistent=False)
        with module.graph.inserting_after(node):
            repeated = module.graph.call_function(_aten.expand.default, (node, list(constant.shape)))
        node.replace_all_uses_with(repeated, delete_user_cb=lambda user, own=repeated: user is not own)
