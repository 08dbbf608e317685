"""Floor 5: trajectories of a reference solver, coarsened, stored and cut into windows."""

from phi_hybrid.data.batch import Batch, DataLayout
from phi_hybrid.data.coarsening import coarsen
from phi_hybrid.data.store import replacing
from phi_hybrid.data.trajectories import Trajectories, require_data
from phi_hybrid.data.windows import Windows

__all__ = ["Batch", "DataLayout", "Trajectories", "Windows", "coarsen", "replacing", "require_data"]
