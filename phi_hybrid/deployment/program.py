"""A step as data: tensor operations for any batch size, without Python functions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from phi_hybrid.bridge.axes import position_of
from phi_hybrid.bridge.layout import Layout, TreeLayout

GETITEM = "getitem"
"""Target that picks one of several results."""


@dataclass(frozen=True)
class Value:
    """The result of an entry of a program, by its number."""

    number: int


@dataclass(frozen=True)
class BatchSize:
    """A whole number that follows the batch size: factor · size + offset."""

    factor: int
    offset: int = 0


@dataclass(frozen=True)
class Entry:
    """One line of a program.

    Attributes:
        target: `"input"`, `"constant"`, `"getitem"`, a torch operator such as `"aten.add.Tensor"`, or the name of a module.
        args: numbers, strings, types, `Value`, `BatchSize` and lists of them; the name of a constant.
        kwargs: likewise.
    """

    target: str
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """One step for one layout, any batch size: `(*state, *inputs) -> state`.

    Attributes:
        layout: of state and inputs; `batch` is the one batch dim in it.
        output_layout: of the new state.
        batch: name of the batch dim, which the state has.
        dtypes: precisions of state and inputs.
        entries: line by line, inputs first.
        outputs: entries that are the new state.
        constants: tensors by name.
        modules: linear solves and sparse products by name.
    """

    layout: TreeLayout
    output_layout: Layout
    batch: str
    dtypes: tuple[torch.dtype, ...]
    entries: tuple[Entry, ...]
    outputs: tuple[int, ...]
    constants: Mapping[str, torch.Tensor]
    modules: Mapping[str, torch.nn.Module]

    def build(self, device: torch.device, modules: Mapping[str, torch.nn.Module] | None = None) -> torch.fx.GraphModule:
        """The program as a torch module on a device.

        Args:
            device: where the tensors are.
            modules: other modules in the place of `self.modules`.
        """
        root = torch.nn.Module()
        # Names from files never become part of the Python code that torch makes of a graph.
        names = {name: f"part{n}" for n, name in enumerate([*self.modules, *self.constants])}
        for name, module in (self.modules if modules is None else modules).items():
            root.add_module(names[name], module)
        for name, constant in self.constants.items():
            root.register_buffer(names[name], constant.detach().to(device), persistent=False)
        graph = torch.fx.Graph()
        nodes: list[torch.fx.Node] = []
        sizes: dict[BatchSize, torch.fx.Node] = {}
        for entry in self.entries:
            if len(nodes) == len(self.layout.leaves):  # all inputs are there
                sizes[BatchSize(1)] = graph.call_function(torch.ops.aten.sym_size.int, self._measured(nodes))
            nodes.append(_node(graph, entry, nodes, sizes, names, device))
        graph.output(tuple(nodes[n] for n in self.outputs))
        module = torch.fx.GraphModule(root, graph, "Program")
        module.graph.eliminate_dead_code()
        module.recompile()
        return module

    def _measured(self, nodes: list[torch.fx.Node]) -> tuple[torch.fx.Node, int]:
        """A tensor that has the batch dim, and the axis."""
        axes = [position_of(self.batch, axes) for axes in self.layout.leaves]
        return next((node, axis) for node, axis in zip(nodes, axes) if axis is not None)


def _node(
    graph: torch.fx.Graph,
    entry: Entry,
    nodes: list[torch.fx.Node],
    sizes: dict[BatchSize, torch.fx.Node],
    names: Mapping[str, str],
    device: torch.device,
) -> torch.fx.Node:
    def sized(value: BatchSize) -> torch.fx.Node:
        if value not in sizes:
            known = sizes[BatchSize(1)]
            scaled = known if value.factor == 1 else graph.call_function(operator.mul, (known, value.factor))
            sizes[value] = graph.call_function(operator.add, (scaled, value.offset)) if value.offset else scaled
        return sizes[value]

    def resolved(value: Any) -> Any:
        if isinstance(value, Value):
            return nodes[value.number]
        if isinstance(value, (list, tuple)):
            return [resolved(v) for v in value]
        return sized(value) if isinstance(value, BatchSize) else device if isinstance(value, torch.device) else value

    if entry.target == "input":
        return graph.placeholder(f"input{len(nodes)}")
    if entry.target == "constant":
        return graph.create_node("get_attr", names[entry.args[0]])
    args = tuple([resolved(a) for a in entry.args])
    kwargs = {name: resolved(a) for name, a in entry.kwargs.items()}
    if entry.target in names:
        return graph.create_node("call_module", names[entry.target], args, kwargs)
    return graph.call_function(function_of(entry.target), args, kwargs)


def function_of(target: str) -> Callable:
    """The function with this name; an `AttributeError` if torch has none."""
    if target == GETITEM:
        return operator.getitem
    namespace, name, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)
