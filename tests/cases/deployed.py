"""Solvers of every kind that leave their process, with the states to start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from phi.torch.flow import Field, Obstacle, Sphere, Tensor, advect, batch, diffuse, fluid, math, wrap

import phi_hybrid as ph
from cases.small import SmallNet, faces, forced_step, line, scalar
from phi_hybrid.linear_solve import ConjugateGradient

Case = tuple[ph.HybridSolver, Sequence[Any]]
"""A solver, with state and inputs."""

BODY = Obstacle(Sphere(x=1.0, y=0.75, radius=0.3))


def around(v: Field, force: Field) -> Field:
    """Past a body: its pressure needs a factorisation."""
    v = diffuse.explicit(advect.semi_lagrangian(v, v, 0.02), 0.05, 0.02)
    return fluid.make_incompressible(v + 0.02 * force, BODY)[0]


def in_box(v: Field, force: Field) -> Field:
    """In a box: solved by transforms, for the viscosity and for the pressure."""
    v = diffuse.implicit(advect.mac_cormack(v, v, 0.02), 0.05, 0.02)
    return fluid.make_incompressible(v + 0.02 * force)[0]


def thick(u: Field, viscosity: Tensor) -> Field:
    """Whose matrix depends on an input."""
    return diffuse.implicit(advect.semi_lagrangian(u, u, 0.02), viscosity, 0.02)


def plume(state: dict[str, Field], dt: float) -> dict[str, Field]:
    velocity, smoke = state["velocity"], state["smoke"]
    smoke = advect.semi_lagrangian(smoke, velocity, dt)
    velocity = advect.semi_lagrangian(velocity, velocity, dt) + 0.1 * (smoke * (0, dt)).at(velocity)
    return {"velocity": diffuse.explicit(velocity, 0.02, dt), "smoke": smoke}


def damped(before: Sequence, after: Sequence, output: Sequence) -> tuple[torch.Tensor, ...]:
    """A coupling of the user's own."""
    return tuple(b + 0.9 * (a - b) + c for b, a, c in zip(before, after, output))


def grows(value: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return value * torch.exp(output)


COUPLINGS: dict[str, Callable[[], Any]] = {
    "additive": ph.Additive,
    "multiplicative": lambda: ph.coupling.Multiplicative(0.5),
    "parallel": lambda: ph.coupling.Parallel(ph.Additive()),
    "before": lambda: ph.coupling.Before(ph.Additive()),
    "forcing": ph.coupling.Forcing,
    "parameter": lambda: ph.coupling.Parameter(0, grows, ph.Additive()),
    "replacement": ph.coupling.Replacement,
    "own": lambda: damped,
}


def scaled(solver: ph.HybridSolver, channels: tuple[int, int], boundaries: Sequence = ()) -> ph.HybridSolver:
    """With scales and means other than 1 and 0."""
    given, changed = torch.linspace(0.5, 1.5, channels[0]), torch.linspace(0.01, 0.02, channels[1])
    solver.set_scales(given, changed, boundaries, input_mean=0.1 * given)
    return solver


def coupled(name: str, physics: ph.PhysicsBlock) -> Case:
    """On a line, `physics` of `forced_step`."""
    outputs = 2 if name == "parameter" else 1
    solver = ph.HybridSolver(physics, SmallNet(2, outputs, 1), COUPLINGS[name]())
    return scaled(solver, (2, outputs)), (line(0, b=3), line(1, b=3))


def captured_line() -> ph.PhysicsBlock:
    return ph.capture(forced_step, check=False)


def factored() -> Case:
    """With features and a projection after the correction."""
    project = ph.capture(lambda v: fluid.make_incompressible(v, BODY)[0], check=False)
    features = (scalar(5), wrap(0.5))
    solver = ph.HybridSolver(ph.capture(around, check=False), SmallNet(6, 2, 2), features=features, project=project)
    state = faces("closed", 0, b=2)
    return scaled(solver, (6, 2), [(side, "constant") for side in ("x-", "x+", "y-", "y+")]), (
        state,
        faces("closed", 1, b=2),
    )


def spectral() -> Case:
    solver = ph.HybridSolver(ph.capture(in_box, check=False), SmallNet(2, 2, 2), sees=())
    return scaled(solver, (2, 2)), (faces("open", 0, b=2), faces("open", 1, b=2))


def several() -> Case:
    """A dict of a staggered and a centred field, one of them corrected, and a Python number."""
    state = {"velocity": faces("closed", 0, b=2), "smoke": scalar(1, b=2)}
    solver = ph.HybridSolver(ph.capture(plume, check=False), SmallNet(3, 2, 2), corrects="velocity")
    return scaled(solver, (3, 2)), (state, 0.05)


def iterated() -> Case:
    block = ph.capture(around, check=False, solver=ConjugateGradient())
    solver = ph.HybridSolver(block, SmallNet(4, 2, 2))
    return scaled(solver, (4, 2)), (faces("closed", 0, b=2), faces("closed", 1, b=2))


def varying() -> Case:
    solver = ph.HybridSolver(ph.capture(thick, check=False), SmallNet(2, 1, 1))
    viscosity = math.wrap(torch.tensor([0.1, 0.2, 0.3]), batch("b"))
    return scaled(solver, (2, 1)), (line(0, b=3), viscosity)


CASES: dict[str, Callable[[], Case]] = {
    "factored": factored,
    "spectral": spectral,
    "several": several,
    "iterated": iterated,
    "varying": varying,
}
