"""Floor 3: update rules that look at the outputs of a network and physics together."""

from phi_hybrid.optim.engines import Automatic, Dense, Gram, ParameterGram, Update
from phi_hybrid.optim.hig import HIG, Closure
from phi_hybrid.optim.spectrum import Cutoff, Smooth
from phi_hybrid.optim.structured import Structured

__all__ = ["HIG", "Automatic", "Closure", "Cutoff", "Dense", "Gram", "ParameterGram", "Smooth", "Structured", "Update"]
