"""Meshes built around bodies that move: refused, since how many cells there are depends on where the bodies are."""

from __future__ import annotations

import pytest
from phi.torch.flow import *

import phi_hybrid as ph

DOMAIN = Box(x=2, y=1)


def centres(x):
    body = union(Sphere(x=x, y=0.5, radius=0.3), Box(x=(1.2, 3), y=(-1, 0.4)))
    return geom.build_mesh(DOMAIN, x=8, y=5, obstacles=body).center


KINDS = {}  # none that is captured


def test_the_number_of_cells_depends_on_the_place() -> None:
    assert len({centres(tensor(x)).shape.volume for x in (0.2, 0.6, 1.0)}) > 1


def test_refused() -> None:
    with pytest.raises(ph.CaptureError, match="depends on the step's inputs"):
        ph.capture(centres, tensor(0.4))
