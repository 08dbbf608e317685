"""The study of the backward-facing step: its solver against exact and published flows, its measures, its methods."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import step_correction as step
import step_flow as flow
import torch
from cases.small import equal
from phi.field import Field
from phi.math import batch, wrap

import phi_hybrid as ph
from phi_hybrid.bridge import flatten

torch.set_num_threads(1)
SMALL = step.Case(fine=16, spin_up=2, steps=17, training=2, held_out=2, updates=1, batch=2, filters=(2,))
ERTURK = 2.922
"""Reattachment length over height of the step at Re = 100, Erturk (2008)."""


def steady(cells: int, reynolds: float, dt: float, steps: int) -> Field:
    """Flow of constant inflow after so many steps from the profile of the inflow everywhere."""
    return ph.repeat(flow.physics(cells, dt, reynolds), flow.inflow(cells), steps, wrap(1.0))


def test_flow_reattaches_where_others_have_found() -> None:
    """With 16 cells across it is 2.8 % too early, with 32 0.6 %."""
    found = steady(16, 100.0, 0.1, 250)
    assert flow.reattachment(*flow.lower_wall(found)) == pytest.approx(ERTURK, rel=0.04)
    values = found.vector["x"].values.numpy("x,y")
    np.testing.assert_allclose(values.sum(1), values[0].sum(), rtol=1e-5)  # what enters leaves
    assert not values[:7, :8].any() and (np.abs(values[7, :8]) < 1e-6).all()  # the block, its face


def test_flow_becomes_that_between_plates() -> None:
    """Far behind the step: that of dense algebra with −u beyond the walls, which is ¾ y (2 − y) up to second order.

    Velocities that are zero half a cell beyond the walls would change it by 0.1.
    """
    found = steady(8, 20.0, 0.05, 160).vector["x"].values.x[-8].numpy("y")
    laplace = np.diag(np.full(8, -2.0)) + np.diag(np.ones(7), 1) + np.diag(np.ones(7), -1)
    laplace[0, 0] = laplace[-1, -1] = -3.0
    dense = np.linalg.solve(laplace, np.ones(8))
    np.testing.assert_allclose(found, 0.5 * dense / dense.mean(), atol=0.003)
    dx = flow.HEIGHT / 8
    y = (np.arange(8) + 0.5) * dx
    np.testing.assert_allclose(found, 0.75 * (y * (2 - y) - dx**2 / 12), atol=0.25 * dx**2)


def test_strengths_stay_within_their_bounds_and_differ() -> None:
    found = flow.strengths(20, 300, 0)
    assert 0.5 <= found.min() < 0.8 and 1.2 < found.max() <= 1.5
    assert np.abs(np.diff(found)).max() < 0.5 * 2 * np.pi * flow.DT / 2.5
    assert len(np.unique(found[:, 0].round(6))) == 20


def test_reattachment_is_the_last_turn_of_the_flow_at_the_wall() -> None:
    x = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    assert flow.reattachment(x, np.array([1.0, -1.0, -1.0, -1.0, 3.0])) == 3.25
    assert flow.reattachment(x, np.array([-1.0, 1.0, -1.0, 1.0, 1.0])) == 2.5
    assert flow.reattachment(x, np.ones(5)) == np.inf


def test_the_inflow_is_an_input_of_each_trajectory() -> None:
    start = flow.inflow(8)
    found = flow.physics(8, flow.DT)(start, wrap([0.5, 1.5], batch("trajectory")))
    inflow = found.vector["x"].values.x[0].numpy("trajectory,y").sum(1) * flow.HEIGHT / 8
    exact = float(start.vector["x"].values.x[0].numpy("y").sum()) * flow.HEIGHT / 8
    np.testing.assert_allclose(inflow, [0.5 * exact, 1.5 * exact], rtol=1e-5)


@pytest.mark.ci
def test_methods_make_equal_updates_from_the_source(tmp_path: Path) -> None:
    training, _, test = step.reference_data(SMALL)
    found = step.trained(SMALL, (training, test), dict(seeds=[0], folder=tmp_path))
    rows = {row: result.runs[0].rows[row] for row, result in found.items()}
    assert list(rows) == ["source", *step.METHODS, "network_alone"]
    updates = {name: row["updates"] for name, row in rows.items()}
    assert updates.pop("source") == 0 and updates.pop("one_step_long") == SMALL.long and set(updates.values()) == {1}
    assert rows["source"]["/ source"] == rows["source"]["worst time"] == 1
    assert rows["source"]["x_r true"] == flow.reattachment(*flow.lower_wall(test.trajectory))
    source = flow.physics(SMALL.coarse, flow.DT)
    untrained = step.hybrid(SMALL, source, ph.coupling.After())
    inputs = [values.time[0] for values in test.step_inputs]
    assert equal(*(flatten(solver(test.initial_state, *inputs))[0] for solver in (untrained, source)))
