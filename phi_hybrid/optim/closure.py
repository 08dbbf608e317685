"""Closures: what optimizers call to learn the outputs of a batch, and a loss of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from phi_hybrid.bridge.checks import require
from phi_hybrid.errors import StateError
from phi_hybrid.optim.vectors import Tensors, as_tuple, pack


class OutputsAndLoss(Protocol):
    """Interface of closures for optimizers that look at outputs; the `Trainer` passes one, `Closure` is another."""

    def __call__(self) -> torch.Tensor:
        """The loss; its gradient is left in `grad` of the parameters."""
        ...

    def outputs(self) -> torch.Tensor | Tensors:
        """Outputs y of the batch, `(sample, …)` each."""
        ...

    def loss(self, y: Any) -> torch.Tensor:
        """Scalar loss of outputs."""
        ...


@dataclass(frozen=True)
class Closure:
    """Outputs of network and physics on a batch, and a loss of them, for every optimizer.

    HIG takes both. `torch.optim` optimizers, L-BFGS included, call it, which sets the gradients of `parameters`.

    Args:
        outputs: function `() -> y`, a tensor or a tuple of them, `(sample, …)` each, real or complex.
        loss: function `y -> scalar`, a mean over the samples.
        parameters: tensors whose `grad` a call sets; none by default, which is enough for HIG.

    Raises:
        StateError: for a single tensor as parameters; when called, for a loss that is no single number or does not depend on
            any of them.
    """

    outputs: Callable[[], torch.Tensor | Tensors]
    loss: Callable[[Any], torch.Tensor]
    parameters: Iterable[torch.Tensor] = ()

    def __post_init__(self) -> None:
        one = isinstance(self.parameters, torch.Tensor)
        require(not one, "parameters", "a tensor", "tensors in a list, e.g. parameters=list(net.parameters())")
        object.__setattr__(self, "parameters", tuple(self.parameters))  # generators can be read only once

    def __call__(self) -> torch.Tensor:
        """The loss; its gradient is left in `grad` of the parameters."""
        parameters = [p for p in self.parameters if p.requires_grad]
        if not parameters:
            raise StateError(
                "this optimizer wants a gradient: pass Closure(outputs, loss, parameters=list(net.parameters()))"
            )
        with torch.enable_grad():
            loss = _scalar(self.loss(self.outputs()))
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else [None]
        if all(gradient is None for gradient in gradients):
            raise StateError(
                "the loss does not depend on the parameters: are they those of another network, such as a copy?"
            )
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = None if gradient is None else _laid_out_like(parameter, gradient)
        return loss.detach()


def require_outputs(closure: Any) -> OutputsAndLoss:
    """The closure, or a StateError if it gives a loss alone."""
    if not all(callable(getattr(closure, name, None)) for name in ("outputs", "loss")):
        raise StateError(
            f"{closure!r} gives no outputs, only a loss: train with phi_hybrid.Trainer, or pass "
            "step(Closure(outputs=lambda: y, loss=lambda y: …))"
        )
    return closure


def flattened(outputs: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Real numbers `(m,)`, sample by sample: real and imaginary parts of complex outputs.

    Raises:
        StateError: for what has no samples, or different numbers of them.
    """
    tensors = as_tuple(outputs)
    sizes = {t.shape[0] if t.ndim else None for t in tensors}
    if len(sizes) != 1 or None in sizes:
        raise StateError(
            f"outputs of shapes {[tuple(t.shape) for t in tensors]}: the first axis of all is that of the samples, "
            "`tensor[None]` makes one"
        )
    return pack(tensors).reshape(-1)


def loss_gradient(loss: Callable, outputs: torch.Tensor | Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """L and ∂L/∂y by real and imaginary parts, `(m,)`."""
    leaves = tuple(t.detach().requires_grad_() for t in as_tuple(outputs))
    value = _scalar(loss(leaves[0] if isinstance(outputs, torch.Tensor) else leaves))
    back = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else [None]
    if all(g is None for g in back):
        raise StateError(
            "the loss does not depend on its argument, the outputs: write Closure(lambda: net(x), lambda y: ((y - target) ** 2).sum())"
        )
    # torch's gradient of a real function by a complex z is ∂L/∂Re z + i·∂L/∂Im z
    return value.detach(), flattened([torch.zeros_like(t) if g is None else g for g, t in zip(back, leaves)])


def _scalar(loss: Any) -> torch.Tensor:
    """The loss, or a StateError for several numbers or none."""
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or loss.is_complex():
        given = f"of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"of type {type(loss).__name__}"
        raise StateError(f"the loss is {given}, expected one real number in a tensor: take the mean over the samples")
    return loss.reshape(())


def _laid_out_like(parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """In the memory layout of the parameter, as `backward` leaves it; torch's L-BFGS depends on that."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
