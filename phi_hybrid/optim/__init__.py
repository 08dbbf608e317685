"""Floor 2: update rules for networks and physics: half-inverse gradients, and chains of pieces with a rule each."""

from phi_hybrid.optim.automatic import Automatic
from phi_hybrid.optim.chain import Chain, ChainStep, Distance, Link, absolute, half_square, mean_square
from phi_hybrid.optim.closure import Closure
from phi_hybrid.optim.combination import Combination, ConFIG, PCGrad
from phi_hybrid.optim.engines import Dense, Engine, Gram, ParameterGram, Update
from phi_hybrid.optim.filters import Cutoff, Filter, Smooth
from phi_hybrid.optim.golub_kahan import GolubKahan
from phi_hybrid.optim.hig import HIG
from phi_hybrid.optim.inverse import Inverse, InverseByOptimization, LinearInverse, NewtonKrylov, QuasiNewton
from phi_hybrid.optim.levenberg_marquardt import LevenbergMarquardt
from phi_hybrid.optim.newton import Clipped, Dropped, Newton, SeparableNewton
from phi_hybrid.optim.rules import (
    Blend,
    Damped,
    Function,
    GaussNewton,
    GaussNewtonCG,
    Gradient,
    HalfInverse,
    Pullback,
    Rule,
    TrustRegion,
)
from phi_hybrid.optim.structured import Structured
from phi_hybrid.optim.vectors import Tensors, as_tuple, pack, unpack

__all__ = [
    "Automatic",
    "Blend",
    "Chain",
    "ChainStep",
    "Clipped",
    "Closure",
    "Combination",
    "ConFIG",
    "Cutoff",
    "Damped",
    "Dense",
    "Distance",
    "Dropped",
    "Engine",
    "Filter",
    "Function",
    "GaussNewton",
    "GaussNewtonCG",
    "GolubKahan",
    "Gradient",
    "Gram",
    "HIG",
    "HalfInverse",
    "Inverse",
    "InverseByOptimization",
    "LevenbergMarquardt",
    "LinearInverse",
    "Link",
    "Newton",
    "NewtonKrylov",
    "PCGrad",
    "ParameterGram",
    "Pullback",
    "QuasiNewton",
    "Rule",
    "SeparableNewton",
    "Smooth",
    "Structured",
    "Tensors",
    "TrustRegion",
    "Update",
    "absolute",
    "as_tuple",
    "half_square",
    "mean_square",
    "pack",
    "unpack",
]
