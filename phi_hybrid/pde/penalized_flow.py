"""Flow past a body that is an input: a porous body in a channel (Angot et al. 1999), its drag, and the mask of a shape.

∂u/∂t + u·∇u = ν ∇²u − ∇p − (χ/η) u, ∇·u = 0, with χ = 1 in the body, 0 in the fluid, and small permeability η.
Since χ is an argument of the step, drag can be differentiated by the shape, and the pressure solve is that of a plain box.

State u: velocity, staggered `(batch, x, y)`. Input: the mask χ on the same faces.
"""

from __future__ import annotations

import math as pymath
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from phi import math
from phi.field import Field, StaggeredGrid
from phi.geom import Box
from phi.math.extrapolation import ZERO_GRADIENT
from phi.physics import advect, diffuse, fluid

from phi_hybrid.errors import StateError
from phi_hybrid.pde.checks import require_count, require_number

__all__ = ["Channel", "polar_radius", "signed_distance"]


@dataclass(frozen=True)
class Channel:
    """Channel flow along x past a body, in units of the body's diameter D = 1 and the mean inflow U = 1.

    The defaults are benchmark 2D-1 of Schäfer & Turek (1996) with the body on the centre line: height 4.1 D, parabolic
    inflow 2 D ahead of the body, Re = U·D/ν = 20. PhiFlow's constant boundary holds at the first ghost points, half a cell
    outside, so that `cells` cells of size height/(cells + 1) make up the height.

    Args:
        cells: across the channel, e.g. 48.
        height: of the channel.
        aspect: cells along the channel per cell across.
        centre: position of the body along x.
        reynolds: Re.
        smoothing: width δ of the mask in cells.

    Raises:
        StateError: for numbers that are not positive and finite.
    """

    cells: int
    height: float = 4.1
    aspect: int = 2
    centre: float = 2.0
    reynolds: float = 20.0
    smoothing: float = 1.5

    def __post_init__(self) -> None:
        for name in ("cells", "aspect"):
            require_count(name, getattr(self, name))
        for name in ("height", "centre", "reynolds", "smoothing"):
            require_number(name, getattr(self, name), positive=True)

    @property
    def dx(self) -> float:
        """Size of a cell."""
        return self.height / (self.cells + 1)

    @property
    def viscosity(self) -> float:
        """ν = U·D/Re."""
        return 1 / self.reynolds

    @property
    def dt(self) -> float:
        """Stable for explicit diffusion, dt < dx²/4ν, and for central advection by Euler steps, dt < 2ν/u²."""
        return min(0.18 * self.dx**2 / self.viscosity, 0.3 * self.viscosity)

    @property
    def permeability(self) -> float:
        """η = (δ/2.648)²/ν: no shear flow is displaced then by a tanh mask of width δ (Hester, Vasil & Burns 2021)."""
        return (self.smoothing * self.dx / 2.648228) ** 2 / self.viscosity

    # --- step ---

    def step(self) -> Callable[..., Any]:
        """`step(velocity, mask) -> velocity`: both staggered `(batch, x, y)`, mask χ on the faces. To be captured.

        The inflow profile is prescribed in the first columns.
        """
        inflow, rest = self.rest(), self._grid(0, inflow=0.0)
        near = self._grid(lambda x: math.vec(x=x.vector["x"], y=x.vector["x"])).values < 2.2 * self.dx
        inlet = math.to_float(near)

        def step(velocity: Field, mask: Field) -> Field:
            change = advect.differential(velocity, velocity, order=2).values
            diffused = diffuse.explicit(velocity, self.viscosity, self.dt)
            values = diffused.values + self.dt * change
            values = values + inlet * (inflow.values - values)
            # PhiFlow's boundary values are constant; the difference to the profile is 0 at the inflow
            free = inflow.values + fluid.make_incompressible(rest.with_values(values - inflow.values))[0].values
            return velocity.with_values(free / (1 + self.dt / self.permeability * mask.values))

        return step

    def drag(self, velocity: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """C_D = 2F/(U²D), F = ∫ (χ/η) u_x dV, of x components `(batch, x, y)` on their faces, in steady flow."""
        return 2 * self.dx**2 / self.permeability * (mask * velocity).sum((-2, -1))

    # --- states ---

    def rest(self) -> Field:
        """The undisturbed parabolic flow, staggered `(x, y)`."""
        return self._grid(lambda x: math.vec(x=self._parabola(x.vector["y"]), y=0 * x.vector["y"]))

    def points(self) -> tuple[Field, Field]:
        """x and y of all faces with the body's centre at the origin, as two fields like the velocity."""
        middle = self.cells * self.dx / 2
        along = self._grid(lambda x: math.vec(x=x.vector["x"] - self.centre, y=x.vector["x"] - self.centre))
        return along, self._grid(lambda x: math.vec(x=x.vector["y"] - middle, y=x.vector["y"] - middle))

    # --- inputs ---

    def mask(self, distance: torch.Tensor) -> torch.Tensor:
        """χ = (1 − tanh(2d/δ))/2 of the signed distance d to the body, negative inside."""
        return (1 - torch.tanh(2 * distance / (self.smoothing * self.dx))) / 2

    def body(self, coefficients: torch.Tensor, points: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """χ at native points (x, y) of a polar shape whose area on the grid, Σ χ dx², is that of the disc, π/4, to rounding.

        Smoothing adds some area where the boundary is curved, and grids see it in steps; lengths are scaled so that it is
        lost again. The last of Newton's steps is the one that is differentiated.
        """
        x, y = points

        def scaled(scale: torch.Tensor) -> torch.Tensor:
            return self.mask(scale * signed_distance(coefficients, x / scale, y / scale))

        def surplus(scale: torch.Tensor) -> torch.Tensor:
            return scaled(scale).sum() * self.dx**2 - pymath.pi / 4

        scale = torch.ones((), dtype=coefficients.dtype, device=coefficients.device)
        for _ in range(4):
            with torch.no_grad():
                slope = (surplus(1.001 * scale) - surplus(0.999 * scale)) / (0.002 * scale)
            scale = scale.detach() - surplus(scale.detach()) / slope
        return scaled(scale)

    # --- grid ---

    def _parabola(self, y: math.Tensor) -> math.Tensor:
        """Mean 1 over the faces of the grid."""
        position = (y + self.dx / 2) / self.height
        rows = [(j + 1) / (self.cells + 1) for j in range(self.cells)]
        return position * (1 - position) * self.cells / sum(s * (1 - s) for s in rows)

    def _grid(self, values: object, inflow: float = 1.0) -> Field:
        boundary = {"x-": math.vec(x=inflow, y=0.0), "x+": ZERO_GRADIENT, "y": 0}
        size = {"x": self.aspect * self.cells, "y": self.cells}
        bounds = Box(x=size["x"] * self.dx, y=size["y"] * self.dx)
        return StaggeredGrid(values, boundary, **size, bounds=bounds)


def polar_radius(
    coefficients: torch.Tensor, angle: torch.Tensor, area: float = pymath.pi / 4, smallest: float = 0.15
) -> torch.Tensor:
    """r(φ) of a body that is symmetric about φ = 0, of given area, nowhere thinner than the smallest radius.

    r² = r_min² + (A/π − r_min²)·q/⟨q⟩ with q = exp(2 Σ_k a_k cos kφ) and its mean ⟨q⟩ over all φ: ∫½r² dφ = A for all
    coefficients a_k, k = 1, 2, ….

    Args:
        coefficients: a_k, `(k,)`; 0 for a disc.
        angle: φ, of any shape.
        area: A, default that of a disc of diameter 1.
        smallest: r_min.

    Raises:
        StateError: for a smallest radius that does not fit into the area.
    """
    if pymath.pi * smallest**2 >= area:
        raise StateError(
            f"smallest = {smallest}: a disc of this radius is larger than area = {area}; take a smaller one"
        )
    k = torch.arange(1, len(coefficients) + 1, dtype=coefficients.dtype)

    def q(phi: torch.Tensor) -> torch.Tensor:
        return torch.exp(2 * torch.cos(phi[..., None] * k) @ coefficients)

    around = 2 * pymath.pi * torch.arange(256, dtype=coefficients.dtype) / 256
    return torch.sqrt(smallest**2 + (area / pymath.pi - smallest**2) * q(angle) / q(around).mean())


def signed_distance(coefficients: torch.Tensor, x: torch.Tensor, y: torch.Tensor, **bounds: float) -> torch.Tensor:
    """Distance to the curve r(φ) of `polar_radius` to first order, d = (ρ − r)/√(1 + (r'/r)²), negative inside."""
    central = torch.maximum(x.abs(), y.abs()) < 1e-6  # φ has no derivative in the centre
    x, y = torch.where(central, 1e-6, x), torch.where(central, 0.0, y)
    angle = torch.atan2(y, x)
    radius = polar_radius(coefficients, angle, **bounds)
    h = 1e-4
    slope = (polar_radius(coefficients, angle + h, **bounds) - polar_radius(coefficients, angle - h, **bounds)) / (
        2 * h
    )
    return (torch.hypot(x, y) - radius) / torch.sqrt(1 + (slope / radius) ** 2)
