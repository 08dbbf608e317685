"""A cylinder that may rotate in a channel: the flow behind it, its drag and lift.

Geometry and units of Schäfer & Turek (1996), with the cylinder on the centre line and a shorter channel: diameter and mean
inflow are 1, the channel is 4.1 wide, Re = 100. The cylinder is a set of faces on which the fluid is given the velocity of
the body in every step (solid fractions between); what momentum that takes is the force on the body.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from phi import math
from phi.field import Field
from phi.math import batch
from phi.physics import advect, diffuse, fluid

from phi_hybrid.pde.grids import diffusion_substeps
from phi_hybrid.pde.penalized_flow import Channel

State = dict[str, Field]
"""`velocity`, and `push`, the force per volume that the fluid exerts on the body; both staggered `(batch, x, y)`."""


@dataclass(frozen=True)
class Cylinder:
    """Sizes of grid and time.

    Args:
        cells: across the channel.
        aspect: length of the channel over its width.
        dt: of a step of the solver.
        hold: steps of the solver for which an action is held.
    """

    cells: int = 40
    aspect: int = 2
    dt: float = 0.025
    hold: int = 10
    reynolds: float = 100.0

    @cached_property
    def channel(self) -> Channel:
        """Grid, inflow and places."""
        return Channel(self.cells, aspect=self.aspect, reynolds=self.reynolds)

    @property
    def interval(self) -> float:
        """Time of an action, in diameters over mean inflow."""
        return self.hold * self.dt

    def step(self) -> Callable[[State, Field], State]:
        """`step(state, body) -> state` over the time of an action; `body` is the velocity of the body on all faces."""
        channel, inflow, solid = self.channel, self.channel.rest(), self.solid()
        along, _ = channel.points()
        inlet = math.to_float(along.values + channel.centre < 2.2 * channel.dx)
        substeps = diffusion_substeps(channel.viscosity, self.dt, channel.dx, 2)

        def advance(velocity: Field, body: Field) -> tuple[Field, math.Tensor]:
            velocity = advect.mac_cormack(velocity, velocity, self.dt)
            velocity = diffuse.explicit(velocity, channel.viscosity, self.dt, substeps=substeps)
            velocity = velocity.with_values(velocity.values + inlet * (inflow.values - velocity.values))
            free = (fluid.make_incompressible(velocity - inflow)[0] + inflow).values
            lost = solid.values * (free - body.values)
            return velocity.with_values(free - lost), lost

        def step(state: State, body: Field) -> State:
            velocity, taken = state["velocity"], []
            for _ in range(self.hold):
                velocity, lost = advance(velocity, body)
                taken.append(lost)
            return {"push": velocity.with_values(sum(taken) / self.interval), "velocity": velocity}

        return step

    # --- body ---

    def distance(self) -> Field:
        """From the rim, negative inside; on all faces."""
        x, y = self.channel.points()
        return x.with_values(math.sqrt(x.values**2 + y.values**2) - 0.5)

    def solid(self) -> Field:
        """How far the fluid on each face moves with the body: all of it half a cell inside of the rim, none half a cell outside."""
        distance = self.distance()
        return distance.with_values(math.clip(0.5 - distance.values / self.channel.dx, 0.0, 1.0))

    def rotation(self) -> Field:
        """Velocity of a body whose rim moves at the speed of the mean inflow, anticlockwise."""
        x, y = self.channel.points()
        return x.with_values(math.stack({"x": -2 * y.values["x"], "y": 2 * x.values["y"]}, math.dual("vector")))

    # --- states ---

    def rest(self, count: int = 1) -> State:
        """The undisturbed inflow everywhere, `count` times."""
        velocity = self.channel.rest()
        velocity = velocity.with_values(math.expand(velocity.values, batch(trajectory=count)))
        return {"push": 0 * velocity, "velocity": velocity}

    def mirrored(self, velocity: Field) -> Field:
        """The flow on the other side of the centre line, `(trajectory, x, y)`."""
        u, v = (velocity.values[{"~vector": d}] for d in "xy")
        return velocity.with_values(math.stack({"x": u.y[::-1], "y": -v.y[::-1]}, math.dual("vector")))

    def coefficients(self, push: torch.Tensor) -> torch.Tensor:
        """C = 2F/(ρU²D) of one component of `push`, `(…, x, y)`: drag of the first, lift of the second."""
        return 2 * self.channel.dx**2 * push.sum((-2, -1))

    def rim_speed(self, u: torch.Tensor) -> torch.Tensor:
        """Of the body, anticlockwise, from the x component of the velocity on its faces `(…, x, y)`, at those inside."""
        return (self._inside.to(u) * u).sum((-2, -1))

    @cached_property
    def _inside(self) -> torch.Tensor:
        """Weights of the faces inside, by which a body that turns at speed 1 has speed 1."""
        inside, rotation = (torch.as_tensor(f.values["x"].numpy("x,y")) for f in (self.solid(), self.rotation()))
        weight = torch.where(inside == 1, rotation, 0)
        return weight / (weight * rotation).sum()
