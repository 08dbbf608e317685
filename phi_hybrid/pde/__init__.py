"""Ready-made physics: ordinary PhiFlow steps, to use or to copy."""

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

__all__ = [
    "burgers",
    "heat",
    "kuramoto_sivashinsky",
    "navier_stokes",
    "oscillators",
    "penalized_flow",
    "poisson",
    "quantum",
    "smoke",
]
