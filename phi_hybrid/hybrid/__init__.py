"""Floor 7: physics with a network, and ensembles of such solvers."""

from phi_hybrid.hybrid import coupling
from phi_hybrid.hybrid.ensemble import Ensemble
from phi_hybrid.hybrid.solver import HybridSolver
from phi_hybrid.hybrid.step import Gate, HybridStep

__all__ = ["Ensemble", "Gate", "HybridSolver", "HybridStep", "coupling"]
