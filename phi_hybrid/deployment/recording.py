"""Step → program: its operations are recorded at two batch sizes, and what differs between them follows the size."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from itertools import count, islice
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from phi_hybrid.bridge.axes import position_of
from phi_hybrid.bridge.layout import Layout, TreeLayout
from phi_hybrid.deployment.operators import OPERATOR
from phi_hybrid.deployment.patterns import find_pattern, same_values
from phi_hybrid.deployment.program import GETITEM, BatchSize, Entry, Program, Value
from phi_hybrid.errors import CaptureError, SolveError, StateError
from phi_hybrid.linear_solve import solve_of, varying_of
from phi_hybrid.steps import PlainStep, Step, evaluation_mode
from phi_hybrid.steps.face import Tensors
from phi_hybrid.steps.plain import name_of
from phi_hybrid.tracing import SparseProduct

_aten, _own = torch.ops.aten, torch.ops.phi_hybrid
RECORDINGS = 2
"""Sizes say how a number follows the batch size; that the program does what the step does is seen at a third, 1."""
PRECISION = {torch.float32: 1e-5, torch.complex64: 1e-5}
"""Of one step of a program, relative to the largest value; 1e-9 in double precision."""


def record(step: Step, layout: TreeLayout, tensors: Tensors, batch: str) -> Program:
    """The program of a step in evaluation mode.

    Args:
        step: of captured physics.
        layout: of state and inputs, with a single batch dim.
        tensors: example of state and inputs.
        batch: name of the batch dim.

    Raises:
        StateError: for physics that was not captured, and for an example that the step cannot take.
        CaptureError: if the network looks at values of tensors, or what is computed depends on the batch size otherwise
            than by shapes.
    """
    _require_captured(step)
    sizes = _batch_sizes(tensors)
    with evaluation_mode(step), torch.no_grad():
        recordings = [_Recording(step, layout, _with_entries(tensors, layout, batch, s)) for s in sizes]
    weights = {id(t): name for name, t in step.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)}
    merger = _Merger(recordings, sizes, weights)
    merger.run()
    dtypes = tuple(t.dtype for t in tensors)
    return Program(
        layout,
        recordings[0].output_layout,
        batch,
        dtypes,
        tuple(merger.entries),
        tuple(merger.outputs),
        merger.constants,
        merger.modules,
    )


def require_equal(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    """Raises CaptureError if a program computes another state than its step."""
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a.dtype == torch.bool or torch.equal(a, b):
            continue
        distance, size = float((a - b).abs().max()), float(b.abs().max())
        if not distance <= PRECISION.get(b.dtype, 1e-9) * size:
            raise CaptureError(
                f"the program and the step differ in tensor {number} by {distance:.1e}, largest value {size:.1e}. The step must "
                "not draw random numbers, and batch entries must not depend on one another"
            )


def _require_captured(step: Step) -> None:
    for part in step.modules():
        if isinstance(part, PlainStep):
            raise StateError(
                f"{name_of(part.step)} is plain PhiFlow code, which cannot leave Python; capture it first: "
                f"HybridSolver(ph.capture({name_of(part.step)}), …), and load the weights with load_state_dict"
            )


def _batch_sizes(tensors: Tensors) -> list[int]:
    """Small odd numbers that no other size can be taken for."""
    taken = {s + d for t in tensors for s in t.shape for d in (-1, 0, 1)}
    return list(islice((n for n in count(3, 2) if n not in taken), RECORDINGS))


def _with_entries(tensors: Tensors, layout: Layout, batch: str, size: int) -> Tensors:
    """The example with another batch size, its entries repeated in turn."""
    result = []
    for tensor, axes in zip(tensors, layout.leaves):
        axis = position_of(batch, axes)
        chosen = None if axis is None else torch.arange(size, device=tensor.device) % tensor.shape[axis]
        result.append(tensor if axis is None else tensor.index_select(axis, chosen))
    return tuple(result)


class _Recording:
    """Operations of one step at one batch size."""

    def __init__(self, step: Step, layout: TreeLayout, tensors: Tensors) -> None:
        native = step.native_for(layout, tensors)
        self.output_layout = native.output_layout
        try:
            with torch.random.fork_rng(enabled=True):
                native(*tensors)  # parts that are captured when they are first called must not be so while recording
                self.module = make_fx(lambda *t: tuple(native(*t)))(*tensors)
        except (CaptureError, SolveError, StateError):
            raise
        except Exception as error:
            raise CaptureError(
                f"the step cannot be recorded: {type(error).__name__}: {error}. Its network must not look at values of "
                "tensors (if, float(), .item(), .numpy()) nor compile itself; use torch.where, and pass the network "
                "before torch.compile"
            ) from error
        self.module.graph.eliminate_dead_code()
        self.nodes = list(self.module.graph.nodes)

    def constant(self, node: torch.fx.Node) -> torch.Tensor:
        value = self.module
        for name in node.target.split("."):
            value = getattr(value, name)
        return value


class _Merger:
    """Several recordings of a step, node by node, as one program."""

    def __init__(self, recordings: Sequence[_Recording], sizes: Sequence[int], weights: Mapping[int, str]) -> None:
        self.recordings, self.sizes, self.weights = recordings, sizes, weights
        self.entries: list[Entry] = []
        self.constants: dict[str, torch.Tensor] = {}
        self.modules: dict[str, torch.nn.Module] = {}
        self.outputs: list[int] = []
        self._numbers: list[dict[torch.fx.Node, int]] = [{} for _ in recordings]

    def run(self) -> None:
        if len({len(r.nodes) for r in self.recordings}) > 1:
            self._refuse("other operations are done at other batch sizes")
        for nodes in zip(*(r.nodes for r in self.recordings)):
            self._take(nodes)

    def _take(self, nodes: Sequence[torch.fx.Node]) -> None:
        first = nodes[0]
        if first.op == "output":
            self.outputs = [self._own_memory(self._merge(values).number) for values in zip(*(n.args[0] for n in nodes))]
            return
        if len({n.op for n in nodes}) > 1 or (first.op == "call_function" and len({n.target for n in nodes}) > 1):
            self._refuse(f"{first} is another operation at other batch sizes")
        if first.op == "placeholder":
            self._add(Entry("input"), nodes)
        elif first.op == "get_attr":
            self._take_constant(nodes)
        else:
            self._add(self._call(nodes), nodes)

    def _call(self, nodes: Sequence[torch.fx.Node]) -> Entry:
        target = nodes[0].target
        args = [n.args for n in nodes]
        kwargs = {name: self._merge([n.kwargs.get(name) for n in nodes]) for name in nodes[0].kwargs}
        if target is _own.linear_solve.default:
            return self._module_call(f"linear_solve{args[0][1]}", solve_of(args[0][1]), [(a[0], a[2]) for a in args])
        if target is _own.varying_solve.default:
            call = [(a[0], a[1], a[5]) for a in args]
            return self._module_call(f"varying_solve{args[0][4]}", varying_of(args[0][4]), call)
        if target is _own.csr_product.default:
            return self._module_call("sparse_product", SparseProduct(), args)
        if target is _aten.view.default:
            target = _aten.reshape.default  # a caller's tensors need not have the strides of the example
        if target is not operator.getitem and not isinstance(target, OPERATOR):
            self._refuse(f"{target} is no torch operator")
        name = GETITEM if target is operator.getitem else str(target)
        return Entry(name, tuple(self._merge(values) for values in zip(*args, strict=True)), kwargs)

    def _module_call(self, name: str, module: torch.nn.Module, args: Sequence[tuple]) -> Entry:
        self.modules[name] = module
        return Entry(name, tuple(self._merge(values) for values in zip(*args)))

    def _add(self, entry: Entry, nodes: Sequence[torch.fx.Node] = ()) -> Value:
        for numbers, node in zip(self._numbers, nodes):
            numbers[node] = len(self.entries)
        self.entries.append(entry)
        return Value(len(self.entries) - 1)

    def _merge(self, values: Sequence[Any]) -> Any:
        """What an argument is at any batch size."""
        first = values[0]
        if isinstance(first, torch.fx.Node):
            (number,) = {numbers[node] for numbers, node in zip(self._numbers, values)}
            return Value(number)
        if isinstance(first, (list, tuple)):
            if len({len(v) for v in values}) > 1:
                self._refuse(f"{first} is of another length at other batch sizes")
            return [self._merge(entries) for entries in zip(*values)]
        if all(type(v) is type(first) and (v == first or (v != v and first != first)) for v in values):
            return first
        factor, rest = divmod(values[1] - first, self.sizes[1] - self.sizes[0]) if type(first) is int else (0, 1)
        offset = 0 if rest else first - factor * self.sizes[0]
        if rest or any(v != factor * s + offset for v, s in zip(values, self.sizes)):
            self._refuse(f"a number in it is {list(values)} at the batch sizes {self.sizes}")
        return BatchSize(factor, offset)

    def _take_constant(self, nodes: Sequence[torch.fx.Node]) -> None:
        tensors = [r.constant(n) for r, n in zip(self.recordings, nodes)]
        first = tensors[0]
        if (name := self.weights.get(id(first))) is None:
            if len({t.shape for t in tensors}) > 1:
                return self._take_batched(tensors, nodes)
            if not all(same_values(t, first) for t in tensors):
                self._refuse(f"a constant of shape {tuple(first.shape)} has other values at other batch sizes")
            name = f"constant.{len(self.constants)}"
            for known, constant in self.constants.items():
                if constant is first:
                    name = known
        self.constants[name] = first
        self._add(Entry("constant", (name,)), nodes)

    def _take_batched(self, tensors: Sequence[torch.Tensor], nodes: Sequence[torch.fx.Node]) -> None:
        """A constant that is repeated along the batch, or counts along it: indices of batch entries."""
        first = tensors[0]
        if len({t.ndim for t in tensors}) > 1:
            self._refuse(f"a constant of shape {tuple(first.shape)} has other dims at other batch sizes")
        shape = [self._merge([t.shape[d] for t in tensors]) for d in range(first.ndim)]
        batched = [d for d, size in enumerate(shape) if isinstance(size, BatchSize)]
        found = None
        if len(batched) == 1 and shape[batched[0]].offset == 0:
            found = find_pattern(tensors, batched[0], shape[batched[0]].factor, self.sizes)
        if found is None:
            self._refuse(f"a constant of shape {tuple(first.shape)} has other values at other batch sizes")
        start, change, axis = found
        whole = [BatchSize(1) if d == axis else n for d, n in enumerate(start.shape)]
        value = self._expanded(start, whole)
        if change is not None:
            number = {"dtype": first.dtype, "device": torch.device("cpu")}
            count = self._add(Entry("aten.arange.default", (BatchSize(1),), number))
            count = self._add(Entry("aten.reshape.default", (count, [-1, *[1] * (start.ndim - 1 - axis)])))
            count = self._add(Entry("aten.mul.Tensor", (count, self._expanded(change, whole))))
            value = self._add(Entry("aten.add.Tensor", (value, count)))
        self._add(Entry("aten.reshape.default", (value, shape)), nodes)

    def _expanded(self, constant: torch.Tensor, shape: Sequence[Any]) -> Value:
        name = f"constant.{len(self.constants)}"
        self.constants[name] = constant.clone(memory_format=torch.contiguous_format)  # not all that it was cut out of
        value = self._add(Entry("constant", (name,)))
        value = self._add(Entry("aten.expand.default", (value, list(shape))))
        # Vectorised loops round otherwise for memory with gaps, which the constant did not have.
        return self._add(Entry("aten.clone.default", (value,), {"memory_format": torch.contiguous_format}))

    def _own_memory(self, number: int) -> int:
        """Copies a result that is an argument or a constant: a caller may write into it."""
        if self.entries[number].target in ("input", "constant"):
            return self._add(Entry("aten.clone.default", (Value(number),))).number
        return number

    def _refuse(self, reason: str) -> None:
        raise CaptureError(
            f"the step depends on the batch size otherwise than by shapes: {reason}. Let batch entries be independent of one "
            "another: no means over the batch, no normalisation by it"
        )
