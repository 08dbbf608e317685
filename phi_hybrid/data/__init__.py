"""Floor 3: trajectories of a reference solver, coarsened, stored and cut into windows."""

from phi_hybrid.data.coarsen import coarsen
from phi_hybrid.data.trajectories import Trajectories
from phi_hybrid.data.windows import Batch, Windows

__all__ = ["Batch", "Trajectories", "Windows", "coarsen"]
