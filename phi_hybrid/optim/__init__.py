"""Floor 3: update rules that look at the outputs of a network and physics together."""

from phi_hybrid.optim.automatic import Automatic
from phi_hybrid.optim.engines import Dense, Gram, ParameterGram, Update
from phi_hybrid.optim.golub_kahan import GolubKahan
from phi_hybrid.optim.hig import HIG, Closure
from phi_hybrid.optim.levenberg_marquardt import LevenbergMarquardt
from phi_hybrid.optim.spectrum import Cutoff, Smooth
from phi_hybrid.optim.structured import Structured

__all__ = [
    "HIG",
    "Automatic",
    "Closure",
    "Cutoff",
    "Dense",
    "GolubKahan",
    "Gram",
    "LevenbergMarquardt",
    "ParameterGram",
    "Smooth",
    "Structured",
    "Update",
]
