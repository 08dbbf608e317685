"""The corrected plume: every training starts from the source solver, or from doing nothing where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import plume_correction as plume
import pytest
import torch
from cases.small import equal
from phi.torch.flow import Field, Sphere, batch, channel, math, resample, wrap

import phi_hybrid as ph
from phi_hybrid.bridge import flatten
from phi_hybrid.pde import smoke

torch.set_num_threads(1)
SMALL = replace(
    plume.Case(),
    finer=2,
    every=1,
    spin_up=3,
    steps=16,
    training=2,
    validation=1,
    test=1,
    updates=100,
    batch=1,
    filters=(4,),
)


@pytest.fixture(scope="module")
def data() -> tuple[ph.Trajectories, ...]:
    return plume.reference_data(SMALL, 1)


def last(states: dict[str, Field]) -> Sequence[torch.Tensor]:
    """Native tensors of the last states."""
    return flatten({name: part.time[SMALL.steps] for name, part in states.items()})[0]


def test_an_untrained_correction_is_the_source_and_a_network_alone_rests(data: tuple) -> None:
    test = data[2]
    source, arguments = plume.physics(plume.DT), (test.initial_state, test.steps, *test.step_inputs)
    moved, start = last(ph.rollout(source, *arguments)), flatten(test.initial_state)[0]
    assert not any(torch.equal(m, s) for m, s in zip(moved, start, strict=True))
    for name, method in plume.METHODS.items():
        solver = plume.hybrid(method, source, SMALL)
        expected = start if name == "network_alone" else moved
        assert equal(last(ph.rollout(solver, *arguments)), expected), name


def test_mirror_images_are_trajectories_of_the_solver(data: tuple) -> None:
    given, source = data[0][:2], plume.physics(plume.DT)
    images = plume.mirrored(given)
    rollouts = (ph.rollout(source, t.initial_state, t.steps, *t.step_inputs) for t in (given, images))
    own, image = (ph.Trajectories.from_fields(states, given.step_inputs) for states in rollouts)
    for one, other in zip(plume.mirrored(own).states, image.states, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * float(one.abs().max()))
    assert not torch.allclose(images.states[0], given.states[0], atol=0.1 * float(given.states[0].abs().max()))


def test_places_of_inflow_differ_between_training_validation_and_test(data: tuple) -> None:
    inflows = [inflow for part in data for inflow in part.inputs[0]]
    assert len(inflows) == 6  # two of training with their mirror images
    assert not any(torch.equal(one, other) for n, one in enumerate(inflows) for other in inflows[:n])


def test_the_network_is_told_where_the_cylinder_is() -> None:
    """Against distances by hand: cells of edge 2, the cylinder of radius 4 at (16, 22), near within a radius."""
    solid, near = plume.places(SMALL)
    x, y = np.meshgrid(np.arange(16) * 2 + 1, np.arange(20) * 2 + 1, indexing="ij")
    radius = np.hypot(x - 16, y - 22)
    np.testing.assert_array_equal(solid.numpy("x,y") > 0.5, radius < 4)
    np.testing.assert_allclose(near.numpy("x,y"), np.exp(-np.maximum(radius - 4, 0) / 4), rtol=1e-4)


def test_steps_grow_with_the_updates() -> None:
    objective = plume.METHODS["unrolled_16"].objective(1200)
    assert [objective.at(n).steps for n in (0, 599, 600, 899, 900, 1199)] == [4, 4, 8, 8, 16, 16]


@pytest.mark.ci
def test_methods_are_measured_against_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by hand from the errors over time, and from the errors on the way."""
    monkeypatch.setattr(plume, "METHODS", {"one_step": plume.METHODS["one_step"]})
    rows, _ = plume.run(SMALL, seed=0)
    assert rows["source"]["/ source"] == rows["source"]["worst time"] == 1
    row = rows["one_step"]
    assert row["/ source"] == pytest.approx(row["mae"] / rows["source"]["mae"])
    assert row["worst time"] >= row["/ source"] and row["blow_up"] == 0
    assert row["worst look"] == row["after 100"] > 0 and row["updates"] == 100 and row["seconds"] > 0


@pytest.mark.ci
def test_plumes_from_neighbouring_places_rise_alike() -> None:
    """Places 0.036 apart: after 30 time units smoke differs by a tenth; with an inflow of whole cells by two thirds."""
    still = smoke.still_air(64, 80, 0.5)
    places = wrap([(21.60, 5.75), (21.62, 5.78)], batch("trajectory"), channel(vector="x,y"))
    shares = smoke.inflow_at(places, 3.0, 0.2, still["smoke"])
    whole = 0.2 * resample(Sphere(places, radius=3.0), still["smoke"])
    apart = []  # as a share of the smoke, on the fine grid
    for inflow in (shares, whole):
        end = ph.repeat(plume.physics(0.5), still, 60, inflow)["smoke"].values
        one, other = end.trajectory[0], end.trajectory[1]
        apart.append(float(math.sum(abs(one - other)) / math.sum(one)))
    assert apart[0] < 0.15 and apart[1] > 0.6
