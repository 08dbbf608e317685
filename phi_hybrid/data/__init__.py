"""Floor 5: trajectories of a reference solver, coarsened, stored and cut into windows."""

from phi_hybrid.data.batch import Batch, DataLayout
from phi_hybrid.data.coarsening import coarsen
from phi_hybrid.data.files import new_file, replacing
from phi_hybrid.data.trajectories import Trajectories, Windows, require_data

__all__ = ["Batch", "DataLayout", "Trajectories", "Windows", "coarsen", "new_file", "replacing", "require_data"]
