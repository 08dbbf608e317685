"""phi_hybrid: write the physics in ΦFlow, train through it at native PyTorch speed."""

from phi_hybrid import bridge, calibration, gradient, linear_solve, losses, metrics, optim, pde, quantities
from phi_hybrid._version import __version__
from phi_hybrid.capture import PhysicsBlock, capture
from phi_hybrid.coupling import Additive, Before, Forcing, Multiplicative, Parallel, Parameter, Replacement
from phi_hybrid.data import Trajectories
from phi_hybrid.ensemble import Ensemble
from phi_hybrid.errors import CaptureError, DataError, NonFiniteError, SolveError, StateError
from phi_hybrid.evaluate import Evaluation, evaluate
from phi_hybrid.hybrid import HybridSolver
from phi_hybrid.linear_solve import linear_solves
from phi_hybrid.noise import Noise, Ramp
from phi_hybrid.objective import Curriculum, Diverted, Pushforward, Unrolled
from phi_hybrid.precompute import precompute_corrections
from phi_hybrid.reconstruct import Reconstruction, reconstruct
from phi_hybrid.table import Spread, Table
from phi_hybrid.train import Trainer
from phi_hybrid.unroll import rollout

__all__ = [
    "Additive",
    "Before",
    "CaptureError",
    "Curriculum",
    "DataError",
    "Diverted",
    "Ensemble",
    "Evaluation",
    "Forcing",
    "HybridSolver",
    "Multiplicative",
    "Noise",
    "NonFiniteError",
    "Parallel",
    "Parameter",
    "PhysicsBlock",
    "Pushforward",
    "Ramp",
    "Reconstruction",
    "Replacement",
    "SolveError",
    "Spread",
    "StateError",
    "Table",
    "Trainer",
    "Trajectories",
    "Unrolled",
    "__version__",
    "bridge",
    "calibration",
    "capture",
    "evaluate",
    "gradient",
    "linear_solve",
    "linear_solves",
    "losses",
    "metrics",
    "optim",
    "pde",
    "plot",
    "precompute_corrections",
    "quantities",
    "reconstruct",
    "rollout",
]


def __getattr__(name: str) -> object:
    if name == "plot":  # matplotlib loads when it is used
        import importlib

        return importlib.import_module("phi_hybrid.plot")
    raise AttributeError(f"module 'phi_hybrid' has no attribute {name!r}")
