"""A device that is not there, to find what a GPU would have to wait for: tensors without values on torch's device `lazy`."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from phi_hybrid.linear_solve import flags, operator

DEVICE = torch.device("lazy")
"""Of a kind that needs no driver. Reading a value of its tensors, or mixing them with others, is an error."""


def devices_in(module: torch.nn.Module) -> Iterator[torch.device]:
    """Of all tensors in a module, and those that its graphs make."""
    for part in module.modules():
        for value in [*part._parameters.values(), *part._buffers.values(), *vars(part).values()]:
            if isinstance(value, torch.Tensor):
                yield value.device
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                yield from (v for v in tree_leaves((node.args, node.kwargs)) if isinstance(v, torch.device))


@contextlib.contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Context in which tensors can be moved to `DEVICE`; solvers are made on the CPU and moved."""

    def build(system: Any, method: Any, device: torch.device, tolerance: float) -> Any:
        with unset_fake_temporarily():
            methods = operator.methods_for(system, device) if method is None else (method,)
            found = (m.build(system, torch.device("cpu"), tolerance) for m in methods)
            solver = next(s for s in found if s is not None)
        return _moved(solver, {})

    waiting = list(flags._waiting)
    with FakeTensorMode(allow_non_fake_inputs=True), monkeypatch.context() as patch:
        patch.setattr(operator, "build_solver", build)
        try:
            yield
        finally:
            flags._waiting[:] = waiting


def _moved(value: Any, known: dict[int, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE)
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(v, known) for v in value)
    if not type(value).__module__.startswith("phi_hybrid.linear_solve") or not hasattr(value, "__dict__"):
        return value
    if id(value) not in known:
        known[id(value)] = clone = copy.copy(value)
        clone.__dict__.update({name: _moved(v, known) for name, v in vars(value).items()})
    return known[id(value)]


class Transfers(TorchDispatchMode):
    """Notes every operation between `DEVICE` and another one for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append(str(func))
        devices = {t.device.type for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)}
        if len(devices) > 1 and not (kwargs or {}).get("non_blocking"):
            self.found.append(f"{func}: {sorted(devices)}")
        return result
