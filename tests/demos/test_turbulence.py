"""The study of turbulence: symmetries that make its data, its network, and how its methods share their updates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases.analytic import taylor_green
from turbulence_correction import (
    CASES,
    DT,
    VISCOSITY,
    Case,
    Correction,
    LongCase,
    physics,
    trajectories,
    with_symmetries,
)

import phi_hybrid as ph
from phi_hybrid.bridge import flatten
from phi_hybrid.pde import navier_stokes


@pytest.fixture(scope="module")
def data() -> ph.Trajectories:
    return trajectories(Case(fine=32, every=1, spin_up=5), count=2, steps=3, seed=0)


def test_the_solver_takes_symmetric_copies_to_symmetric_copies(data: ph.Trajectories) -> None:
    """The bare solver from the first states of all copies, against the copies of where it leads from the originals."""
    copies = with_symmetries(data)
    assert len(copies) == 8
    own = ph.rollout(physics(Case(), 32, DT), copies.initial_state, copies.steps)
    for component in "xy":
        found, expected = (
            f.values[{"~vector": component}].numpy("trajectory,time,x,y") for f in (own, copies.trajectory)
        )
        np.testing.assert_allclose(found, expected, atol=2e-5)
        assert np.abs(expected[2:4] - expected[:2]).max() > 0.5  # the copies differ


def test_copies_have_the_energy_and_no_divergence(data: ph.Trajectories) -> None:
    copies = with_symmetries(data)
    energy = ph.quantities.energy(copies.initial_state).numpy("trajectory").reshape(4, 2)
    np.testing.assert_allclose(energy, energy[:1].repeat(4, 0), rtol=1e-5)
    assert ph.quantities.largest_divergence(copies.initial_state) < 1e-5


def test_all_methods_but_the_long_one_make_equally_many_updates() -> None:
    case = Case()
    total = {name: sum(stage.updates for stage in stages) for name, stages in case.methods().items()}
    assert total.pop("one_step_long") == case.pretraining + case.long
    assert set(total.values()) == {case.pretraining + sum(case.updates)}


def test_the_recipe_is_among_what_is_tuned() -> None:
    for case in CASES.values():
        methods, candidates = case.methods(), case.candidates()
        for name in ("one_step", "unrolled_4"):
            assert candidates[f"{name}, 1 × rates"] == methods[name]
        assert methods["noise"] in candidates.values()


def test_without_force_and_drag_vortices_decay_by_their_viscosity() -> None:
    """The solution of Taylor and Green, which the force of the other case would change."""
    start, steps = taylor_green(navier_stokes.periodic_square(32), 0.0, VISCOSITY), 4
    errors = {}
    for name, case in CASES.items():
        found = ph.repeat(physics(case, 32, DT), start, steps)
        exact = taylor_green(navier_stokes.periodic_square(32), steps * DT, VISCOSITY)
        errors[name] = max(float(abs(a - b).max()) for a, b in zip(flatten(found)[0], flatten(exact)[0]))
    assert errors["decaying"] < 0.01 and errors["kolmogorov"] > 0.1


def test_in_the_long_version_methods_go_on_from_one_another() -> None:
    methods = LongCase().methods()
    assert methods["unrolled_4"][:1] == methods["one_step"] == methods["one_step_long"][:1]
    assert methods["unrolled_16"][:2] == methods["unrolled_4"]


@pytest.mark.parametrize("dim", [2, 3])
def test_the_correction_moves_with_what_it_sees_by_blocks_of_two_cells(dim: int) -> None:
    torch.manual_seed(0)
    network, seen = Correction(3, 8), torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(network(seen.roll(6, dim)).roll(-6, dim), network(seen))
