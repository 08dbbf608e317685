"""Ready-made physics: ordinary PhiFlow steps, to use or to copy."""

from phi_hybrid.pde import (
    burgers,
    diagnostics,
    heat,
    inverse_flow,
    kuramoto_sivashinsky,
    motion,
    navier_stokes,
    oscillators,
    penalized_flow,
    poisson,
    quantum,
    smoke,
)

__all__ = [
    "burgers",
    "diagnostics",
    "heat",
    "inverse_flow",
    "kuramoto_sivashinsky",
    "motion",
    "navier_stokes",
    "oscillators",
    "penalized_flow",
    "poisson",
    "quantum",
    "smoke",
]
