"""Floor 3: update rules for networks and physics: half-inverse gradients, and chains of pieces with a rule each."""

from phi_hybrid.optim.automatic import Automatic
from phi_hybrid.optim.chain import Chain, Link, Step, absolute, half_square, mean_square
from phi_hybrid.optim.engines import Dense, Gram, ParameterGram, Update
from phi_hybrid.optim.filters import Cutoff, Smooth
from phi_hybrid.optim.golub_kahan import GolubKahan
from phi_hybrid.optim.hig import HIG, Closure
from phi_hybrid.optim.inverse import Inverse, InverseByOptimization, LinearInverse, NewtonKrylov, QuasiNewton
from phi_hybrid.optim.levenberg_marquardt import LevenbergMarquardt
from phi_hybrid.optim.newton import Clipped, Dropped, Newton, SeparableNewton
from phi_hybrid.optim.rules import Blend, Damped, GaussNewton, GaussNewtonCG, Gradient, HalfInverse, Rule, TrustRegion
from phi_hybrid.optim.structured import Structured

__all__ = [
    "Automatic",
    "Blend",
    "Chain",
    "Clipped",
    "Closure",
    "Cutoff",
    "Damped",
    "Dense",
    "Dropped",
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
    "ParameterGram",
    "QuasiNewton",
    "Rule",
    "SeparableNewton",
    "Smooth",
    "Step",
    "Structured",
    "TrustRegion",
    "Update",
    "absolute",
    "half_square",
    "mean_square",
]
