"""One captured graph: fixed layout, shapes, precision and device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from phi_hybrid import _compat
from phi_hybrid.bridge.layout import TreeLayout
from phi_hybrid.errors import CaptureError
from phi_hybrid.linear_solve import LinearSolve, Solves
from phi_hybrid.steps.face import signature_of
from phi_hybrid.steps.plain import run_eager
from phi_hybrid.tracing.tracer import trace


class CapturedGraph(torch.nn.Module):
    """The torch graph of a step for one signature. Constants are non-persistent buffers."""

    def __init__(
        self, step: Callable, layout: TreeLayout, tensors: tuple[torch.Tensor, ...], compile: bool, solves: Solves
    ) -> None:
        super().__init__()
        self.layout = layout
        self.signature = signature_of(tensors)
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.compile = compile
        self.module, self.output_layout = trace(step, layout, tensors, solves)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.compile and not _compat.functorch_active() and not _compat.forward_mode_active():
            return self._compiled()(*tensors)
        return self.module(*tensors)

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
        for node in self.module.graph.nodes:
            node.kwargs = {k: device if isinstance(v, torch.device) else v for k, v in node.kwargs.items()}
        self.module.recompile()
        self.__dict__.pop("_inductor", None)
        self.device, self.signature = device, [(shape, dtype, device) for shape, dtype, _ in self.signature]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_inductor"}


def check_against_eager(
    graph: CapturedGraph, step: Callable, tensors: tuple[torch.Tensor, ...], solves: Solves
) -> None:
    """Compares graph and plain PhiFlow, values and vector–Jacobian products, on perturbed inputs.

    Raises:
        CaptureError: where they differ by a single bit, with the size of the difference. On other devices than the CPU and
            behind linear solves, which pass rounding on to every cell: where they differ by more than rounding.
    """
    generator = torch.Generator(tensors[0].device if tensors else "cpu").manual_seed(0)
    perturbed = [_perturb(t, generator) for t in tensors]
    differentiable = [t for t in perturbed if t.is_floating_point() or t.is_complex()]

    def results(f: Callable) -> list[torch.Tensor | None]:
        with torch.random.fork_rng(enabled=True), torch.enable_grad():
            torch.manual_seed(0)
            outputs = f(*(t.requires_grad_(any(t is d for d in differentiable)) for t in perturbed))
        varying = [o for o in outputs if o.requires_grad]
        if not varying or not differentiable:
            return list(outputs)
        cotangents = [o.detach().clone() for o in varying]
        return [*outputs, *torch.autograd.grad(varying, differentiable, cotangents, allow_unused=True)]

    with _compat.plain_products():  # as in the graph
        eager = results(lambda *inputs: run_eager(step, graph.layout, inputs, solves)[0])
    captured = results(graph.module)
    exact = graph.device.type == "cpu" and not any(isinstance(m, LinearSolve) for m in graph.module.modules())
    for number, (a, b) in enumerate(zip(captured, eager)):
        if not _equal(a, b, exact):
            kind = "value" if number < len(graph.output_layout.leaves) else "gradient"
            size = "one is missing" if a is None or b is None else f"{(a - b).abs().max().item():.2e}"
            raise CaptureError(
                f"the captured graph and plain PhiFlow differ on perturbed values ({kind} {number}, difference {size}). "
                "Something in the step changes from call to call or depends on values: a counter, a random generator of "
                "its own, a cache; or the step hides operations from autograd with torch.no_grad. Way out: pass it as an "
                "argument, use math.stop_gradient instead of no_grad, or use the step uncaptured"
            )


def _perturb(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.detach().clone()
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=tensor.device)
    scale = tensor.detach().abs().mean() if tensor.any() else 1.0
    return tensor.detach() * (1 + 0.01 * noise) + 0.01 * scale * noise


def _equal(a: torch.Tensor | None, b: torch.Tensor | None, exact: bool) -> bool:
    if a is None or b is None:
        return (a is None or not a.any()) and (b is None or not b.any())
    same = (a == b) | (a.isnan() & b.isnan())
    if not exact and a.is_floating_point() and a.shape == b.shape:
        rounding = (1e-5 if a.dtype == torch.float32 else 1e-12) * b.abs().nan_to_num(0.0, 0.0, 0.0).max()
        same |= (a - b).abs() <= rounding
    return a.shape == b.shape and bool(same.all())
