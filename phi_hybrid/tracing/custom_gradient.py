"""Functions with a gradient of their own (`math.custom_gradient`, `torch.autograd.Function`) as part of a graph.

Their values are traced like everything else, but detached; a second graph holds the way back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from phi_hybrid import _compat

Tensors = list[torch.Tensor]

_numbers = itertools.count()
_under_way: dict[int, TracedFunction] = {}
"""Functions called in traces that are not complete yet, found by number from the operator below."""


class Context:
    """Stands for the `ctx` of a `torch.autograd.Function`: keeps tensors and attributes from the way there to the way back."""

    def __init__(self, count: int) -> None:
        self.saved_tensors: tuple[torch.Tensor, ...] = ()
        self.needs_input_grad = (True,) * count

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: torch.Tensor) -> None:
        """Gradients of such results are zero anyway, or are not asked for."""

    def set_materialize_grads(self, value: bool) -> None:
        """Gradients are always given as tensors here."""

    def holding(self, tensors: Sequence[torch.Tensor]) -> Context:
        """The same context with other tensors in the places of its own, see `tensors`."""
        other, rest = Context(len(self.needs_input_grad)), iter(tensors)
        for name, value in vars(self).items():
            vars(other)[name] = next(rest) if isinstance(value, torch.Tensor) else value
        other.saved_tensors = tuple(t if t is None else next(rest) for t in self.saved_tensors)
        return other

    @property
    def tensors(self) -> Tensors:
        """Everything that depends on the inputs, attributes first."""
        attributes = [v for v in vars(self).values() if isinstance(v, torch.Tensor)]
        return [*attributes, *(t for t in self.saved_tensors if t is not None)]


class TracedFunction:
    """One call of a function with its own gradient, while a step is traced."""

    def __init__(self, function: type[torch.autograd.Function], args: Sequence[Any]) -> None:
        self.function, self.args = function, args
        self.inputs = [a for a in args if isinstance(a, torch.Tensor)]
        self.number = next(_numbers)
        self.context = Context(len(args))

    def run(self) -> Any:
        """The result, like that of `function.apply(*args)`, with the operator that marks its gradient in the trace."""
        with torch.no_grad():
            if _separate_setup(self.function):
                results = self.function.forward(*self.args)
                self.function.setup_context(self.context, self.args, results)
            else:
                results = self.function.forward(self.context, *self.args)
        single = isinstance(results, torch.Tensor)
        self.results = [results] if single else list(results)
        self.kept = [i for i, r in enumerate(self.results) if isinstance(r, torch.Tensor) and r.is_floating_point()]
        outputs = [self.results[i] for i in self.kept]
        self.saved = Saved.among(self.context.tensors, [*self.inputs, *outputs])
        _under_way[self.number] = self
        marked = list(self.results)
        detached = [t.detach() for t in outputs], self.inputs, [t.detach() for t in self.saved.others]
        for i, output in zip(self.kept, with_gradient(*detached, self.number)):
            marked[i] = output
        return marked[0] if single else tuple(marked)

    def pull_back(self, cotangents: Sequence[torch.Tensor], saved: Sequence[torch.Tensor]) -> Tensors:
        """Gradients by the tensors among the arguments, zero where the function gives none."""
        full = [_zeros(r) if isinstance(r, torch.Tensor) else None for r in self.results]
        for i, cotangent in zip(self.kept, cotangents):
            full[i] = cotangent
        gradients = self.function.backward(self.context.holding(saved), *full)
        gradients = gradients if isinstance(gradients, (tuple, list)) else (gradients,)
        given = [g for a, g in zip(self.args, gradients) if isinstance(a, torch.Tensor)]
        return [_zeros(a) if g is None else g for a, g in zip(self.inputs, given)]

    def module(self, depends: Callable[[torch.Tensor], bool]) -> CustomGradient | None:
        """The way back as a graph of its own; `None` if it uses tensors of the step that it was not given."""
        cotangents = [self.results[i].detach() for i in self.kept]
        saved = [t.detach() for t in self.context.tensors]
        count = len(cotangents)
        graph = _compat.record(lambda *t: self.pull_back(t[:count], t[count:]), *cotangents, *saved)
        constants = [getattr(graph, n.target) for n in graph.graph.nodes if n.op == "get_attr"]
        return None if any(map(depends, constants)) else CustomGradient(graph, self.saved.positions)


@dataclass(frozen=True)
class Saved:
    """Tensors kept for the way back: positions among arguments and results, which stay differentiable, and others."""

    positions: tuple[int, ...]
    others: tuple[torch.Tensor, ...]

    @classmethod
    def among(cls, tensors: Sequence[torch.Tensor], known: Sequence[torch.Tensor]) -> Saved:
        others = [t for t in tensors if not any(t is k for k in known)]
        everything = [*known, *others]
        return cls(tuple(next(i for i, k in enumerate(everything) if k is t) for t in tensors), tuple(others))


class CustomGradient(torch.nn.Module):
    """Gives results through as they are, and their gradient as the function behind them says."""

    def __init__(self, graph: torch.fx.GraphModule, positions: tuple[int, ...]) -> None:
        super().__init__()
        self.graph, self.positions = graph, positions

    def forward(self, outputs: Tensors, inputs: Tensors, others: Tensors) -> tuple[torch.Tensor, ...]:
        """`outputs`, detached results, become functions of `inputs`; `others` are kept for the way back."""
        return _WithGradient.apply(self, len(outputs), len(inputs), *outputs, *inputs, *others)


class _WithGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(module: CustomGradient, outputs: int, inputs: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(t.clone() for t in tensors[:outputs])

    @staticmethod
    def setup_context(ctx: Any, arguments: tuple, results: tuple) -> None:
        ctx.module, ctx.outputs, inputs, *tensors = arguments
        ctx.rest = len(tensors) - ctx.outputs - inputs
        tensors = tensors[ctx.outputs :]
        ctx.save_for_backward(*tensors[:inputs], *results, *tensors[inputs:])

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:
        saved = [ctx.saved_tensors[i] for i in ctx.module.positions]
        gradients = ctx.module.graph(*cotangents, *saved)
        return None, None, None, *[None] * ctx.outputs, *gradients, *[None] * ctx.rest


_SCHEMA = "(Tensor[] outputs, Tensor[] inputs, Tensor[] others, int number) -> Tensor[]"
"""Written out, since torch before 2.7 does not read it from `list[torch.Tensor]`."""


@torch.library.custom_op("phi_hybrid::with_gradient", mutates_args=(), schema=_SCHEMA)
def with_gradient(outputs: Tensors, inputs: Tensors, others: Tensors, number: int) -> Tensors:
    """Marks a function with its own gradient while tracing; `CustomGradient` takes its place in the graph."""
    return [t.clone() for t in outputs]


@with_gradient.register_fake
def _(outputs: Tensors, inputs: Tensors, others: Tensors, number: int) -> Tensors:
    return [torch.empty_like(t) for t in outputs]


def _setup(ctx: Any, inputs: tuple, output: Tensors) -> None:
    outputs, arguments, others, ctx.number = inputs
    ctx.counts = len(outputs), len(others)
    ctx.save_for_backward(*arguments, *output, *others)


def _backward(ctx: Any, cotangents: Tensors) -> tuple[Any, ...]:
    call = _under_way[ctx.number]
    gradients = call.pull_back(cotangents, [ctx.saved_tensors[i] for i in call.saved.positions])
    return [None] * ctx.counts[0], gradients, [None] * ctx.counts[1], None


with_gradient.register_autograd(_backward, setup_context=_setup)


def forget(numbers: Sequence[int]) -> None:
    """Drops calls whose trace is complete."""
    for number in numbers:
        _under_way.pop(number, None)


def _zeros(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(like.shape, dtype=like.dtype, device=like.device)  # zeros_like would drag `like` into the graph


def _separate_setup(function: type[torch.autograd.Function]) -> bool:
    return any("setup_context" in vars(c) for c in function.__mro__ if c.__module__ != "torch.autograd.function")
