"""One captured graph: fixed layout, shapes, precision and device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from phi_hybrid import _compat
from phi_hybrid.bridge.layout import TreeLayout
from phi_hybrid.linear_solve import Solves
from phi_hybrid.steps.face import signature_of
from phi_hybrid.tracing.fingerprint import Fingerprint
from phi_hybrid.tracing.tracer import trace


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

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if (
            self.compile
            and not _compat.is_tracing()
            and not _compat.functorch_active()
            and not _compat.forward_mode_active()
        ):
            return self._compiled()(*tensors)
        return self.module(*tensors)

    def is_fresh(self) -> bool:
        """Tells if what the step closes over is what it was at capture; always, after unpickling."""
        return self.fingerprint is None or self.fingerprint.holds()

    def _compiled(self) -> Callable:
        if "_inductor" not in self.__dict__:
            self.__dict__["_inductor"] = torch.compile(self.module, dynamic=False)
        return self.__dict__["_inductor"]

    def _apply(self, fn: Callable, recurse: bool = True) -> CapturedGraph:
        """Follows a move to another device; the precision belongs to the signature and stays."""
        device = fn(torch.empty(0, device=self.device)).device
        if device == self.device:
            return self
        super()._apply(lambda t: t.to(device), recurse)
        for part in self.module.modules():  # ways back of custom gradients are graphs of their own
            if isinstance(part, torch.fx.GraphModule):
                _put_on(part, device)
        self.__dict__.pop("_inductor", None)
        self.device, self.signature = device, self.signature.on(device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_inductor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, deep or unpickled, in which torch has made persistent buffers of the constants."""
        super().__setstate__(state)
        for part in self.module.modules():
            for name, constant in list(part.named_buffers(recurse=False)):
                part.register_buffer(name, constant, persistent=False)


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
