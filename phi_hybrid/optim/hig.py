"""Half-inverse gradients (Schnell et al. 2022, arXiv 2203.10131)."""

from __future__ import annotations

import sys
from numbers import Real
from typing import Any

import torch
from tqdm import tqdm

from phi_hybrid.bridge.checks import require_instance, require_number
from phi_hybrid.errors import NonFiniteError, StateError
from phi_hybrid.optim.automatic import Automatic
from phi_hybrid.optim.closure import OutputsAndLoss, flattened, loss_gradient, require_outputs
from phi_hybrid.optim.engines import Engine, Update
from phi_hybrid.optim.filters import Cutoff, Filter, Smooth, require_kappa
from phi_hybrid.optim.jacobian import Jacobian, Processes
from phi_hybrid.optim.layers import recorded

_COUPLED = (
    torch.nn.BatchNorm1d,
    torch.nn.BatchNorm2d,
    torch.nn.BatchNorm3d,
    torch.nn.LazyBatchNorm1d,
    torch.nn.LazyBatchNorm2d,
    torch.nn.LazyBatchNorm3d,
    torch.nn.SyncBatchNorm,
)
_DROPOUT = (
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
        module: network or hybrid solver to train; frozen parameters are left alone.
        lr: learning rate η. 1, the default, is a whole Gauss–Newton step for ½·Σ|y − y*|² of each sample; take 0.5 for Σ|y − y*|², d_y/2 for a
            mean over d_y entries, and under `Unrolled` d_y·σ²/2 with the scale σ of the data. Near a minimum of the
            mean of ½·c·|y − y*|² rates are stable while η·c·σ_max^(1−κ) < 2, σ_max = `last.singular_values[0]`.
        kappa: exponent κ, −1 … 1; ½ by default.
        rcond: number, singular values up to rcond·σ_max are dropped, or a filter, `Cutoff(rcond, damping)` or
            `Smooth(rcond, damping)`. 1e-6 by default, 1e-4 … 1e-3 for long or noisy physics. Below about 1e-7, J itself
            must be decomposed: `Automatic` does, engines by J·Jᵀ are refused.
        per_sample: division of J and of the gradients of the single samples by √samples, so that an update does not
            depend on how often a sample is repeated in the batch; `False` is the paper's scaling.
        engine: engine that computes the update, see `phi_hybrid.optim.engines`; its needs are estimated before the first
            step.
        then: torch optimizer over the same parameters that takes the half-inverse gradient as its gradient, e.g.
            `torch.optim.SGD(module.parameters(), 1.0, momentum=0.9)`; its learning rate counts then, and `lr` does not.
        progress: display of that estimate.

    Under `DistributedDataParallel`, around the module or within it, the mini-batch is that of all processes together; they
    must have equal numbers of samples.

    Attributes:
        takes_outputs: sign that a gradient alone would not do.
        last: `Update` of the last step: direction, singular values, number kept, `norm`.

    Raises:
        StateError: for settings out of range, and for modules with batch statistics or dropout, whose outputs have no
            Jacobian of their own.
    """

    takes_outputs = True

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
        require_instance(
            "module", module, torch.nn.Module, "the network or solver itself, HIG(network), not its parameters"
        )
        require_number("lr", lr, least=0)
        require_kappa(kappa)
        require_instance("rcond", rcond, (Real, Cutoff, Smooth), "a number, Cutoff(rcond, damping) or Smooth(…)")
        require_instance("engine", engine, (Engine, Automatic), "an engine such as Gram() or Automatic()")
        _refuse_random_or_coupled(module)
        parameters = _trained(module)
        if then is not None:
            _require_same(parameters, then)
        super().__init__(parameters, {"lr": lr})
        self.module = module
        self.kappa = kappa
        self.filter: Filter = Cutoff(float(rcond)) if isinstance(rcond, Real) else rcond
        self.per_sample = per_sample
        self.engine = engine
        self.then = then
        self.progress = progress
        self.last: Update | None = None
        self._chosen: dict[tuple, Engine] = {}
        self._processes = Processes.of(module)
        if then is not None:
            self.param_groups = then.param_groups  # schedulers on this optimizer change that learning rate

    def step(self, closure: OutputsAndLoss) -> torch.Tensor:
        """One update; leaves the half-inverse gradient in `grad` of the parameters.

        Args:
            closure: object with `outputs` and `loss`, such as `Closure`.

        Returns:
            The loss before the update.

        Raises:
            StateError: for a closure without outputs, or an engine that needs too much memory.
            NonFiniteError: if outputs, loss or update are not finite; the weights are not changed.
        """
        closure = require_outputs(closure)
        _refuse_random_or_coupled(self.module)
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        with torch.enable_grad():
            with recorded(self.module) as layers:
                outputs = closure.outputs()
            flat = flattened(outputs)
            loss, cotangent = loss_gradient(closure.loss, outputs)
        if self.last is None:
            _require_dependence(flat, parameters)
        self._processes.require_equal(flat.numel())
        samples = (outputs if isinstance(outputs, torch.Tensor) else outputs[0]).shape[0]
        jacobian = Jacobian(flat, parameters, samples, layers, self._processes)
        loss, cotangent = self.joint(loss), self._processes.gathered(cotangent) / self._processes.size
        if not (torch.isfinite(loss) and torch.isfinite(cotangent).all()):
            raise NonFiniteError(f"the loss is {float(loss)}, or its gradient by the outputs is not finite", 0)
        scale = 1 / (samples * self._processes.size) if self.per_sample else 1.0
        self.last = self._engine(jacobian).update(jacobian, cotangent, self.filter, self.kappa, scale)
        if not all(torch.isfinite(d).all() for d in self.last.direction):
            raise NonFiniteError("the half-inverse gradient is not finite; use a larger rcond or damping", 0)
        for parameter, direction in zip(parameters, self.last.direction):
            parameter.grad = direction.clone()  # clipping it later must not change `last`
        if self.then is not None:
            self.then.step()
            return loss
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in (p for p in group["params"] if p.requires_grad):
                    parameter.add_(parameter.grad, alpha=-group["lr"])
        return loss

    def joint(self, loss: torch.Tensor) -> torch.Tensor:
        """Mean of a loss over all processes."""
        return self._processes.summed(loss.clone()) / self._processes.size

    def _engine(self, jacobian: Jacobian) -> Engine:
        """The engine for Jacobians of this size; the cost of a new one is shown."""
        size = jacobian.rows, jacobian.columns
        key = (*size, self.engine, self.filter)
        engine = self._chosen.get(key)
        if engine is None or engine.mismatch(jacobian, self.filter):
            engine = self._chosen[key] = self.engine.chosen(jacobian, self.filter)
            if self.progress and self._processes.rank == 0:
                cost = engine.cost(jacobian)
                tqdm.write(f"HIG: {size[0]} outputs, {size[1]} parameters: {type(engine).__name__}, {cost}", sys.stderr)
        return engine

    def state_dict(self) -> dict[str, Any]:
        """State of this optimizer, and of the one that follows it."""
        return {**super().state_dict(), "then": None if self.then is None else self.then.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            StateError: if only one of the two has an optimizer `then`.
        """
        state = dict(state_dict)
        then = state.pop("then", None)
        if (then is None) != (self.then is None):
            raise StateError(
                "the saved state and this HIG do not both have an optimizer `then`; make HIG as it was saved"
            )
        super().load_state_dict(state)
        if self.then is not None:
            self.then.load_state_dict(then)
            self.param_groups = self.then.param_groups


def _trained(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Parameters that are not frozen."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise StateError(f"{type(module).__name__} has no parameters to train: all are frozen, or there are none")
    for name, parameter in trained.items():
        if parameter.is_complex():
            raise StateError(f"{name} is complex; keep it as real and imaginary part, e.g. torch.view_as_real(…)")
    return list(trained.values())


def _require_dependence(outputs: torch.Tensor, parameters: list[torch.nn.Parameter]) -> None:
    """Raises StateError for outputs of another network, which leave the trained one as it is."""
    depends = outputs.requires_grad and any(
        g is not None
        for g in torch.autograd.grad(
            outputs, parameters, torch.ones_like(outputs), retain_graph=True, allow_unused=True
        )
    )
    if not depends:
        raise StateError(
            "the outputs do not depend on the trained parameters: were they detached, all frozen, or are they those of "
            "another network, such as a copy?"
        )


def _require_same(parameters: list[torch.nn.Parameter], then: torch.optim.Optimizer) -> None:
    """The optimizer that follows moves these parameters, and wants a gradient only."""
    if isinstance(then, torch.optim.LBFGS) or getattr(then, "takes_outputs", False):
        raise StateError(f"then = {type(then).__name__}, which wants a closure; use e.g. SGD with momentum, or Adam")
    own = {id(p) for group in then.param_groups for p in group["params"] if p.requires_grad}
    if own != {id(p) for p in parameters}:
        raise StateError("the optimizer `then` has other parameters than the module; make it with module.parameters()")


def _refuse_random_or_coupled(module: torch.nn.Module) -> None:
    for name, part in module.named_modules():
        coupled = isinstance(part, _COUPLED)
        if part.training and (coupled or _is_random(part)):
            why = "couples the samples of a batch" if coupled else "draws new numbers in every call"
            raise StateError(
                f"{name or 'the module'} is a {type(part).__name__}, which {why}, so that outputs have no Jacobian sample by "
                "sample; take it out (phiml networks: batch_norm=False), or put it in evaluation mode with .eval()"
            )


def _is_random(part: torch.nn.Module) -> bool:
    if isinstance(part, _DROPOUT):
        return part.p > 0
    inner = isinstance(part, (torch.nn.RNNBase, torch.nn.MultiheadAttention)) and part.dropout > 0
    return inner or isinstance(part, torch.nn.RReLU)
