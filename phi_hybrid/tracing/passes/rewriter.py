"""A walk along a graph that writes another one of the same values, over intermediate values that need not exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from phi_hybrid.tracing.tracer import fold_constants, own_memory

Rule = Callable[..., Any]
"""`(node, *args, **kwargs) -> value`: the new value of a node, or `NotImplemented` to copy it."""


class Rewriter:
    """Base of the passes that represent some tensors by others: their parts, or what they are periodic views of.

    Subclasses name `rules` by operator and say how a value becomes a node of the new graph (`plain`). What has no rule is
    copied, with plain arguments. What a pass writes twice with equal arguments is there once. Each node has its
    shape and precision in `meta["val"]`, a tensor on the meta device.
    """

    rules: Mapping[Any, str] = {}
    """Names of methods, `Rule`s, by operator, or by name of a submodule."""

    def __init__(self, module: GraphModule) -> None:
        self.module, self.graph = module, Graph()
        self.values: dict[Node, Any] = {}
        self._numbered: dict[Any, Node] = {}

    def plain(self, value: Any) -> Any:
        """A value, or a nested list of them, as nodes of the new graph."""
        if isinstance(value, (tuple, list)):
            return type(value)(self.plain(v) for v in value)
        return value

    def run(self) -> GraphModule:
        """The new module; constants that changed are folded."""
        for node in self.module.graph.nodes:
            if node.op == "output":
                self.graph.output(self.plain(self.new(node.args[0])))
            else:
                self.values[node] = self._rewritten(node)
        module = GraphModule(self.module, self.graph)
        module._tracer_cls = torch.fx.Tracer
        fold_constants(module)
        own_memory(self.graph)
        self.graph.eliminate_dead_code()
        module.recompile()
        return module

    def new(self, value: Any) -> Any:
        """Arguments of the old graph in terms of values of this one."""
        if isinstance(value, Node):
            return self.values[value]
        if isinstance(value, (tuple, list)):
            return type(value)([self.new(v) for v in value])
        return value

    def emit(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A call of a function in the new graph, once for equal arguments."""
        key = (target, _hashable(args), _hashable(kwargs))
        if key not in self._numbered:
            node = self.graph.call_function(target, args, kwargs)
            node.meta["val"] = target(*self._shapes(args), **self._shapes(kwargs))
            self._numbered[key] = node
        return self._numbered[key]

    def ndim(self, value: Any) -> int:
        """Number of axes of a value."""
        return value.meta["val"].ndim

    def size(self, node: Node, axis: int) -> int:
        """Size of a node of the new graph along an axis."""
        return node.meta["val"].shape[axis]

    def _rewritten(self, node: Node) -> Any:
        rule = self.rules.get(node.target) if node.op in ("call_function", "call_module") else None
        if rule is None and node.op == "call_function" and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            rule = self.rules.get(torch.Tag.pointwise)
        if rule is not None:
            kwargs = {k: self.new(v) for k, v in node.kwargs.items()}
            value = getattr(self, rule)(node, *self.new(node.args), **kwargs)
            if value is not NotImplemented:
                return value
        return self._copied(node)

    def _copied(self, node: Node) -> Node:
        if node.op == "call_function" and "val" not in node.meta:  # written by this package, not by the tracer
            return self.emit(node.target, *self.plain(self.new(node.args)), **dict(node.kwargs))
        copy = self.graph.node_copy(node, lambda n: self.plain(self.values[n]))
        value = self.module.get_buffer(node.target) if node.op == "get_attr" else node.meta["val"]
        copy.meta["val"] = _meta(value)
        return copy

    def _shapes(self, value: Any) -> Any:
        if isinstance(value, Node):
            return value.meta["val"]
        if isinstance(value, (tuple, list)):
            return type(value)([self._shapes(v) for v in value])
        return {k: self._shapes(v) for k, v in value.items()} if isinstance(value, dict) else value


def has_shapes(module: GraphModule) -> bool:
    """Tells if every node has its shape, but for those that have it from their arguments."""
    known = ("get_attr", "output")
    return all("val" in n.meta or n.op in known or n.target is torch.ops.aten.clone.default for n in module.graph.nodes)


def shapes_of(module: GraphModule) -> list[Any]:
    """What `with_shapes` gives to a copy of the graph that has lost it."""
    return [_meta(node.meta.get("val")) for node in module.graph.nodes]


def with_shapes(module: GraphModule, shapes: list[Any]) -> None:
    """Shapes and precisions of the nodes of a graph, in order."""
    for node, shape in zip(module.graph.nodes, shapes):
        if shape is not None:
            node.meta["val"] = shape


def _meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return [_meta(v) for v in value] if isinstance(value, (tuple, list)) else value


def _hashable(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return (type(value), *map(_hashable, value))
    if isinstance(value, dict):
        return tuple((k, _hashable(v)) for k, v in sorted(value.items()))
    return type(value), repr(value) if isinstance(value, float) else value
