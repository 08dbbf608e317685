"""Figures of trajectories, errors, spectra, comparisons and training histories (matplotlib only)."""

from phi_hybrid.plot.animation import animate
from phi_hybrid.plot.bars import comparison
from phi_hybrid.plot.descent_paths import descent
from phi_hybrid.plot.error_curves import errors
from phi_hybrid.plot.gradient_check import gradient_growth
from phi_hybrid.plot.snapshots import rollout
from phi_hybrid.plot.spacetime_diagram import spacetime
from phi_hybrid.plot.spectra import energy_spectrum, spectrum
from phi_hybrid.plot.training_history import history

__all__ = [
    "animate",
    "comparison",
    "descent",
    "energy_spectrum",
    "errors",
    "gradient_growth",
    "history",
    "rollout",
    "spacetime",
    "spectrum",
]
