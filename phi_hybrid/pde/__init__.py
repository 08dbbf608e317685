"""Ready-made physics: ordinary PhiFlow steps, to use or to copy."""

from phi_hybrid.pde import burgers, diagnostics, navier_stokes

__all__ = ["burgers", "diagnostics", "navier_stokes"]
