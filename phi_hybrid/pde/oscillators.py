"""Chains of coupled oscillators whose last one is driven, ẍᵢ = −xᵢ + Tᵢ − Tᵢ₋₁ + γ·u(t)·δᵢₙ.

Tᵢ = α·sᵢ + β·sᵢ³ is the tension of the spring between neighbours, sᵢ = xᵢ₊₁ − xᵢ; both ends of the chain are free.
All quantities are in units of the mass and of the frequency of a single oscillator.

State: a tensor `(batch, oscillators, phase='position,velocity')`. Input: the control u, `(batch)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from phi.math import Tensor, batch, channel, instance
from torch.nn.functional import pad

from phi_hybrid.errors import StateError
from phi_hybrid.pde.checks import require_count, require_number
from phi_hybrid.pde.controlled import Controlled
from phi_hybrid.pde.grids import as_tensor

__all__ = ["Oscillators", "nonlinear_oscillators"]

_PHASE = channel(phase="position,velocity")


@dataclass(frozen=True)
class Oscillators(Controlled):
    """A chain of oscillators and its time step; by default the linear chain of Thuerey et al., *Physics-based Deep Learning*.

    There, a network sees a start and a target state and returns the controls of 24 steps, by which the chain gets from
    one to the other. `nonlinear_oscillators()` is the chain with cubic springs of Schnell et al. 2022 (arXiv 2203.10131).
    A step is one of the classical Runge–Kutta method, of fourth order in dt.

    Args:
        count: number of oscillators.
        coupling: α, of the linear springs.
        cubic: β, of the cubic springs. (The Hamiltonian printed in both sources, with a term α(xᵢ − xᵢ₊₁)⁴, belongs to
            four times the force that their programs compute; β = 1 is the force of the programs.)
        gain: γ, acceleration of the last oscillator per unit of control.
        dt: time step.
        steps: length of a control sequence; only a number to refer to.

    Raises:
        StateError: for a count or a number of steps below 1, for values that are not finite, or a time step of 0.
    """

    count: int = 2
    coupling: float = 0.2
    cubic: float = 0.0
    gain: float = 1.0
    dt: float = 0.5
    steps: int = 24

    dims: ClassVar = ("oscillators", "phase")

    def __post_init__(self) -> None:
        for name in ("count", "steps"):
            require_count(name, getattr(self, name))
        for name in ("coupling", "cubic", "gain"):
            require_number(name, getattr(self, name))
        require_number("dt", self.dt, nonzero=True, way_out="a negative one runs backwards in time")

    # --- step ---

    def advance(self, state: torch.Tensor, controls: torch.Tensor) -> torch.Tensor:
        """Runge–Kutta for ẍ = a(x) + drive: the stages of the velocity inserted into those of the position."""
        x, v = state.unbind(-1)
        dt, acceleration = self.dt, self._acceleration(x)
        for drive in pad(self.gain * controls.unsqueeze(-1), (self.count - 1, 0)).unbind(0):
            middle = x + dt / 2 * v
            a1 = acceleration(x) + drive
            a2 = acceleration(middle) + drive
            a3 = acceleration(middle + dt**2 / 4 * a1) + drive
            a4 = acceleration(x + dt * v + dt**2 / 2 * a2) + drive
            a23 = a2 + a3
            x = x + dt * v + dt**2 / 6 * (a1 + a23)
            v = v + dt / 6 * (a1 + 2 * a23 + a4)
        return torch.stack([x, v], -1)

    def _acceleration(self, like: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """`x -> −xᵢ + Tᵢ − Tᵢ₋₁` for positions `(…, oscillators)`, as products with constant matrices."""
        difference = np.diff(np.eye(self.count), axis=0)
        linear = torch.as_tensor(-np.eye(self.count) - self.coupling * difference.T @ difference).to(like)
        if not self.cubic:
            return lambda x: x @ linear
        stretch, force = torch.as_tensor(difference.T).to(like), torch.as_tensor(-self.cubic * difference).to(like)
        return lambda x: x @ linear + (x @ stretch) ** 3 @ force

    # --- states ---

    def random_states(self, trajectories: int, seed: int) -> Tensor:
        """Positions and velocities uniform in 0 … 1, `(trajectory, oscillators, phase)`, as in both sources."""
        values = np.random.default_rng(seed).random((trajectories, self.count, 2))
        return as_tensor(values, batch("trajectory"), instance("oscillators"), _PHASE)

    # --- checks ---

    def check(self, state: Tensor) -> None:
        """Raises StateError for states of other dims or numbers."""
        expected = (
            f"expected dims (batch, oscillators={self.count}, phase=position,velocity), e.g. from random_states(…)"
        )
        if not isinstance(state, Tensor):
            raise StateError(f"state is a {type(state).__name__}: {expected}")
        known = set(state.shape.non_batch.names) == set(self.dims) and state.shape.get_size("oscillators") == self.count
        if not known or state.shape["phase"] != _PHASE:
            raise StateError(f"state has shape {state.shape}: {expected}")
        if state.dtype.kind is not float:
            raise StateError(f"state has type {state.dtype}: expected real numbers; use math.to_float(state)")


def nonlinear_oscillators(
    count: int = 2, cubic: float = 1.0, gain: float = 3.0, dt: float = 0.125, steps: int = 96
) -> Oscillators:
    """Oscillators with cubic springs only; by default those of Schnell et al. 2022 (arXiv 2203.10131)."""
    return Oscillators(count, 0.0, cubic, gain, dt, steps)
