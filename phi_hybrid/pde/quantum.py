"""A quantum particle in a box, steered by an electric field: i ∂ψ/∂t = (−∂²/∂x² + u(t)·x) ψ, ψ = 0 at the walls.

Units are those in which ħ = 1 and the mass is ½ (Schnell et al. 2022, arXiv 2203.10131). Wave functions are normalised
to Σ |ψⱼ|² = 1 over the points of the grid.

State ψ: a complex tensor `(batch, x)` over the points between the walls. Input: the field strength u, `(batch)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from phi import math
from phi.math import Tensor, batch, spatial

from phi_hybrid.errors import StateError
from phi_hybrid.pde.checks import require, require_count, require_number
from phi_hybrid.pde.controlled import Controlled
from phi_hybrid.pde.grids import as_tensor

__all__ = ["Well", "infidelity"]


@dataclass(frozen=True)
class Well(Controlled):
    """An infinitely deep well, a dipole that couples to a field, and a time step.

    By default the quantum dipole of Schnell et al. 2022: a network sees a target, a superposition of the second and the
    third eigenstate, and returns the field for 384 steps, which brings the particle there from the first.

    A step is that of Crank and Nicolson, (1 + i·dt/2·H) ψ⁺ = (1 − i·dt/2·H) ψ: of second order, keeps the norm to rounding.

    Args:
        points: number of grid points, those on the walls included.
        length: L, distance of the walls, at x = 0 and x = L.
        dt: time step; of either sign, and steps of −dt take back steps of dt.
        steps: length of a control sequence; only a number to refer to.

    Raises:
        StateError: for fewer than 3 points or 1 step, a length that is not positive, a time step of 0 or infinity.
    """

    points: int = 16
    length: float = 2.0
    dt: float = 0.05
    steps: int = 384

    dims: ClassVar = ("x",)

    def __post_init__(self) -> None:
        require_count("points", self.points, 3)
        require_count("steps", self.steps)
        require_number("length", self.length, positive=True)
        require_number("dt", self.dt, nonzero=True, way_out="a negative one runs backwards in time")

    # --- step ---

    def advance(self, state: torch.Tensor, controls: torch.Tensor) -> torch.Tensor:
        """ψ⁺ = φ − ψ with ½(1 + i·dt/2·H) φ = ψ, which saves the product with 1 − i·dt/2·H = 2 − (1 + i·dt/2·H)."""
        free = torch.as_tensor(np.eye(self.points - 2) / 2 + 0.25j * self.dt * self._kinetic()).to(state)
        field = 0.25j * self.dt * torch.as_tensor(self._positions()).to(state) * controls.unsqueeze(-1)
        for diagonal in field.unbind(0):
            matrix = free + torch.diag_embed(diagonal)  # regular for all real u, so that nothing needs to be checked
            state = torch.linalg.solve_ex(matrix, state.unsqueeze(-1))[0].squeeze(-1) - state
        return state

    def _kinetic(self) -> np.ndarray:
        """−∂²/∂x² by second-order differences."""
        inside, dx = self.points - 2, self.length / (self.points - 1)
        return (2 * np.eye(inside) - np.eye(inside, k=1) - np.eye(inside, k=-1)) / dx**2

    # --- states ---

    def eigenstate(self, level: int) -> Tensor:
        """ψₙ ∝ sin(πnx/L), complex `(x)`: eigenfunction of the free particle, exact on the grid as well.

        Args:
            level: n, from 1 (the ground state) to the number of points between the walls.

        Raises:
            StateError: for levels that the grid does not have.
        """
        return as_tensor(self._eigenstate(level) + 0j, spatial("x"))

    def superpositions(
        self, trajectories: int, seed: int, levels: Sequence[int] = (2, 3), phases: bool = False
    ) -> Tensor:
        """Random normalised superpositions of eigenstates, complex `(trajectory, x)`.

        Args:
            trajectories: number of samples.
            seed: of NumPy's generator.
            levels: the eigenstates; their real coefficients are uniform on the unit sphere.
            phases: whether each coefficient gets a random phase as well; without, as in the program of the paper.

        Raises:
            StateError: for levels that the grid does not have.
        """
        rng = np.random.default_rng(seed)
        states = np.stack([self._eigenstate(level) for level in levels])
        amplitudes = rng.normal(size=(trajectories, len(states)))
        amplitudes = amplitudes / np.linalg.norm(amplitudes, axis=1, keepdims=True) + 0j
        if phases:
            amplitudes *= np.exp(2j * np.pi * rng.random(amplitudes.shape))
        return as_tensor(amplitudes @ states, batch("trajectory"), spatial("x"))

    def _positions(self) -> np.ndarray:
        """x of the points between the walls."""
        return self.length * np.arange(1, self.points - 1) / (self.points - 1)

    def _eigenstate(self, level: int) -> np.ndarray:
        highest = self.points - 2
        valid = isinstance(level, int) and 1 <= level <= highest
        require(valid, f"level = {level!r}: expected an integer from 1 to {highest}, or a Well with more points")
        return np.sqrt(2 / (self.points - 1)) * np.sin(np.pi * level * self._positions() / self.length)

    # --- checks ---

    def check(self, state: Tensor) -> None:
        """Raises StateError for states that are real or have other points."""
        _check("psi", state, f"expected complex (batch, x={self.points - 2}), e.g. from eigenstate(1)", self.points - 2)


def infidelity(psi: Tensor, target: Tensor) -> Tensor:
    """1 − |⟨ψ, ψ*⟩|² of normalised wave functions: 0 where they agree up to a phase, 1 where they are orthogonal, `(batch)`.

    Args:
        psi: complex `(batch, x)`.
        target: ψ*, complex `(batch, x)`.

    Raises:
        StateError: for states that are real or on different grids.
    """
    for name, state in (("psi", psi), ("target", target)):
        _check(name, state, "expected complex (batch, x)")
    sizes = psi.shape.get_size("x"), target.shape.get_size("x")
    require(sizes[0] == sizes[1], f"psi has {sizes[0]} points and target {sizes[1]}: take both from the same Well")
    overlap = math.sum(math.conjugate(psi) * target, "x")
    return 1 - math.real(overlap) ** 2 - math.imag(overlap) ** 2


def _check(name: str, psi: Tensor, expected: str, points: int | None = None) -> None:
    if not isinstance(psi, Tensor):
        raise StateError(f"{name} is a {type(psi).__name__}: {expected}")
    known = psi.shape.non_batch.names == ("x",) and psi.shape.get_size("x") == (points or psi.shape.get_size("x"))
    require(known, f"{name} has shape {psi.shape}: {expected}")
    is_complex = psi.dtype.kind is complex
    require(is_complex, f"{name} has type {psi.dtype}: expected complex amplitudes; use math.to_complex({name})")
