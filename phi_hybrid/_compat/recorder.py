"""A recorder of torch operations: what `make_fx` does with plain tensors, without loading torch's compiler for it."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.weak import WeakTensorKeyDictionary

_PLAIN = {torch.Tensor, torch.nn.Parameter}


def record(f: Callable[..., Sequence[torch.Tensor]], *tensors: torch.Tensor) -> torch.fx.GraphModule:
    """Runs `f(*tensors)` once and returns the graph of its operations as they are below autograd.

    Tensors from outside become attributes of the module. `node.meta["val"]` has shape, strides and precision of the tensor
    that a node stands for, but lies on no device.

    Raises:
        RuntimeError: where torch itself takes a value out of a tensor that depends on the arguments.
    """
    recorder = Recorder()
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # or it would return tensors whose origin was not recorded
    try:
        with recording_paused():
            for number, tensor in enumerate(tensors):
                recorder.note(tensor, recorder.graph.placeholder(f"argument{number}"))
            with recorder:
                results = f(*tensors)
            recorder.graph.output(recorder.nodes_of(results))
    finally:
        torch.set_autocast_cache_enabled(cached)
    return torch.fx.GraphModule(recorder.constants, recorder.graph)


class Recorder(TorchDispatchMode):
    """Mode in which every operation becomes a node of `graph`, and every tensor from outside one of `constants`."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = torch.fx.Graph()
        self.constants: dict[str, torch.Tensor] = {}
        self.nodes = WeakTensorKeyDictionary()
        self.paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, or torch would load its compiler, a second's work, to keep it off the method below."""
        return False

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused or func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if not _PLAIN.issuperset(types):
            return NotImplemented  # subclasses of tensors say what they are made of
        with self:
            parts = func.decompose(*args, **kwargs)  # of tensors made in inference mode; autograd did it for all others
        if parts is not NotImplemented:
            return parts
        if torch.Tag.data_dependent_output in func.tags:
            return self._value(func, args, kwargs)
        if func is torch.ops.aten.lift_fresh.default:
            func = torch.ops.aten.lift_fresh_copy.default  # writing into a new tensor must not change the constant
        nodes = self.nodes_of(args), self.nodes_of(kwargs)
        results = _kernel(func)(*args, **kwargs)
        self.note(results, self.graph.create_node("call_function", func, *nodes, name=func.overloadpacket.__name__))
        return results

    def note(self, results: Any, node: torch.fx.Node) -> None:
        """From now on `node` stands for `results`; after an operation in place, for the tensor that was written to."""
        node.meta["val"] = map_aggregate(results, _description)
        if isinstance(results, torch.Tensor):
            self.nodes[results] = node
        elif isinstance(results, (tuple, list)):
            for number, result in enumerate(results):
                self.note(result, self.graph.call_function(operator.getitem, (node, number)))

    def nodes_of(self, values: Any) -> Any:
        """The same tuples, lists and dicts with nodes in the places of tensors."""
        return map_aggregate(values, lambda value: self._node_of(value) if isinstance(value, torch.Tensor) else value)

    def _node_of(self, tensor: torch.Tensor) -> torch.fx.Node:
        if tensor not in self.nodes:
            if type(tensor) not in _PLAIN:
                raise TypeError(f"a tensor of class {type(tensor).__name__}, whose operations torch does not tell")
            name = f"_tensor_constant{len(self.constants)}"
            self.constants[name] = tensor
            self.note(tensor, self.graph.create_node("get_attr", name))
        return self.nodes[tensor]

    def _value(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A Python number, of constants alone."""
        stack, seen = [self._node_of(t) for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)], set()
        while stack:
            node = stack.pop()
            if node.op == "placeholder" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise RuntimeError(f"{func} takes a value out of a tensor that depends on the inputs")
            seen.add(node)
            stack += [n for n in node.all_input_nodes if n not in seen]
        return func(*args, **kwargs)


def current_recorder() -> Recorder | None:
    """The recorder at work, `None` if there is none or it is paused."""
    for mode in reversed(_get_current_dispatch_mode_stack()):
        if isinstance(mode, Recorder):
            return None if mode.paused else mode
    return None


@contextlib.contextmanager
def recording_paused() -> Iterator[None]:
    """Context in which operations are executed but not recorded, except by recorders that start inside."""
    at_work = [m for m in _get_current_dispatch_mode_stack() if isinstance(m, Recorder) and not m.paused]
    for recorder in at_work:
        recorder.paused = True
    try:
        yield
    finally:
        for recorder in at_work:
            recorder.paused = False


def _kernel(func: Any) -> Callable:
    """The Python function behind a custom operator, since torch's own way to it loads its compiler, too."""
    definition = OPDEFS.get(func.name()) if func.namespace == "phi_hybrid" else None
    return func if definition is None else definition._init_fn


def _description(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.layout is not torch.strided:
        return None
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
