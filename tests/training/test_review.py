"""Traps that a review of the package found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from phi import math
from phi.field import CenteredGrid, Field, StaggeredGrid
from phi.math import batch, channel, spatial, wrap
from phi.math.extrapolation import PERIODIC, ZERO_GRADIENT, combine_sides

import phi_hybrid as ph
from phi_hybrid.bridge import flatten, to_channels
from phi_hybrid.training.scales import estimate_scales


def line(value: float = 0.0) -> Field:
    return CenteredGrid(value, PERIODIC, x=8)


def test_scale_of_the_correction_ignores_the_value_of_a_fixed_face() -> None:
    """Inflow of speed 1: the face it fixes is right in every state, so it is no error of the physics."""
    inflow = {"x-": 1.0, "x+": ZERO_GRADIENT, "y": PERIODIC}
    state = StaggeredGrid(0.5, inflow, x=8, y=8) * wrap([1.0, 1.0], batch("trajectory"))
    state = state.with_boundary(inflow)
    data = ph.Trajectories.generate(lambda u: u.with_values(u.values + 0.01), state, 3, progress=False)
    solver = ph.HybridSolver(lambda u: u, torch.nn.Conv2d(2, 2, 1))
    estimate_scales(solver, data)
    lower_faces = 8 * 7  # of the x component; the inflow faces have no error
    expected = torch.tensor([0.01 * (lower_faces / 64) ** 0.5, 0.01])
    torch.testing.assert_close(solver.output_scale, expected, rtol=1e-4, atol=0)


def test_self_check_sees_a_counter_on_a_zero_example() -> None:
    calls = [0]

    def step(u: Field) -> Field:
        calls[0] += 1
        return u * calls[0]

    with pytest.raises(ph.CaptureError, match="changes from call to call"):
        ph.capture(step, line(0))


def test_a_refusal_that_the_step_catches_is_not_lost() -> None:
    def step(u: Field) -> Field:
        try:
            large = float(math.max(u.values)) > 1
        except Exception:
            large = False
        return u * 0.5 if large else u

    with pytest.raises(ph.CaptureError, match="takes a value out"):
        ph.capture(step, line(0.5))


def hybrid() -> tuple[ph.HybridSolver, ph.Trajectories]:
    torch.manual_seed(0)
    start = CenteredGrid(math.random_normal(batch(trajectory=2), spatial(x=8), channel(vector="x")), PERIODIC, x=8)
    data = ph.Trajectories.generate(lambda u: u * 0.9, start, 4, progress=False)
    return ph.HybridSolver(lambda u: u, torch.nn.Conv1d(1, 1, 1)), data


def test_optimizer_of_another_network_is_refused() -> None:
    solver, data = hybrid()
    optimizer = torch.optim.Adam(hybrid()[0].parameters())
    with pytest.raises(ph.StateError, match="2 of the optimizer's 2 parameters are not the solver's"):
        ph.Trainer(solver, data, ph.Unrolled(1), optimizer=optimizer)


def test_scheduler_that_follows_the_loss() -> None:
    solver, data = hybrid()
    optimizer = torch.optim.SGD(solver.parameters(), 1e-12)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2, threshold=0.5, eps=0.0)
    trainer = ph.Trainer(solver, data, ph.Unrolled(1), optimizer=optimizer, scheduler=scheduler, progress=False)
    trainer.fit(8)
    assert optimizer.param_groups[0]["lr"] < 1e-12


def test_numbers_are_no_features() -> None:
    with pytest.raises(ph.StateError, match=r"features\[0\] = 0.01 is no tensor; wrap it"):
        ph.HybridSolver(lambda u: u, torch.nn.Conv1d(2, 1, 1), features=(0.01,))
    assert to_channels(line(), wrap(0.01)).shape == (1, 2, 8)


def test_order_of_boundary_sides_does_not_matter() -> None:
    a, b = combine_sides(x=PERIODIC, y=ZERO_GRADIENT), combine_sides(y=ZERO_GRADIENT, x=PERIODIC)
    grids = [CenteredGrid(1.0, boundary, x=4, y=4) for boundary in (a, b)]
    assert flatten(grids[0])[1] == flatten(grids[1])[1]


def test_rollout_uses_no_dropout_and_counts_with_numpy_integers() -> None:
    solver = ph.HybridSolver(lambda u: u, torch.nn.Sequential(torch.nn.Conv1d(1, 1, 1), torch.nn.Dropout(0.5)))
    u = CenteredGrid(1.0, PERIODIC, x=8)
    first, second = (solver.rollout(u, np.int64(3)).values.numpy("time,x") for _ in range(2))
    assert np.array_equal(first, second) and first.shape == (4, 8)
    assert solver.network.training


def test_curves_begin_with_the_exact_first_state() -> None:
    solver, data = hybrid()
    evaluation = ph.evaluate({"source": lambda u: u}, data)
    curve = evaluation.curves()["source"]
    assert curve.shape == (2, 5) and not curve[:, 0].any() and torch.equal(curve[:, 1:], evaluation.mae["source"])


def test_integers_have_no_cell_means() -> None:
    with pytest.raises(ph.StateError, match="no cell means"):
        ph.data.coarsen(wrap(torch.arange(8), spatial("x")), 2)
