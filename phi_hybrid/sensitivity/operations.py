"""Operations of a captured step that stop, block or falsify gradients, and those at which values or slopes jump."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from phi_hybrid.errors import SolveError
from phi_hybrid.linear_solve import checked_solves
from phi_hybrid.sensitivity.coordinates import Tensors, is_real
from phi_hybrid.tracing import Line, line_of

Graph = torch.fx.GraphModule

_STEPS = {
    "round",
    "floor",
    "ceil",
    "trunc",
    "fix",
    "sign",
    "sgn",
    "heaviside",
    "floor_divide",
    "bucketize",
    "searchsorted",
}
_LIMITS = {"clamp", "clamp_min", "clamp_max", "relu", "hardtanh", "threshold", "maximum", "minimum", "where"}
LOCAL_STEP = 1e-5
"""Step of local differences, in units of the root mean square of the state."""
_LOCAL = 1e-3
"""Relative difference by which the gradient of a single operation counts as wrong; its differences are good to 1e-6."""
_SHARP = 1e-4
"""Second over first differences on the intervals of `breaks`, which are 1e-7 long; 1e-6 or so where all is smooth."""


@dataclass(frozen=True)
class Operation:
    """An operation of the step, and the user's line that it comes from.

    Attributes:
        name: of the torch operation, or of a solve or custom gradient.
        line: `None` where it is not known.
        share: of the gradient that is missing or wrong there, or of the entries that get none; 0 … 1.
    """

    name: str
    line: Line | None
    share: float = 1.0

    def __str__(self) -> str:
        return f"{self.name} at {self.line}" if self.line else self.name


# --- found in the graph alone ---


def without_gradient(graph: Graph) -> list[Operation]:
    """Operations on real numbers whose results are steps (rounding, signs, comparisons, integers): zero gradient."""
    found = []
    for node in _live(graph):
        reals = [n for n in node.all_input_nodes if _is_real(n)]
        if reals and (_name(node) in _STEPS or (node.op == "call_function" and not _is_real(node))):
            found.append(node)
    return _unique(found)


def _live(graph: Graph) -> list[torch.fx.Node]:
    """Nodes between inputs and results."""
    nodes, varying, needed = list(graph.graph.nodes), set(), set()
    for node in nodes:
        if node.op == "placeholder" or any(n in varying for n in node.all_input_nodes):
            varying.add(node)
    for node in reversed(nodes):
        if node.op == "output" or any(n in needed for n in node.users):
            needed.add(node)
    return [n for n in nodes if n in varying and n in needed and n.op in ("call_function", "call_module")]


def _name(node: torch.fx.Node) -> str:
    if node.target is operator.getitem:
        return _name(node.args[0])
    return node.target.rstrip("0123456789") if node.op == "call_module" else str(node.target).split(".")[1]


def _is_real(node: torch.fx.Node) -> bool:
    """Tells if a node stands for real numbers, or several tensors with some among them."""
    if node.op == "get_attr":
        return is_real(getattr(node.graph.owning_module, node.target))
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return not isinstance(values[0], torch.Tensor) or any(map(is_real, values))


def _unique(nodes: Sequence[torch.fx.Node]) -> list[Operation]:
    return list(dict.fromkeys(Operation(_name(n), line_of(n)) for n in nodes))


# --- found by running it ---


@dataclass(frozen=True)
class _Call:
    """One operation, with the values that it was given and those that it returned."""

    node: torch.fx.Node
    inputs: dict[torch.fx.Node, Any]
    result: Any


class _Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps copies of all values, since some operations write into theirs."""

    def run_node(self, node: torch.fx.Node) -> Any:
        inputs = {n: _copied(self.env[n]) for n in node.all_input_nodes}
        result = super().run_node(node)
        self.calls[node] = _Call(node, inputs, _copied(result))
        return result

    def record(self, tensors: Tensors) -> dict[torch.fx.Node, _Call]:
        self.calls: dict[torch.fx.Node, _Call] = {}
        with torch.no_grad():
            self.run(*tensors)
        return self.calls


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def first_break(graph: Graph, low: Tensors, middle: Tensors, up: Tensors) -> Operation | None:
    """The first operation whose values or slopes jump between three close points; `None` if all are smooth."""
    runs = [_Recorder(graph).record(t) for t in (low, middle, up)]
    rounding: dict[torch.fx.Node, float] = {}
    for node in _live(graph):
        values = [run[node].result for run in runs]
        if not isinstance(values[0], torch.Tensor) or not values[0].numel():
            continue
        if not is_real(values[0]):
            if not torch.equal(values[0], values[2]):
                return Operation(_name(node), line_of(node))
            continue
        first = (values[2] - values[0]).abs().max()
        second = (values[2] - 2 * values[1] + values[0]).abs().max()
        unit = 64 * torch.finfo(values[0].dtype).eps * float(values[1].abs().max())
        rounding[node] = max(unit, *(rounding.get(n, 0.0) for n in node.all_input_nodes), 0.0)
        if second > _SHARP * first + rounding[node]:
            return Operation(_name(node), line_of(node))
    return None


def wrong_operations(graph: Graph, low: Tensors, middle: Tensors, up: Tensors) -> list[Operation]:
    """Operations whose own gradient is not that of their values, by differences between close points.

    δb of a result b is compared with Σ ∂b/∂a·δa over what it is made of, a, in reverse mode: ⟨w, δb⟩ and Σ ⟨∂b/∂aᵀw, δa⟩.
    """
    low, middle, up = (_Recorder(graph).record(t) for t in (low, middle, up))
    nodes = _live(graph)
    inside = {n for node in nodes if _is_custom(node) for n in node.args[0]}  # detached values that it is about
    found = []
    for node in nodes:
        share = 0.0 if node in inside else _local_error(middle[node], low[node], up[node])
        if share and _matters(graph, node, middle):
            found.append(Operation(_name(node), line_of(node), min(share, 1.0)))
    return found


def _is_custom(node: torch.fx.Node) -> bool:
    return node.op == "call_module" and _name(node) == "custom_gradient"


def _local_error(here: _Call, low: _Call, up: _Call) -> float:
    """Relative difference between the change of an operation's result and what its gradient says."""
    if here.node.target is operator.getitem or not all(isinstance(v, torch.Tensor) for v in here.inputs.values()):
        return 0.0
    generator = torch.Generator().manual_seed(0)
    leaves = {n: v.detach().requires_grad_() if _real(v) else v for n, v in here.inputs.items()}
    with torch.enable_grad():
        results = list(_reals(_call(here.node, {n: v.clone() if _real(v) else v for n, v in leaves.items()})))
    weights, change, size = [], 0.0, 0.0
    for b, lower, upper in zip(_reals(here.result), _reals(low.result), _reals(up.result)):
        w = torch.randn(b.shape, generator=generator, dtype=torch.float64).to(b)
        delta, bend = upper - lower, (upper - 2 * b + lower).abs()
        w = torch.where(bend > 0.01 * delta.abs().max(), 0.0, w)  # entries with a kink between the points
        weights.append(w)
        change, size = change + _dot(w, delta), size + float((w * delta).norm())
    predicted = 0.0
    kept = [(r, w) for r, w in zip(results, weights) if r.requires_grad]
    if kept:
        wrt = [v for v in leaves.values() if _real(v)]
        gradients = torch.autograd.grad([r for r, _ in kept], wrt, [w for _, w in kept], allow_unused=True)
        deltas = [up.inputs[n] - low.inputs[n] for n, v in leaves.items() if _real(v)]
        if not all(bool(g.isfinite().all()) for g in gradients if g is not None):
            return 1.0
        predicted = sum(_dot(g, d) for g, d in zip(gradients, deltas) if g is not None)
    rounding = (
        64 * torch.finfo(torch.float64).eps * sum(_dot(w.abs(), b.abs()) for w, b in zip(weights, _reals(here.result)))
    )
    off = abs(change - predicted)
    if not math.isfinite(off):  # values between the points are not finite, which says nothing of the gradient
        return 0.0
    return 0.0 if off <= max(rounding, _LOCAL * size) else off / max(abs(change), abs(predicted))


def _matters(graph: Graph, node: torch.fx.Node, calls: dict[torch.fx.Node, _Call]) -> bool:
    """Whether results of the step depend smoothly on those of an operation."""
    inner = _From(graph, node)
    with torch.enable_grad():
        results = inner.run(*(calls[n].result for n in graph.graph.nodes if n.op == "placeholder"))
        total = sum((r.abs() ** 2).sum() + r.real.sum() for r in _reals(results) if r.requires_grad)
    if not isinstance(total, torch.Tensor):
        return False
    try:
        with checked_solves():
            gradients = torch.autograd.grad(total, inner.leaves, allow_unused=True)
    except SolveError:  # what comes back to a linear solve is not finite
        return True
    return any(g is not None and bool(g.any()) for g in gradients)


class _From(torch.fx.Interpreter):
    """Runs a graph with the result of one operation as what gradients are taken by."""

    def __init__(self, graph: Graph, node: torch.fx.Node) -> None:
        super().__init__(graph)
        self.start, self.leaves = node, []

    def run_node(self, node: torch.fx.Node) -> Any:
        result = super().run_node(node)
        if node is not self.start:
            return result
        self.leaves = [r.detach().requires_grad_() for r in _reals(result)]
        fresh = iter([leaf.clone() for leaf in self.leaves])
        return torch.fx.node.map_aggregate(result, lambda r: next(fresh) if _real(r) else r)


def blocked(graph: Graph, tensors: Tensors) -> list[Operation]:
    """Limiters and branches on real numbers that give a share of their entries no gradient."""
    calls = _Recorder(graph).record(tensors)
    found: dict[tuple, list[tuple[int, int]]] = {}
    for node in _live(graph):
        if _name(node) not in _LIMITS:
            continue
        varying = [n for n in node.all_input_nodes if n.op != "get_attr" and _real(calls[node].inputs[n])]
        if _name(node) == "where" and node.args[0].op == "get_attr":  # a mask that does not change is no branch
            continue
        if len(varying) != 1:
            continue
        leaf = calls[node].inputs[varying[0]].detach().requires_grad_()
        with torch.enable_grad():
            result = _call(node, {**calls[node].inputs, varying[0]: leaf})
        (gradient,) = torch.autograd.grad(result, leaf, torch.ones_like(result))
        found.setdefault((_name(node), line_of(node)), []).append((int((gradient == 0).sum()), gradient.numel()))
    shares = {key: sum(z for z, _ in counts) / sum(n for _, n in counts) for key, counts in found.items()}
    return [Operation(*key, share) for key, share in shares.items() if share]


def _call(node: torch.fx.Node, values: dict[torch.fx.Node, Any]) -> Any:
    args = torch.fx.node.map_arg(node.args, lambda n: values[n])
    kwargs = torch.fx.node.map_arg(node.kwargs, lambda n: values[n])
    function = node.target if node.op == "call_function" else node.graph.owning_module.get_submodule(node.target)
    return function(*args, **kwargs)


def _real(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and is_real(value)


def _reals(value: Any) -> Iterator[torch.Tensor]:
    for entry in value if isinstance(value, (tuple, list)) else (value,):
        if _real(entry):
            yield entry


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.conj() * b).real.sum())
