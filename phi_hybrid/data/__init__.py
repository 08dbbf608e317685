"""Floor 5: trajectories of a reference solver, coarsened, stored and cut into windows; data of others."""

from phi_hybrid.data.batch import Batch, DataLayout
from phi_hybrid.data.coarsening import coarsen
from phi_hybrid.data.files import new_file, replacing, require_writable
from phi_hybrid.data.mixed_windows import MixedWindows
from phi_hybrid.data.mixture import Mixture, require_sets, sets_of
from phi_hybrid.data.pdebench import read_pdebench
from phi_hybrid.data.stream import Stream
from phi_hybrid.data.the_well import read_the_well
from phi_hybrid.data.trajectories import Trajectories, require_data
from phi_hybrid.data.windows import Windows, epoch_generator

__all__ = [
    "Batch",
    "DataLayout",
    "MixedWindows",
    "Mixture",
    "Stream",
    "Trajectories",
    "Windows",
    "coarsen",
    "epoch_generator",
    "new_file",
    "read_pdebench",
    "read_the_well",
    "replacing",
    "require_data",
    "require_sets",
    "require_writable",
    "sets_of",
]
