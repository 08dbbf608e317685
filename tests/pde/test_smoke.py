"""Rising smoke against balances and a mode whose motion is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from phi.torch.flow import batch, channel, math, spatial, wrap

import phi_hybrid as ph
from phi_hybrid.bridge import flatten
from phi_hybrid.pde import smoke

torch.set_num_threads(1)


def test_a_lying_layer_rests_and_grows() -> None:
    """Smoke that is the same at equal heights is carried by pressure; what flows in stays."""
    with math.precision(64):
        state = smoke.still_air(6, 8)
        heights = wrap(torch.linspace(1, 0, 8, dtype=torch.float64), spatial("y"))
        inflow = state["smoke"].with_values(math.expand(heights, spatial(x=6)))
        after = ph.rollout(ph.capture(smoke.smoke_step(0.5, buoyancy=2.0)), state, 4, inflow)
    for component in flatten(after["velocity"].time[4])[0]:
        assert component.abs().max() < 1e-12
    assert torch.allclose(flatten(after["smoke"].time[4])[0][0], 4 * 0.5 * flatten(inflow)[0][0], rtol=1e-12)


@pytest.mark.parametrize(("cells", "tolerance"), [(16, 0.02), (32, 0.005)])
def test_first_motion_of_a_mode(cells: int, tolerance: float) -> None:
    """Pressure takes half of the lift of s = cos(πx/L) sin(πy/L), whose curl is β ∂s/∂x: v_y = ½ β t s, to second order."""
    dt, beta = 0.01, 3.0
    with math.precision(64):
        state = smoke.still_air(cells, cells)
        x = (np.arange(cells) + 0.5) * np.pi / cells
        inflow = state["smoke"].with_values(wrap(torch.from_numpy(np.outer(np.cos(x), np.sin(x)) / dt), spatial("x,y")))
        after = ph.capture(smoke.smoke_step(dt, beta))(state, inflow)["velocity"]
        found = after.values[{"~vector": "y"}].native("x,y").numpy()
    face = np.arange(1, cells) * np.pi / cells
    expected = 0.5 * beta * dt * np.outer(np.cos(x), np.sin(face))
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def test_inflow_is_where_cell_centres_lie_inside() -> None:
    for bits, dtype in ((32, torch.float32), (64, torch.float64)):
        with math.precision(bits):
            places = wrap([(3.0, 2.0), (4.5, 2.5)], batch("case"), channel(vector="x,y"))
            found = smoke.inflow_at(places, 1.2, 0.25, smoke.still_air(8, 6)["smoke"])
        (values,) = flatten(found)[0]
        x, y = np.meshgrid(np.arange(8) + 0.5, np.arange(6) + 0.5, indexing="ij")
        for n, (a, b) in enumerate([(3.0, 2.0), (4.5, 2.5)]):
            assert np.array_equal(values[n].numpy(), 0.25 * ((x - a) ** 2 + (y - b) ** 2 <= 1.2**2))
        assert values.dtype == dtype
