"""One captured graph: fixed layout, shapes, precision and device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from phi_hybrid import _compat
from phi_hybrid.bridge.layout import TreeLayout
from phi_hybrid.linear_solve import Solves
from phi_hybrid.steps.face import Tensors, signature_of
from phi_hybrid.tracing.fingerprint import Fingerprint
from phi_hybrid.tracing.passes import compiler_options, for_compiler
from phi_hybrid.tracing.passes.rewriter import shapes_of, with_shapes
from phi_hybrid.tracing.tracer import trace

TOGETHER = 4
"""Steps in one compiled program: more are hardly faster, but take longer to compile."""


class CapturedGraph(torch.nn.Module):
    """The torch graph of a step for one signature. Constants are non-persistent buffers."""

    def __init__(
        self, step: Callable, layout: TreeLayout, tensors: tuple[torch.Tensor, ...], compile: bool, solves: Solves
    ) -> None:
        super().__init__()
        self.fingerprint: Fingerprint | None = Fingerprint(step)
        self.layout = layout
        self.signature = signature_of(tensors)
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.compile = compile
        self.module, self.output_layout = trace(step, layout, tensors, solves)

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        return self._program(1)(*tensors) if self._runs_compiled() else self.module(*tensors)

    @property
    def together(self) -> int:
        """Steps that `several` runs as one compiled program."""
        return TOGETHER if self._runs_compiled() else 1

    def several(self, state: Tensors, inputs: Sequence[Tensors]) -> list[Tensors]:
        """The states after one step for each of the inputs, by one compiled program."""
        results = self._program(len(inputs))(*state, *(t for own in inputs for t in own))
        return [results[n : n + len(state)] for n in range(0, len(results), len(state))]

    def _runs_compiled(self) -> bool:
        return self.compile and _compat.runs_as_it_is()

    def for_compiler(self) -> torch.fx.GraphModule:
        """The same computation as a part of larger programs, equal to rounding."""
        return self.__dict__.setdefault("_for_compiler", for_compiler(self.module))

    def is_fresh(self) -> bool:
        """Tells if what the step closes over is what it was at capture; always, after unpickling."""
        return self.fingerprint is None or self.fingerprint.holds()

    def _program(self, steps: int) -> Callable:
        programs = self.__dict__.setdefault("_programs", {})
        if steps not in programs:
            one = self.for_compiler()
            several = one if steps == 1 else unrolled(one, steps)
            call = several.forward  # of the module itself, since a compiled module takes 10 µs to be called
            options = compiler_options(one) | _only_guards_of_arguments()
            programs[steps] = torch.compile(call, dynamic=False, options=options)
        return programs[steps]

    def _forget_programs(self) -> None:
        self.__dict__.pop("_programs", None)
        self.__dict__.pop("_for_compiler", None)

    def _apply(self, fn: Callable, recurse: bool = True) -> CapturedGraph:
        """Follows a move to another device; the precision belongs to the signature and stays."""
        device = fn(torch.empty(0, device=self.device)).device
        if device == self.device:
            return self
        super()._apply(lambda t: t.to(device), recurse)
        for part in self.module.modules():  # ways back of custom gradients are graphs of their own
            if isinstance(part, torch.fx.GraphModule):
                _put_on(part, device)
        self._forget_programs()
        self.device, self.signature = device, self.signature.on(device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k not in ("_programs", "_for_compiler")}
        return state | {"shapes": shapes_of(self.module)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, deep or unpickled, in which torch has made persistent buffers of the constants."""
        shapes = state.pop("shapes", [])
        super().__setstate__(state)
        with_shapes(self.module, shapes)
        for part in self.module.modules():
            for name, constant in list(part.named_buffers(recurse=False)):
                part.register_buffer(name, constant, persistent=False)


def _only_guards_of_arguments() -> dict[str, Any]:
    """Options of `torch.compile`: look at each call at the arguments and at torch's global state, not at the code behind.

    A program's graph never changes, and looking at each of its modules, constants and operators takes longer than small steps.
    Older versions of torch know no such option.
    """

    def chosen(guards: Sequence[Any]) -> list[bool]:
        return [not (guard.is_global or "self" in guard.name) for guard in guards]

    return {"guard_filter_fn": chosen} if hasattr(torch.compiler, "skip_all_guards_unsafe") else {}


def unrolled(module: torch.fx.GraphModule, steps: int) -> torch.fx.GraphModule:
    """Several steps as one graph: `(*state, *inputs of the first step, *inputs of the second, …)` to all states.

    A graph rather than a loop: torch counts the compilations of every piece of code and gives up after a few.
    """
    graph, results = torch.fx.Graph(), []
    old = list(module.graph.find_nodes(op="placeholder"))
    count = len(module.graph.output_node().args[0])
    state = [graph.placeholder(f"state{i}") for i in range(count)]
    inputs = [[graph.placeholder(f"input{n}_{i}") for i in range(len(old) - count)] for n in range(steps)]
    for own in inputs:
        state = list(graph.graph_copy(module.graph, dict(zip(old, [*state, *own]))))
        results += state
    graph.output(tuple(results))
    return torch.fx.GraphModule(module, graph)


def _put_on(module: torch.fx.GraphModule, device: torch.device) -> None:
    """Makes the tensors that a graph creates on this device."""

    def moved(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in module.graph.nodes:
        node.args, node.kwargs = torch.fx.node.map_aggregate((node.args, node.kwargs), moved)
    module.recompile()


def graphs_in(module: torch.nn.Module) -> list[torch.fx.GraphModule]:
    """The torch graphs of all captured steps that are part of a module, in the order in which it holds them."""
    return [part.module for part in module.modules() if isinstance(part, CapturedGraph)]
