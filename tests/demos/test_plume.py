"""The corrected plume: every training starts from the source solver, or from doing nothing where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import plume_correction as plume
import pytest
import torch
from cases.small import equal
from phi.torch.flow import Field

import phi_hybrid as ph
from phi_hybrid.bridge import flatten

torch.set_num_threads(1)
SMALL = replace(plume.Case(), finer=2, every=1, spin_up=3, steps=16, training=2, test=1, updates=2, filters=(4,))


@pytest.fixture(scope="module")
def data() -> tuple[ph.Trajectories, ph.Trajectories]:
    return plume.reference_data(SMALL)


def last(states: dict[str, Field]) -> Sequence[torch.Tensor]:
    """Native tensors of the last states."""
    return flatten({name: part.time[SMALL.steps] for name, part in states.items()})[0]


def test_an_untrained_correction_is_the_source_and_a_network_alone_rests(data: tuple) -> None:
    _, test = data
    source, arguments = plume.physics(plume.DT), (test.initial_state, test.steps, *test.step_inputs)
    moved, start = last(ph.rollout(source, *arguments)), flatten(test.initial_state)[0]
    assert not any(torch.equal(m, s) for m, s in zip(moved, start, strict=True))
    for name, method in plume.METHODS.items():
        solver = ph.HybridSolver(source, plume.correction(SMALL), method.coupling)
        expected = start if name == "network_alone" else moved
        assert equal(last(ph.rollout(solver, *arguments)), expected), name


def test_places_of_inflow_in_the_test_are_not_trained_on(data: tuple) -> None:
    (known,), (unseen,) = (part.inputs for part in data)
    assert len(known) == 2 and len(unseen) == 1
    assert not any(torch.equal(k, u) for k in known for u in unseen)


def test_methods_are_measured_against_the_source(data: tuple) -> None:
    """As by hand from the errors over time."""
    rows, _ = plume.run(SMALL, data, seed=0)
    assert set(plume.METHODS) < set(rows) and rows["source"]["/ source"] == rows["source"]["worst time"] == 1
    for row in rows.values():
        assert row["/ source"] == pytest.approx(row["mae"] / rows["source"]["mae"])
        assert row["worst time"] >= row["/ source"] and row["blow_up"] == 0
