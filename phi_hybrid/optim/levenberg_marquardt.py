"""Gauss–Newton with a damping that adapts itself (Levenberg 1944, Marquardt 1963)."""

from __future__ import annotations

from typing import Any

import torch

from phi_hybrid.bridge.checks import require_number
from phi_hybrid.errors import NonFiniteError, SolveError
from phi_hybrid.optim.automatic import Automatic
from phi_hybrid.optim.closure import OutputsAndLoss
from phi_hybrid.optim.engines import Engine, Update
from phi_hybrid.optim.filters import Smooth
from phi_hybrid.optim.hig import HIG

_RCOND = 1e-6
"""Least λ relative to σ_max: smaller singular values are rounding errors to most engines."""


class LevenbergMarquardt(torch.optim.Optimizer):
    """Levenberg–Marquardt: Δθ = −η Jᵀ (J Jᵀ + λ²·1)⁻¹ ∂L/∂y, λ falling with the loss of the mini-batch, or else rising.

    λ² is never less than (1e-6·σ_max)². A step that does not reduce the loss is taken back. `HIG` with κ = 1 and a constant damping is Gauss–Newton.

    Args:
        module: network or hybrid solver to train.
        lr: learning rate η; 1 by default, for ½·Σ|y − y*|² of each sample. Take 0.5 for Σ|y − y*|²: twice the length leads to where the loss is
            the same, see `HIG`.
        damping: initial λ, in units of the singular values of J (per sample, see `HIG`); 0.1 by default.
        factor: number that λ is divided by after a success, and multiplied with after a failure; 2 by default.
        engine: engine, as for `HIG`.
        progress: display of the estimate of an update's needs.

    Attributes:
        damping: present λ.
        last: `Update` of the last step.

    Raises:
        StateError: for settings out of range, and as `HIG` does.
    """

    takes_outputs = True

    def __init__(
        self,
        module: torch.nn.Module,
        lr: float = 1.0,
        damping: float = 0.1,
        factor: float = 2.0,
        *,
        engine: Engine | Automatic = Automatic(),
        progress: bool = True,
    ) -> None:
        require_number("damping", damping, above=0, way_out="HIG with kappa=1 works without")
        require_number("factor", factor, above=1)
        self._step = HIG(module, lr, 1.0, Smooth(_RCOND, damping), engine=engine, progress=progress)
        super().__init__(self._step.param_groups, {"lr": lr})
        self.param_groups = self._step.param_groups  # schedulers on this optimizer change that learning rate
        self.damping = damping
        self.factor = factor

    @property
    def last(self) -> Update | None:
        return self._step.last

    def step(self, closure: OutputsAndLoss) -> torch.Tensor:
        """One trial step; the loss before it is returned. Arguments and errors are those of `HIG.step`."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        self._step.filter = Smooth(_RCOND, self.damping)
        loss = self._step.step(closure)
        if self._loss_after(closure) < loss:
            self.damping = max(self.damping / self.factor, 1e-12)
            return loss
        self.damping = min(self.damping * self.factor, 1e12)  # at a minimum no step reduces the loss
        with torch.no_grad():
            for parameter, value in zip(parameters, before):
                parameter.copy_(value)
        return loss

    @torch.no_grad()
    def _loss_after(self, closure: OutputsAndLoss) -> float:
        try:
            loss = closure.loss(closure.outputs())
        except (NonFiniteError, SolveError):  # a step that went too far, like any other
            loss = torch.full((), float("inf"), device=self.param_groups[0]["params"][0].device)
        return float(self._step.joint(loss))

    def state_dict(self) -> dict[str, Any]:
        """Learning rate and damping."""
        return {**super().state_dict(), "damping": self.damping}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        state = dict(state_dict)
        self.damping = state.pop("damping")
        super().load_state_dict(state)
        self._step.param_groups = self.param_groups
