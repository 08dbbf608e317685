"""Floor 2: ready-made physics, ordinary PhiFlow steps to use or to copy; one equation per module.

Every module has the same order. Its docstring: the equation, the state, the inputs. Then

- the step, `state, *inputs -> state`: made by `NAME_step(dt, …)`, or, where geometry and parameters belong together, a
  method of a frozen dataclass of parameters;
- states: the empty grid, initial states, exact properties;
- inputs: forces and sources.

What several equations share is in `grids`; `controlled` is the base of systems with one control per step.
"""

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

__all__ = [
    "burgers",
    "grids",
    "heat",
    "kuramoto_sivashinsky",
    "navier_stokes",
    "oscillators",
    "penalized_flow",
    "poisson",
    "quantum",
    "smoke",
]
