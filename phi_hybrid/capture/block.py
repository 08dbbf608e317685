"""`capture`: a PhiFlow step becomes a torch module without parameters."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from typing import Any, Callable

import torch

from phi_hybrid import _compat
from phi_hybrid.bridge.layout import Layout, describe_leaves, flatten, matches, unflatten
from phi_hybrid.capture.graph import CapturedGraph, check_against_eager
from phi_hybrid.capture.trace import run_eager
from phi_hybrid.errors import CaptureError, StateError

MAX_GRAPHS = 16
"""Graphs a block keeps; the least recently used one makes room."""


def capture(step: Callable, *example: Any, compile: bool = False, check: bool = True) -> PhysicsBlock:
    """Runs a PhiFlow step once under a tracer and keeps its torch graph: same numbers, no PhiFlow overhead.

    Values and reverse-mode derivatives are those of eager PhiFlow to the last bit (CPU, `compile=False`).
    PhiFlow tensors and fields among the arguments are inputs of the graph. Python numbers are constants of it, and so
    is everything the step closes over. A new signature (shapes, batch dims, precision, device, boundaries, numbers)
    is captured by itself when it first occurs.

    Args:
        step: `state, *inputs -> state`, ordinary PhiFlow code; states are `Field`, `Tensor` or tuples, lists, dicts.
        *example: state and inputs to capture with, e.g. fields of shape `(batch, x, y, vector)`; none to capture later.
        compile: whether to compile the graph with inductor (first call takes 5-30 s; equal to rounding, not to the bit).
        check: whether to compare each new graph with eager PhiFlow on perturbed values.

    Returns:
        `PhysicsBlock`, called like `step`.

    Raises:
        CaptureError: if the step takes values out of tensors, branches on them, draws random numbers outside of torch,
            uses a trainable tensor from outside, or solves a linear system. Names the line and the way out.
        StateError: if the example does not fit together or the step fails in plain PhiFlow.
    """
    block = PhysicsBlock(step, compile=compile, check=check)
    if example:
        block.graph_for(*example)
    return block


class PhysicsBlock(torch.nn.Module):
    """A captured PhiFlow step: `torch.nn.Module` without parameters; see `capture`.

    Two faces: called with PhiFlow states it behaves like the step. `flatten`, `native`, `unflatten` work on torch
    tensors, and `native` with autograd, `torch.func` and `torch.compile`.
    """

    def __init__(self, step: Callable, *, compile: bool = False, check: bool = True) -> None:
        super().__init__()
        self.step = step
        self.compile_graphs = compile
        self.check = check
        self.graphs = torch.nn.ModuleList()  # most recently captured first
        self._layouts: list[Layout] = []  # of arguments, most recently flattened first
        self._captures = 0

    def forward(self, *args: Any) -> Any:
        """One step on PhiFlow states, same arguments and result as the step itself."""
        tensors, layout = self._signature(args)
        graph = self._graph(layout, tensors)
        return unflatten(graph.output_layout, graph(*tensors))

    def flatten(self, *args: Any) -> tuple[torch.Tensor, ...]:
        """State and inputs as torch tensors, in the order that `native` takes them."""
        tensors, layout = self._signature(args)
        self._layouts = [layout, *(known for known in self._layouts if known != layout)][:MAX_GRAPHS]
        return tensors

    def native(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One step on torch tensors, `(*state, *inputs) -> state`, differentiable.

        Args:
            *tensors: as returned by `flatten`; batch sizes, precision and device may differ from those flattened.

        Raises:
            StateError: if no state seen so far has tensors of these shapes.
        """
        for graph in self.graphs:
            if graph.accepts(tensors):
                return graph(*tensors)
        return self._graph(self._layout_of(tensors), tensors)(*tensors)

    def unflatten(self, tensors: tuple[torch.Tensor, ...]) -> Any:
        """PhiFlow state from the tensors that `native` returned."""
        for graph in self.graphs:
            if matches(graph.output_layout, tensors):
                return unflatten(graph.output_layout, tensors)
        raise StateError(
            f"tensors of shapes {[tuple(t.shape) for t in tensors]} are no result of this block, whose results are "
            f"{[describe_leaves(g.output_layout) for g in self.graphs]}; pass what native() returned"
        )

    def graph_for(self, *args: Any) -> CapturedGraph:
        """The graph for these PhiFlow arguments, captured if need be."""
        tensors, layout = self._signature(args)
        return self._graph(layout, tensors)

    def _signature(self, args: tuple) -> tuple[tuple[torch.Tensor, ...], Layout]:
        check_arguments(self.step, args)
        tensors, layout = flatten(args)
        check_tensors(tensors, layout)
        return tensors, layout

    def _layout_of(self, tensors: tuple[torch.Tensor, ...]) -> Layout:
        known = [*self._layouts, *(g.layout for g in self.graphs)]
        for layout in known:
            if matches(layout, tensors):
                check_tensors(tensors, layout)
                return layout
        raise StateError(
            f"no state with tensors of shapes {[tuple(t.shape) for t in tensors]} is known; known are "
            f"{sorted({describe_leaves(k) for k in known})}. Call flatten() with such a state first, or use torch.vmap "
            "for further batch axes"
        )

    def _graph(self, layout: Layout, tensors: tuple[torch.Tensor, ...]) -> CapturedGraph:
        for graph in self.graphs:
            if graph.layout == layout and graph.accepts(tensors):
                return graph
        return self._capture(layout, tensors)

    def _capture(self, layout: Layout, tensors: tuple[torch.Tensor, ...]) -> CapturedGraph:
        if _compat.functorch_active():  # tracing needs plain tensors; their values do not matter to it
            with _compat.outside_transformations():
                tensors = tuple(torch.ones(t.shape, dtype=t.dtype, device=t.device) for t in tensors)
                return self._capture(layout, tensors)
        tensors = tuple(t.detach() for t in tensors)
        try:
            with torch.random.fork_rng(enabled=True):
                run_eager(self.step, layout, tensors)
        except Exception as error:
            raise StateError(
                f"the step fails in plain PhiFlow for arguments of shape {describe_leaves(layout)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        graph = CapturedGraph(self.step, layout, tensors, self.compile_graphs)
        if self.check:
            check_against_eager(graph, self.step, tensors)
        self.graphs = torch.nn.ModuleList([graph, *self.graphs][:MAX_GRAPHS])
        self._captures += 1
        if self._captures % MAX_GRAPHS == 0:
            warnings.warn(
                f"this step was captured {self._captures} times, last for {describe_leaves(layout)}. Python numbers "
                "among the arguments are constants of the graph: pass what changes from call to call as a tensor "
                "(phi.math.wrap), and keep batch sizes fixed",
                RuntimeWarning,
                stacklevel=4,
            )
        return graph

    def __deepcopy__(self, memo: dict) -> PhysicsBlock:
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__dict__.update({k: v if k == "step" else copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        return clone

    def __getstate__(self) -> dict[str, Any]:
        """A local function cannot be pickled: the graphs travel, new signatures need the step again."""
        state = dict(self.__dict__)
        try:
            pickle.dumps(self.step)
        except Exception:
            state["step"] = LostStep(getattr(self.step, "__qualname__", repr(self.step)))
        return state


class LostStep:
    """Stands for a step that could not be pickled together with its block."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> Any:
        raise CaptureError(
            f"this block was unpickled without its step {self.name}, a local function, so it knows only the signatures "
            "captured before. Way out: define the step at module level, or call the block with this signature before "
            "pickling"
        )


def check_arguments(step: Callable, args: tuple) -> None:
    """Names missing and superfluous arguments before any work is done."""
    if isinstance(step, LostStep):
        return
    try:
        signature = inspect.signature(step)
    except (TypeError, ValueError):
        return  # builtins have none
    try:
        signature.bind(*args)
    except TypeError as error:
        raise StateError(
            f"the step takes {signature} but got {len(args)} arguments: {error}; pass the state and then every input, "
            "in this order"
        ) from None


def check_tensors(tensors: tuple[torch.Tensor, ...], layout: Layout) -> None:
    """All arguments of a step have one precision and one device.

    Raises:
        StateError: naming the clash.
    """
    floats = sorted({str(t.dtype) for t in tensors if t.is_floating_point()})
    if len(floats) > 1:
        raise StateError(
            f"arguments of different precision: {', '.join(floats)} in {describe_leaves(layout)}. Convert them, e.g. "
            "phi.math.to_float within `with phi.math.precision(64):`"
        )
    devices = sorted({str(t.device) for t in tensors})
    if len(devices) > 1:
        raise StateError(f"arguments on different devices: {', '.join(devices)}. Move them with phi.math.to_device")
