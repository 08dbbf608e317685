"""Several optimizers as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from phi_hybrid.bridge.checks import require_instance
from phi_hybrid.errors import StateError


class Optimizers(torch.optim.Optimizer):
    """One optimizer made of several, each for its own parameters: one gradient, then a step of each.

    e.g. `Optimizers(Muon(matrices), Adam(the_rest))`. Their groups are shared, so that a scheduler of this optimizer acts on
    those of all.

    Args:
        *optimizers: over disjoint parameters; each must look at the gradient once, which rules out line searches.

    Raises:
        StateError: for parameters that two of them have, and for optimizers that ask for more than a gradient.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        for optimizer in optimizers:
            require_instance("optimizer", optimizer, torch.optim.Optimizer, "e.g. torch.optim.Adam(parameters)")
            if getattr(optimizer, "takes_outputs", False) or isinstance(optimizer, torch.optim.LBFGS):
                raise StateError(
                    f"{type(optimizer).__name__} asks for more than one gradient, and cannot share it with others; use it alone"
                )
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        parameters = [id(p) for group in groups for p in group["params"]]
        if not optimizers or len(set(parameters)) < len(parameters):
            raise StateError(
                f"{len(optimizers)} optimizers over {len(parameters)} parameters, {len(set(parameters))} of them distinct: give "
                "each parameter to one of them"
            )
        self.optimizers = optimizers
        super().__init__([{"params": group["params"]} for group in groups], {})
        self.param_groups = groups  # those of the optimizers themselves, not copies

    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """The loss before; a step of each optimizer with the gradient that the closure leaves."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def eval(self) -> None:
        """Asks those that have other weights to be evaluated, such as schedule-free ones, to put them in place."""
        self._call_if_there("eval")

    def train(self) -> None:
        """The same for the weights to be trained."""
        self._call_if_there("train")

    def _call_if_there(self, method: str) -> None:
        for optimizer in self.optimizers:
            if callable(getattr(optimizer, method, None)):
                getattr(optimizer, method)()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            StateError: for the state of another number of optimizers.
        """
        states = state_dict["optimizers"]
        if len(states) != len(self.optimizers):
            raise StateError(
                f"the saved state is of {len(states)} optimizers, this one has {len(self.optimizers)}: make Optimizers(…) of as "
                "many as when it was saved"
            )
        for optimizer, state in zip(self.optimizers, states):
            optimizer.load_state_dict(state)
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
