"""Half-inverse gradients (Schnell et al. 2022, arXiv 2203.10131)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from phi_hybrid.errors import NonFiniteError, StateError
from phi_hybrid.optim.engines import Automatic, Engine, Update
from phi_hybrid.optim.jacobian import Jacobian
from phi_hybrid.optim.spectrum import Cutoff, Filter

Tensors = tuple[torch.Tensor, ...]

_COUPLED = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)
_RANDOM = (
    torch.nn.Dropout,
    torch.nn.Dropout1d,
    torch.nn.Dropout2d,
    torch.nn.Dropout3d,
    torch.nn.AlphaDropout,
    torch.nn.FeatureAlphaDropout,
)


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
            parameter.grad = gradient
        return loss.detach()


class HIG(torch.optim.Optimizer):
    """Half-inverse gradients: Δθ = −η V σ^(−κ) Uᵀ ∂L/∂y with J = ∂y/∂θ = U σ Vᵀ over the whole mini-batch.

    Equal to −η Jᵀ (J Jᵀ)^(−(1+κ)/2) ∂L/∂y: κ = −1 is gradient descent, κ = 1 Gauss–Newton, κ = ½ in between, where outputs
    of different sensitivity are treated more alike and the update stays bounded.

    Args:
        module: whose parameters are trained; frozen ones are left alone.
        lr: η, often 1.
        kappa: κ, −1 … 1.
        rcond: singular values up to rcond·σ_max are dropped; or a filter, `Cutoff(rcond, damping)` or
            `Smooth(rcond, damping)`.
        per_sample: whether J and the gradients of the single samples are divided by √samples, so that an update does not
            depend on how often a sample is repeated in the batch; `False` is the paper's scaling.
        engine: how the update is computed, see `phi_hybrid.optim.engines`.
        then: torch optimizer over the same parameters that takes the half-inverse gradient as its gradient, e.g.
            `torch.optim.SGD(module.parameters(), 1.0, momentum=0.9)`; its learning rate counts then, and `lr` does not.

    Attributes:
        last: `Update` of the last step: direction, singular values, number kept.

    Raises:
        StateError: for settings out of range, and for modules with batch statistics or dropout, whose outputs have no
            Jacobian of their own.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        lr: float = 1.0,
        kappa: float = 0.5,
        rcond: float | Filter = 1e-6,
        *,
        per_sample: bool = True,
        engine: Engine = Automatic(),
        then: torch.optim.Optimizer | None = None,
    ) -> None:
        if not lr >= 0:
            raise StateError(f"lr = {lr!r}: must be ≥ 0")
        if not -1 <= kappa <= 1:
            raise StateError(f"kappa = {kappa!r}: use −1 (gradient descent) … 1 (Gauss–Newton), 0.5 for half-inverse")
        _refuse_random_or_coupled(module)
        parameters = [p for p in module.parameters() if p.requires_grad]
        super().__init__(parameters, {"lr": lr})
        self.module = module
        self.kappa = kappa
        self.filter: Filter = Cutoff(rcond) if isinstance(rcond, (int, float)) else rcond
        self.per_sample = per_sample
        self.engine = engine
        self.then = then
        self.last: Update | None = None
        if then is not None:
            self.param_groups = then.param_groups  # schedulers on this optimizer change that learning rate

    def step(self, closure: Closure | Callable) -> torch.Tensor:
        """One update; leaves the half-inverse gradient in `grad` of the parameters.

        Args:
            closure: with `outputs` and `loss`, see `Closure`.

        Returns:
            The loss before the update.

        Raises:
            StateError: for a closure without outputs, or an engine that needs too much memory.
            NonFiniteError: if outputs, loss or update are not finite; the weights are not changed.
        """
        if not (hasattr(closure, "outputs") and hasattr(closure, "loss")):
            raise StateError(
                "HIG needs the outputs, not only a loss: train with phi_hybrid.Trainer, or pass "
                "step(Closure(outputs=lambda: (y,), loss=lambda y: …))"
            )
        parameters = [p for group in self.param_groups for p in group["params"]]
        with torch.enable_grad():
            with self.engine.watching(self.module) if hasattr(self.engine, "watching") else nullcontext({}) as layers:
                outputs = closure.outputs()
            loss, cotangent = _loss_gradient(closure.loss, outputs)
        samples = (outputs if isinstance(outputs, torch.Tensor) else outputs[0]).shape[0]
        jacobian = Jacobian(_flattened(outputs), parameters, samples, layers)
        scale = 1 / samples if self.per_sample else 1.0
        self.last = self.engine.update(jacobian, cotangent, self.filter, self.kappa, scale)
        if not all(torch.isfinite(d).all() for d in self.last.direction):
            raise NonFiniteError("the half-inverse gradient is not finite; use a larger rcond or damping", 0)
        for parameter, direction in zip(parameters, self.last.direction):
            parameter.grad = direction
        if self.then is not None:
            self.then.step()
            return loss
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(parameter.grad, alpha=-group["lr"])
        return loss

    def state_dict(self) -> dict[str, Any]:
        """State of this optimizer, and of the one that follows it."""
        return {**super().state_dict(), "then": None if self.then is None else self.then.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        state = dict(state_dict)
        then = state.pop("then", None)
        super().load_state_dict(state)
        if self.then is not None:
            self.then.load_state_dict(then)
            self.param_groups = self.then.param_groups


def _flattened(outputs: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Real numbers `(m,)`, sample by sample: real and imaginary parts of complex outputs."""
    tensors = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    return torch.cat([t.reshape(t.shape[0], -1) for t in real], 1).reshape(-1)


def _loss_gradient(loss: Callable, outputs: torch.Tensor | Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """L and ∂L/∂y by real and imaginary parts, `(m,)`."""
    single = isinstance(outputs, torch.Tensor)
    leaves = [t.detach().requires_grad_() for t in ([outputs] if single else outputs)]
    value = loss(leaves[0] if single else tuple(leaves))
    back = torch.autograd.grad(value, leaves, allow_unused=True)
    # torch's gradient of a real function by a complex z is ∂L/∂Re z + i·∂L/∂Im z
    return value.detach(), _flattened([torch.zeros_like(t) if g is None else g for g, t in zip(back, leaves)])


def _refuse_random_or_coupled(module: torch.nn.Module) -> None:
    for name, part in module.named_modules():
        if part.training and isinstance(part, (*_COUPLED, *_RANDOM)) and getattr(part, "p", 1) > 0:
            why = "draws new numbers in every call" if isinstance(part, _RANDOM) else "couples the samples of a batch"
            raise StateError(
                f"{name or 'the module'} is a {type(part).__name__}, which {why}, so that outputs have no Jacobian sample by "
                "sample; take it out (phiml networks: batch_norm=False), or put it in evaluation mode with .eval()"
            )
