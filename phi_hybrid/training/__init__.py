"""Floor 9: training of hybrid solvers: objectives, losses, gradient modes, noise."""

from phi_hybrid.training import gradient, losses
from phi_hybrid.training.callbacks import AveragedWeights, BestWeights, Callback, EarlyStop, Log
from phi_hybrid.training.noise import Noise, Ramp
from phi_hybrid.training.objective import Curriculum, Diverted, Objective, Pushforward, Unrolled
from phi_hybrid.training.optimizers import Optimizers
from phi_hybrid.training.parallel import TaskError, parallel_map
from phi_hybrid.training.precompute import precompute_corrections
from phi_hybrid.training.scales import estimate_scales
from phi_hybrid.training.trainer import Trainer

__all__ = [
    "AveragedWeights",
    "BestWeights",
    "Callback",
    "Curriculum",
    "Diverted",
    "EarlyStop",
    "Log",
    "Noise",
    "Objective",
    "Optimizers",
    "Pushforward",
    "Ramp",
    "TaskError",
    "Trainer",
    "Unrolled",
    "estimate_scales",
    "gradient",
    "losses",
    "parallel_map",
    "precompute_corrections",
]
