"""One small step of every equation in `phi_hybrid.pde`, with arguments to call it on, and steps of special parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from phi.torch.flow import Field, advect, batch, diffuse, fluid, math, spatial, wrap

import phi_hybrid as ph
from cases.solves import obstacles
from cases.states import faces, line, noise, random_field
from phi_hybrid.pde import (
    burgers,
    heat,
    kuramoto_sivashinsky,
    navier_stokes,
    oscillators,
    penalized_flow,
    poisson,
    quantum,
    smoke,
)

Case = tuple[Callable, tuple]
"""Step and arguments."""


def _smoke() -> Case:
    state = smoke.still_air(6, 8)
    centre = wrap(torch.tensor([[3.0, 2.0], [2.0, 3.0]]), batch("trajectory"), state["smoke"].shape.channel & _XY)
    return smoke.smoke_step(0.5), (state, smoke.inflow_at(centre, 1.5, 0.2, state["smoke"]))


_XY = math.channel(vector="x,y")


def _channel() -> Case:
    setup = penalized_flow.Channel(6)
    rest = setup.rest()
    return setup.step(), (rest, 0.1 * setup.points()[0])


def _wake() -> Case:
    wake = navier_stokes.Wake()
    return wake.step(1.0), (wake.grid(8), wrap(torch.tensor([300.0, 500.0]), batch("trajectory")))


def _kolmogorov() -> Case:
    grid = navier_stokes.periodic_square(6)
    force = navier_stokes.kolmogorov_force(grid, 1)
    start = navier_stokes.divergence_free_noise(grid, 2, 1.0, 1.0, seed=0)
    return navier_stokes.navier_stokes_step(0.1, force=force, drag=0.1), (start, 0.01)


def _oscillators() -> Case:
    chain = oscillators.nonlinear_oscillators()
    return chain.step, (chain.random_states(2, seed=0), wrap(noise(2), batch("trajectory")))


def _quantum() -> Case:
    well = quantum.Well(8)
    return well.step, (well.superpositions(2, 0), wrap(noise(2), batch("trajectory")))


EQUATIONS: dict[str, Callable[[], Case]] = {
    "burgers": lambda: (burgers.burgers_step(0.1, 0.1), (line(0, trajectory=2), line(1, trajectory=2))),
    "burgers, implicit": lambda: (
        burgers.burgers_step(0.1, 0.1, diffusion=diffuse.implicit),
        (line(0, trajectory=2), line(1, trajectory=2)),
    ),
    "heat": lambda: (heat.heat_step(0.3, 0.1), (random_field("scalar", "periodic", 2, trajectory=2),)),
    "sharpening": lambda: (
        heat.Sharpening(0.1, 0.3, 1e-6),
        (random_field("scalar", "periodic", 2, trajectory=2),),
    ),
    "kuramoto_sivashinsky": lambda: (
        kuramoto_sivashinsky.kuramoto_sivashinsky_step(0.1),
        (kuramoto_sivashinsky.initial_states(kuramoto_sivashinsky.line(24), 2, seed=0),),
    ),
    "kolmogorov": _kolmogorov,
    "wake": _wake,
    "penalized_flow": _channel,
    "poisson": lambda: (poisson.solve, (poisson.noise(poisson.square(6), 2, seed=0),)),
    "laplace": lambda: (poisson.laplace, (poisson.noise(poisson.square(6), 2, seed=0),)),
    "oscillators": _oscillators,
    "quantum": _quantum,
    "smoke": _smoke,
}


def _sampled(u: Field) -> Field:
    """Sampling in the graph, a function with its own gradient, and tensors that are made in the step."""
    rounded = math.custom_gradient(math.floor, lambda inputs, y, dy: {"x": dy + 0 * math.ones(dy.shape)})
    u = advect.mac_cormack(u, u, 0.1)
    u = u.with_values(u.values + 0.1 * math.random_normal(u.values.shape) + 0.01 * rounded(u.values))
    return u * wrap(torch.arange(6.0), spatial("x"))


def _varying(u: Field, viscosity: Any) -> Field:
    return diffuse.implicit(u, viscosity, 0.1)


def _around(u: Field) -> Field:
    return fluid.make_incompressible(u, obstacles("one"))[0]


PARTS: dict[str, Callable[[], Case]] = {
    "custom gradient, random numbers": lambda: (_sampled, (random_field("vector", "periodic", 2, trajectory=2),)),
    "matrix that varies": lambda: (
        _varying,
        (random_field("scalar", "open", 2, trajectory=2), wrap(torch.tensor([0.1, 0.2]), batch("trajectory"))),
    ),
    "obstacle": lambda: (_around, (faces("open", trajectory=2),)),
}


def captured(name: str, **settings: Any) -> tuple[ph.PhysicsBlock, tuple]:
    """The step of this name, captured, and arguments to call it on."""
    step, arguments = {**EQUATIONS, **PARTS}[name]()
    return ph.capture(step, *arguments, **settings), arguments
