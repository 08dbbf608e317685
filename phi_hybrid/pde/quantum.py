"""A quantum particle in a box, steered by an electric field: i ∂ψ/∂t = (−∂²/∂x² + u(t)·x) ψ, ψ = 0 at the walls.

Units are those in which ħ = 1 and the mass is ½ (Schnell et al. 2022, arXiv 2203.10131). Wave functions are normalised
to Σ |ψⱼ|² = 1 over the points of the grid.
"""

from __future__ import annotations

import math as pymath
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from phi import math
from phi.math import Tensor, batch, channel, spatial

from phi_hybrid.errors import StateError
from phi_hybrid.pde._control import advanced, as_tensor, require, require_number

__all__ = ["Well", "components", "infidelity", "wave_function"]

_PARTS = channel(part="real,imaginary")


@dataclass(frozen=True)
class Well:
    """An infinitely deep well, a dipole that couples to a field, and a time step.

    By default the quantum dipole of Schnell et al. 2022: a network sees a target, a superposition of the second and the
    third eigenstate, and returns the field for 384 steps, which brings the particle there from the first.

    A state is a complex tensor `(batch, x)` over the points between the walls, a control `(batch)`.

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

    def __post_init__(self) -> None:
        for name, least in (("points", 3), ("steps", 1)):
            value = getattr(self, name)
            require(
                isinstance(value, int) and value >= least,
                f"{name} = {value!r}: expected an integer of at least {least}",
            )
        require_number("length", self.length)
        require(self.length > 0, f"length = {self.length!r}: expected a distance > 0")
        require_number("dt", self.dt, nonzero=True)

    # --- steps ---

    def step(self, psi: Tensor, control: float | Tensor) -> Tensor:
        """One Crank–Nicolson step, (1 + i·dt/2·H) ψ⁺ = (1 − i·dt/2·H) ψ: of second order, keeps the norm to rounding.

        Args:
            psi: complex `(batch, x)`.
            control: u, field strength during the step, `(batch)` or a number; in a rollout `(time, batch)`.

        Returns:
            Tensor like `psi`, to be captured or used as it is.

        Raises:
            StateError: for states and controls of other dims, or real states.
        """
        self._check(psi)
        return advanced(self._advance, psi, ["x"], control, sequence=False)

    def controlled(self, psi: Tensor, controls: Tensor) -> Tensor:
        """The state after a whole sequence of controls, `(time, batch)`, one per step: `step` applied again and again.

        Like `step`, to be captured or used as it is, with the same result and errors.
        """
        self._check(psi)
        return advanced(self._advance, psi, ["x"], controls, sequence=True)

    def _advance(self, psi: torch.Tensor, controls: torch.Tensor) -> torch.Tensor:
        """ψ⁺ = φ − ψ with ½(1 + i·dt/2·H) φ = ψ, which saves the product with 1 − i·dt/2·H = 2 − (1 + i·dt/2·H)."""
        free = torch.as_tensor(np.eye(self.points - 2) / 2 + 0.25j * self.dt * self._kinetic()).to(psi)
        field = 0.25j * self.dt * torch.as_tensor(self._positions()).to(psi) * controls.unsqueeze(-1)
        for diagonal in field.unbind(0):
            matrix = free + torch.diag_embed(diagonal)  # regular for all real u, so that nothing needs to be checked
            psi = torch.linalg.solve_ex(matrix, psi.unsqueeze(-1))[0].squeeze(-1) - psi
        return psi

    def _kinetic(self) -> np.ndarray:
        """−∂²/∂x² by second-order differences."""
        inside, dx = self.points - 2, self.length / (self.points - 1)
        return (2 * np.eye(inside) - np.eye(inside, k=1) - np.eye(inside, k=-1)) / dx**2

    # --- states ---

    def positions(self) -> Tensor:
        """x of the points between the walls, `(x)`."""
        return as_tensor(self._positions(), spatial("x"))

    def _positions(self) -> np.ndarray:
        return self.length * np.arange(1, self.points - 1) / (self.points - 1)

    def eigenstate(self, level: int) -> Tensor:
        """ψₙ ∝ sin(πnx/L), complex `(x)`: eigenfunction of the free particle, exact on the grid as well.

        Args:
            level: n, from 1 (the ground state) to the number of points between the walls.

        Raises:
            StateError: for levels that the grid does not have.
        """
        return as_tensor(self._eigenstate(level) + 0j, spatial("x"))

    def _eigenstate(self, level: int) -> np.ndarray:
        self._check_level(level)
        return np.sqrt(2 / (self.points - 1)) * np.sin(np.pi * level * self._positions() / self.length)

    def energy(self, level: int) -> float:
        """Eₙ = 2(1 − cos(πn·dx/L))/dx² of an eigenstate on the grid, which tends to (πn/L)² for many points."""
        self._check_level(level)
        dx = self.length / (self.points - 1)
        return 2 * (1 - pymath.cos(pymath.pi * level * dx / self.length)) / dx**2

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

    # --- checks ---

    def _check(self, psi: Tensor) -> None:
        expected = f"expected complex (batch, x={self.points - 2}), e.g. from eigenstate(1) or superpositions(…)"
        if not isinstance(psi, Tensor):
            raise StateError(f"psi is a {type(psi).__name__}: {expected}")
        if psi.shape.non_batch.names != ("x",) or psi.shape.get_size("x") != self.points - 2:
            raise StateError(f"psi has shape {psi.shape}: {expected}")
        _check_complex("psi", psi)

    def _check_level(self, level: int) -> None:
        highest = self.points - 2
        require(
            isinstance(level, int) and 1 <= level <= highest,
            f"level = {level!r}: expected an integer from 1 to {highest}, or a Well with more points",
        )


def infidelity(psi: Tensor, target: Tensor) -> Tensor:
    """1 − |⟨ψ, ψ*⟩|² of normalised wave functions: 0 where they agree up to a phase, 1 where they are orthogonal, `(batch)`.

    Args:
        psi: complex `(batch, x)`.
        target: ψ*, complex `(batch, x)`.

    Raises:
        StateError: for states that are real or on different grids.
    """
    for name, state in (("psi", psi), ("target", target)):
        if not isinstance(state, Tensor) or state.shape.non_batch.names != ("x",):
            what = f"has shape {state.shape}" if isinstance(state, Tensor) else f"is a {type(state).__name__}"
            raise StateError(f"{name} {what}: expected complex (batch, x); see wave_function() for real components")
        _check_complex(name, state)
    sizes = psi.shape.get_size("x"), target.shape.get_size("x")
    require(sizes[0] == sizes[1], f"psi has {sizes[0]} points and target {sizes[1]}: take both from the same Well")
    overlap = math.sum(math.conjugate(psi) * target, "x")
    return 1 - math.real(overlap) ** 2 - math.imag(overlap) ** 2


def components(psi: Tensor) -> Tensor:
    """Real and imaginary part, `(batch, x, part='real,imaginary')`: what networks see and Jacobians are taken of."""
    _check_complex("psi", psi)
    return math.stack([math.real(psi), math.imag(psi)], _PARTS)


def wave_function(parts: Tensor) -> Tensor:
    """Complex `(batch, x)` from `(batch, x, part='real,imaginary')`, the inverse of `components`.

    Raises:
        StateError: for tensors without these parts.
    """
    if not isinstance(parts, Tensor) or "part" not in parts.shape or parts.shape["part"] != _PARTS:
        what = f"have shape {parts.shape}" if isinstance(parts, Tensor) else f"are a {type(parts).__name__}"
        raise StateError(f"parts {what}: expected (batch, x, part=real,imaginary); see components()")
    return parts.part["real"] + 1j * parts.part["imaginary"]


def _check_complex(name: str, psi: Tensor) -> None:
    if psi.dtype.kind is not complex:
        raise StateError(f"{name} has type {psi.dtype}: expected complex amplitudes; use math.to_complex({name})")
