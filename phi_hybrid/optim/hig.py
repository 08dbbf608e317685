"""Half-inverse gradients (Schnell et al. 2022, arXiv 2203.10131)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from tqdm import tqdm

from phi_hybrid.errors import NonFiniteError, StateError
from phi_hybrid.optim.automatic import Automatic, engine_for
from phi_hybrid.optim.closure import Closure, flattened, loss_gradient
from phi_hybrid.optim.engines import Engine, Update
from phi_hybrid.optim.jacobian import Jacobian
from phi_hybrid.optim.processes import Processes
from phi_hybrid.optim.spectrum import Cutoff, Filter

_COUPLED = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)
_RANDOM = (
    torch.nn.Dropout,
    torch.nn.Dropout1d,
    torch.nn.Dropout2d,
    torch.nn.Dropout3d,
    torch.nn.AlphaDropout,
    torch.nn.FeatureAlphaDropout,
)


class HIG(torch.optim.Optimizer):
    """Half-inverse gradients: Δθ = −η V σ^(−κ) Uᵀ ∂L/∂y with J = ∂y/∂θ = U σ Vᵀ over the whole mini-batch.

    Equal to −η Jᵀ (J Jᵀ)^(−(1+κ)/2) ∂L/∂y: κ = −1 is gradient descent, κ = 1 Gauss–Newton, κ = ½ in between, where outputs
    of different sensitivity are treated more alike and the update stays bounded.

    Args:
        module: whose parameters are trained; frozen ones are left alone.
        lr: η, often 1 for losses Σ|y − y*|² of each sample. Of a loss that is a mean over d_y entries, a whole Gauss–Newton
            step is d_y/2 times as long; under `Unrolled`, d_y·σ²/2 with the scale σ of the data.
        kappa: κ, −1 … 1.
        rcond: singular values up to rcond·σ_max are dropped; or a filter, `Cutoff(rcond, damping)` or
            `Smooth(rcond, damping)`.
        per_sample: whether J and the gradients of the single samples are divided by √samples, so that an update does not
            depend on how often a sample is repeated in the batch; `False` is the paper's scaling.
        engine: how the update is computed, see `phi_hybrid.optim.engines`; its needs are estimated before the first step.
        then: torch optimizer over the same parameters that takes the half-inverse gradient as its gradient, e.g.
            `torch.optim.SGD(module.parameters(), 1.0, momentum=0.9)`; its learning rate counts then, and `lr` does not.
        progress: whether to show that estimate.

    Under `DistributedDataParallel`, around the module or within it, the mini-batch is that of all processes together; they
    must have equal numbers of samples.

    Attributes:
        last: `Update` of the last step: direction, singular values, number kept, `norm`.

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
        engine: Engine | Automatic = Automatic(),
        then: torch.optim.Optimizer | None = None,
        progress: bool = True,
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
        self.progress = progress
        self.last: Update | None = None
        self._chosen: dict[tuple[int, int], Engine] = {}
        self._processes = Processes.of(module)
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
            with self._watching() as layers:
                outputs = closure.outputs()
            loss, cotangent = loss_gradient(closure.loss, outputs)
        samples = (outputs if isinstance(outputs, torch.Tensor) else outputs[0]).shape[0]
        jacobian = Jacobian(flattened(outputs), parameters, samples, layers, self._processes)
        loss, cotangent = self.joint(loss), self._processes.gathered(cotangent) / self._processes.size
        if not (torch.isfinite(loss) and torch.isfinite(cotangent).all()):
            raise NonFiniteError(f"the loss is {float(loss)}, or its gradient by the outputs is not finite", 0)
        scale = 1 / (samples * self._processes.size) if self.per_sample else 1.0
        self.last = self._engine(jacobian).update(jacobian, cotangent, self.filter, self.kappa, scale)
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

    def _watching(self) -> AbstractContextManager:
        return self.engine.watching(self.module) if hasattr(self.engine, "watching") else nullcontext({})

    def joint(self, loss: torch.Tensor) -> torch.Tensor:
        """Mean of a loss over all processes."""
        return self._processes.summed(loss.clone()) / self._processes.size

    def _engine(self, jacobian: Jacobian) -> Engine:
        """The engine for Jacobians of this size; when there is a new one, what it will cost is said."""
        size = jacobian.rows, jacobian.columns
        if size not in self._chosen:
            engine = self._chosen[size] = engine_for(self.engine, jacobian, self.filter)
            if self.progress and self._processes.rank == 0:
                cost = engine.cost(jacobian)
                tqdm.write(f"HIG: {size[0]} outputs, {size[1]} parameters: {type(engine).__name__}, {cost}", sys.stderr)
        return self._chosen[size]

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


def _refuse_random_or_coupled(module: torch.nn.Module) -> None:
    for name, part in module.named_modules():
        if part.training and isinstance(part, (*_COUPLED, *_RANDOM)) and getattr(part, "p", 1) > 0:
            why = "draws new numbers in every call" if isinstance(part, _RANDOM) else "couples the samples of a batch"
            raise StateError(
                f"{name or 'the module'} is a {type(part).__name__}, which {why}, so that outputs have no Jacobian sample by "
                "sample; take it out (phiml networks: batch_norm=False), or put it in evaluation mode with .eval()"
            )
