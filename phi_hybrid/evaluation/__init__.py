"""Floor 8: how good solvers are: rollouts beside references, metrics, tables, calibration."""

from phi_hybrid.evaluation import calibration, metrics, quantities
from phi_hybrid.evaluation.measurement import evaluate, trajectory_errors
from phi_hybrid.evaluation.result import Evaluation
from phi_hybrid.evaluation.table import Spread, Table

__all__ = [
    "Evaluation",
    "Spread",
    "Table",
    "calibration",
    "evaluate",
    "metrics",
    "quantities",
    "trajectory_errors",
]
