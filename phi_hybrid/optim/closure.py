"""What optimizers are given: outputs of a batch, and a loss of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from phi_hybrid.errors import StateError

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Closure:
    """What every optimizer looks at: outputs of network and physics on a batch, and a loss of them.

    HIG takes both. `torch.optim` optimizers, L-BFGS included, call it, which sets the gradients of `parameters`. The
    `Trainer` passes one of its own.

    Args:
        outputs: `() -> y`, a tensor or a tuple of them, `(sample, …)` each, real or complex.
        loss: `y -> scalar`, a mean over the samples.
        parameters: whose `grad` a call sets.
    """

    outputs: Callable[[], torch.Tensor | Tensors]
    loss: Callable[[Any], torch.Tensor]
    parameters: Iterable[torch.Tensor] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", tuple(self.parameters))  # generators can be read only once

    def __call__(self) -> torch.Tensor:
        """The loss; its gradient is left in `grad` of the parameters."""
        parameters = [p for p in self.parameters if p.requires_grad]
        if not parameters:
            raise StateError(
                "this optimizer wants a gradient: pass Closure(outputs, loss, parameters=list(net.parameters()))"
            )
        with torch.enable_grad():
            loss = self.loss(self.outputs())
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = None if gradient is None else _laid_out_like(parameter, gradient)
        return loss.detach()


def _laid_out_like(parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """In the memory layout of the parameter, as `backward` leaves it; torch's L-BFGS depends on that."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def flattened(outputs: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Real numbers `(m,)`, sample by sample: real and imaginary parts of complex outputs."""
    tensors = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    real = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors]
    return torch.cat([t.reshape(t.shape[0], -1) for t in real], 1).reshape(-1)


def loss_gradient(loss: Callable, outputs: torch.Tensor | Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """L and ∂L/∂y by real and imaginary parts, `(m,)`."""
    single = isinstance(outputs, torch.Tensor)
    leaves = [t.detach().requires_grad_() for t in ([outputs] if single else outputs)]
    value = loss(leaves[0] if single else tuple(leaves))
    back = torch.autograd.grad(value, leaves, allow_unused=True)
    # torch's gradient of a real function by a complex z is ∂L/∂Re z + i·∂L/∂Im z
    return value.detach(), flattened([torch.zeros_like(t) if g is None else g for g, t in zip(back, leaves)])
