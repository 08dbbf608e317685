"""Small analytic trajectories for the plot tests."""

import numpy as np
from phi.torch.flow import PERIODIC, Box, CenteredGrid, Field, batch, channel, math, spatial, tensor


def line(values, boundary=PERIODIC, length=1.0) -> Field:
    """Array (time, x) or (trajectory, time, x) as a scalar 1D trajectory."""
    values = np.asarray(values, dtype=np.float64)
    dims = ("trajectory", "time")[-(values.ndim - 1) :]
    return CenteredGrid(tensor(values, batch(*dims), spatial("x")), boundary, Box(x=length), x=values.shape[-1])


def plane(frames: int = 3) -> Field:
    """u(t, x, y) = x + 10 y + 100 t on 4 × 3 cells of size 1."""
    x, y = np.meshgrid(np.arange(4) + 0.5, np.arange(3) + 0.5, indexing="ij")
    values = (x + 10 * y)[None] + 100 * np.arange(frames)[:, None, None]
    return CenteredGrid(tensor(values, batch("time"), spatial("x,y")), 0, Box(x=4, y=3), x=4, y=3)


def frames_of(field: Field, count: int) -> Field:
    """The same state `count` times."""
    return math.stack([field] * count, batch("time"))


def vector_of(**components) -> math.Tensor:
    """A vector from its components by axis name."""
    return math.stack(components, channel("vector"))
