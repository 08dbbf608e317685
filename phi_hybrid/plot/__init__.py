"""Figures of trajectories, errors, spectra, comparisons and training histories (matplotlib only)."""

from .animate import animate
from .comparison import comparison
from .descent import descent
from .errors import errors
from .history import history
from .rollout import rollout
from .spacetime import spacetime
from .spectrum import energy_spectrum, spectrum

__all__ = [
    "animate",
    "comparison",
    "descent",
    "energy_spectrum",
    "errors",
    "history",
    "rollout",
    "spacetime",
    "spectrum",
]
