"""The steps whose gradients are checked for docs/check_gradients.md: all equations of `ph.pde`, and the gallery."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from phi.torch.flow import advect, batch, math, wrap

import phi_hybrid as ph
from cases.gallery import Kind, results, state_after_one_step
from phi_hybrid.pde import (
    burgers,
    grids,
    heat,
    kuramoto_sivashinsky,
    navier_stokes,
    oscillators,
    penalized_flow,
    poisson,
    quantum,
    smoke,
)
from phi_hybrid.sensitivity import GradientCheck

GALLERY = Path(__file__).parents[1] / "gallery"
SMOOTH, KINKS = "smooth", "kinks"


@dataclass(frozen=True)
class Case:
    """A step with its arguments, what is known of its values, and the number of steps that make sense."""

    step: Callable
    arguments: tuple
    values: str = KINKS
    steps: int = 50

    def check(self, **settings: Any) -> GradientCheck:
        return ph.check_gradients(self.step, *self.arguments, **{"steps": self.steps, **settings})


def equations() -> dict[str, Case]:
    """All equations of `ph.pde`, on small grids."""
    line, square = burgers.line(32), burgers.square(16)
    waves, plane = burgers.waves_1d(line, 2, None, (1, 4), 5, 0.5, 0), burgers.waves_2d(square, 2, np.zeros(1))
    force = burgers.waves_1d(line, 2, None, (3, 6), 5, 0.5, 1)
    chaos = kuramoto_sivashinsky.initial_states(kuramoto_sivashinsky.line(48), 2, 0)
    vortices = grids.divergence_free_noise(navier_stokes.periodic_square(16), 1, 2.0, 0.5, 0)
    wake = navier_stokes.Wake()
    channel = penalized_flow.Channel(12)
    x, y = channel.points()
    body = x.with_values((1 - math.tanh(2 * (math.sqrt(x.values**2 + y.values**2) - 0.5) / (1.5 * channel.dx))) / 2)
    sound = poisson.noise(poisson.square(8), 2, 0)
    air = smoke.still_air(16, 16)
    source = smoke.inflow_at(math.vec(x=8.0, y=4.0), 3.0, 0.2, air["smoke"])
    plume = ph.capture(smoke.smoke_step(1.0, 0.1))
    chain, cubic, well = oscillators.Oscillators(), oscillators.nonlinear_oscillators(), quantum.Well()
    push = wrap(torch.tensor([0.3, -0.2]), batch("trajectory"))
    warm = heat.square(16)
    warm = warm.with_values(math.random_normal(warm.values.shape))
    return {
        "Burgers, 1D, semi-Lagrangian": Case(burgers.burgers_step(0.1, 0.02), (waves, force)),
        "Burgers, 1D, MacCormack": Case(
            burgers.burgers_step(0.1, 0.02, advection=advect.mac_cormack), (waves, force), KINKS
        ),
        "Burgers, 1D, upwind": Case(burgers.burgers_step(0.1, 0.02, advection=burgers.upwind), (waves, force)),
        "Burgers, 2D, semi-Lagrangian": Case(burgers.burgers_step(0.5, 0.1), (plane.time[0], plane.time[0])),
        "Heat": Case(heat.heat_step(0.1, 0.5), (warm,), SMOOTH),
        "Heat, sharpened": Case(heat.Sharpening(0.5, 0.1, 1e-3), (warm,), SMOOTH),
        "Kuramoto–Sivashinsky": Case(kuramoto_sivashinsky.kuramoto_sivashinsky_step(0.5), (chaos, wrap(1.0)), SMOOTH),
        "Navier–Stokes": Case(navier_stokes.navier_stokes_step(0.1), (vortices, wrap(0.01))),
        "Wake": Case(wake.step(2.0, 4), (wake.disturbed(32, 1), wrap(400.0))),
        "Channel with a porous body": Case(channel.step(), (channel.rest(), body), SMOOTH),
        "Poisson, ∇²u": Case(poisson.laplace, (sound,), SMOOTH, 1),
        "Poisson, solve": Case(poisson.solve, (sound,), SMOOTH, 1),
        "Smoke": Case(plume, (ph.repeat(plume, air, 3, source), source)),
        "Oscillators, linear": Case(chain.step, (chain.random_states(2, 0), push), SMOOTH),
        "Oscillators, cubic": Case(cubic.step, (cubic.random_states(2, 0), push), SMOOTH),
        "Quantum well": Case(well.step, (well.superpositions(2, 0), push), SMOOTH),
    }


DETACHED = {"Close packing", "Descent through the pressure", "Descent", "Descents", "Throw, descent"}
"""Kinds of the gallery that descend along a gradient of their own, `math.gradient`, which carries no gradient itself."""

JUMPING = {
    *(
        "Batched smoke",
        "Book: controlled smoke",
        "Book: smoke, batch of inflows",
        "Nested grids",
        "Smoke plume",
    ),  # limiters
    *(
        "Moving obstacles",
        "Rotating bar",
        "Waves, the time a tensor",
    ),  # cells are inside or outside of bodies that are moved
    *("Cylinder, mesh", "Flow over a step, mesh"),  # the upwind side of a face
    *("Billiards", "Terrain", "SPH", "SPH, walls", "Close packing"),  # contact, walls
    *("FLIP", "PIC"),  # particles are rounded to cells
    *("Julia set", "Book: inverse heat"),  # counts, thresholds
}
"""Kinds whose values jump, and why."""


def of_gallery(kind: Kind) -> Case:
    """A kind of the gallery as a step from tuple to tuple, after its first step."""
    with math.precision(kind.precision):
        state = state_after_one_step(kind)

    def step(state: tuple) -> Any:
        result = kind.step(*state, **kind.keywords)
        return results(result)[: len(state)] if kind.repeats else result

    return Case(step, (state,), steps=20)


def row(name: str, found: GradientCheck) -> str:
    """A line of the table in the docs."""
    worst = [max(getattr(a, mode) for a in found.arguments) for mode in ("reverse", "forward")]
    kinds = {b.kind for b in found.breaks}
    values = (
        f"jumps, {100 * found.missed:.{1 if found.missed < 0.1 else 0}f} %"
        if "jump" in kinds
        else "kinks"
        if kinds
        else "smooth"
    )
    gradient = "wrong" if any(a.wrong for a in found.arguments) else "right"
    curve = None if found.growth is None else found.growth.reverse
    growth = "–" if curve is None else f"{curve.verdict}, ×{curve.rate:.3g}"
    return f"| {name} | {gradient} | {worst[0]:.0e} | {worst[1]:.0e} | {values} | {growth} | {found.grade} |"


def gallery() -> dict[str, Kind]:
    """All kinds of the gallery by name, as its files hold them."""
    modules = [".".join(p.with_suffix("").parts[-3:]) for p in sorted(GALLERY.glob("*/test_*.py"))]
    return {name: kind for module in modules for name, kind in importlib.import_module(module).KINDS.items()}
