"""Ready-made physics: ordinary PhiFlow steps, to use or to copy."""

from phi_hybrid.pde import burgers

__all__ = ["burgers"]
