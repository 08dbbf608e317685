"""phi_hybrid: write the physics in ΦFlow, train through it at native PyTorch speed."""

from typing import TYPE_CHECKING

from phi_hybrid import bridge, inverse, linear_solve, optim, pde
from phi_hybrid._version import __version__
from phi_hybrid.data import Trajectories
from phi_hybrid.deployment import export, load
from phi_hybrid.errors import CaptureError, DataError, NonFiniteError, SolveError, StateError
from phi_hybrid.evaluation import evaluate, metrics, quantities
from phi_hybrid.hybrid import Ensemble, HybridSolver, coupling
from phi_hybrid.hybrid.coupling import Additive
from phi_hybrid.inverse import reconstruct
from phi_hybrid.sensitivity import check_gradients
from phi_hybrid.steps import repeat, rollout
from phi_hybrid.studies import study
from phi_hybrid.tracing import PhysicsBlock, capture
from phi_hybrid.training import Curriculum, Noise, Trainer, Unrolled, gradient, losses

if TYPE_CHECKING:
    from phi_hybrid import plot

__all__ = [
    "Additive",
    "CaptureError",
    "Curriculum",
    "DataError",
    "Ensemble",
    "HybridSolver",
    "Noise",
    "NonFiniteError",
    "PhysicsBlock",
    "SolveError",
    "StateError",
    "Trainer",
    "Trajectories",
    "Unrolled",
    "__version__",
    "bridge",
    "capture",
    "check_gradients",
    "coupling",
    "evaluate",
    "export",
    "gradient",
    "inverse",
    "linear_solve",
    "load",
    "losses",
    "metrics",
    "optim",
    "pde",
    "plot",
    "quantities",
    "reconstruct",
    "repeat",
    "rollout",
    "study",
]


def __getattr__(name: str) -> object:
    if name == "plot":  # matplotlib loads when it is used
        import importlib

        return importlib.import_module("phi_hybrid.plot")
    raise AttributeError(f"module 'phi_hybrid' has no attribute {name!r}")
