"""Studies of transport equations, of noise in long rollouts and of unseen viscosities, against formulas by hand."""

from __future__ import annotations

from dataclasses import replace

import compare_transport
import noise_long_rollouts as noise
import numpy as np
import pytest
import torch
import transport_cases as cases
import transport_equations as equations
import viscosity_uncertainty as viscosity
from flows import LINE
from phi.math import channel, wrap
from phi.torch.flow import CenteredGrid, advect, extrapolation

import phi_hybrid as ph
from phi_hybrid.bridge import flatten
from phi_hybrid.evaluation import Evaluation
from phi_hybrid.pde import burgers, grids

torch.set_num_threads(1)


# --- equations ---


@pytest.mark.parametrize("cells", [64, 128])
def test_flux_of_a_varying_diffusivity(cells: int) -> None:
    """∂/∂x (1 + ½ sin 2x) ∂/∂x sin x, to second order."""
    faces, centres = (np.arange(cells) + 1) * 2 * np.pi / cells, equations.positions(cells)
    line = grids.line(cells)
    u = line.with_values(grids.as_tensor(np.sin(centres)[:, None], *line.values.shape.only("x"), channel(vector="x")))
    diffusivity = grids.as_tensor(1 + 0.5 * np.sin(2 * faces), *line.values.shape.only("x"))
    found = equations.gradient_of_flux(u, diffusivity).numpy("x,vector")[:, 0]
    expected = np.cos(2 * centres) * np.cos(centres) - (1 + 0.5 * np.sin(2 * centres)) * np.sin(centres)
    assert abs(found - expected).max() < 1.5 * (2 * np.pi / cells) ** 2


def test_source_and_reference_differ_in_the_diffusivity_alone() -> None:
    data, _ = equations.drift_data(0, count=2, steps=3)
    right, wrong = (equations.drift_with(equations.diffusivity(contrast)) for contrast in (equations.CONTRAST, 0))
    errors = {name: float(ph.evaluate({"s": step}, data).mae["s"].max()) for name, step in (("r", right), ("w", wrong))}
    assert errors["r"] == 0 < errors["w"]


@pytest.mark.parametrize("law", [equations.cubic, equations.caricature])
def test_uniform_reaction_is_an_ordinary_equation(law: object) -> None:
    start = np.array([1.3, -0.2], np.float32)
    state = CenteredGrid(wrap(start, channel(vector="u,v")), extrapolation.PERIODIC, grids.line(8, 10.0).bounds, x=8)
    found = equations.reaction(law)(state).values.x[3].numpy("vector")
    (u, v), dt = start, equations.EXCITED_DT / 5
    for _ in range(5):
        rate = u - u**3 / 3 if law is equations.cubic else (u if abs(u) < 1 else np.sign(u) * (2 - abs(u)))
        u, v = u + dt * (rate - v + 0.5), v + dt * 0.08 * (u + 0.7 - 0.8 * v)
    np.testing.assert_allclose(found, [u, v], rtol=1e-5)


def test_all_trainings_of_a_case_share_their_beginning() -> None:
    for case in cases.CASES.values():
        stages = compare_transport.methods(case)
        assert len({repr(s[0]) for s in stages.values()}) == 1
        updates = {name: s[1].updates for name, s in stages.items()}
        assert updates.pop("one_step_long") > 3 * case.updates and set(updates.values()) == {case.updates}


# --- noise ---


def test_numbers_of_long_rollouts_by_hand() -> None:
    nrmse = torch.tensor([[0.1, 0.4, 0.6, 0.2], [0.2, torch.inf, torch.inf, torch.inf]]).double()
    values = {
        "nrmse": nrmse,
        "mae": torch.ones(2, 4).double(),
        "energy": torch.tensor([[9.0, 9.0, 1.0, 3.0], [9.0, torch.inf, torch.inf, torch.inf]]).double(),
        "leaves": torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, torch.inf, torch.inf, torch.inf]]).double(),
    }
    evaluation = Evaluation({m: {"s": v} for m, v in values.items()}, {"s": torch.tensor([4, 1])})
    found = noise.numbers(evaluation, 2)["s"]
    assert found == pytest.approx({"capped": 4.5 / 8, "left": 0.5, "time": 1.5, "energy": 2.0, "mae_early": 1.0})


# --- viscosities ---


def test_solvers_use_the_viscosity_they_are_told_or_believe_in() -> None:
    case = replace(LINE, fine=64, coarse=16, steps=2)
    data = viscosity.trajectories(case, (0.01, 0.03), 4, 0)
    (force, given), start = data.step_inputs, data.initial_state
    np.testing.assert_allclose(given.numpy("trajectory"), [0.01, 0.01, 0.03, 0.03], rtol=1e-6)
    for believed in (None, 0.02):
        found = viscosity.solver_step(believed)(start, force.time[0], given).trajectory[3]
        expected = burgers.burgers_step(LINE.dt, believed or 0.03, advection=advect.mac_cormack)(start, force.time[0])
        np.testing.assert_allclose(*(flatten(u)[0][0].flatten() for u in (found, expected.trajectory[3])), rtol=1e-5)


def test_members_with_ranges_of_their_own_know_all_viscosities_together() -> None:
    seen = [viscosity.neighbours(n) for n in range(viscosity.MEMBERS)]
    assert {v for own in seen for v in own} == set(viscosity.KNOWN) and {len(own) for own in seen} == {3}
    assert all(viscosity.KNOWN[n] in own for n, own in enumerate(seen))
    assert not {*viscosity.INSIDE, *viscosity.OUTSIDE} & set(viscosity.KNOWN)


def test_ensembles_are_scored_on_every_viscosity(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: beliefs[::3] for name, beliefs in viscosity.ENSEMBLES.items() if name in ("own", "told")}
    monkeypatch.setattr(viscosity, "ENSEMBLES", few)
    case = replace(LINE, fine=64, coarse=16, trajectories=6, steps=6, pretraining=2, updates=1, filters=(4,))
    found = viscosity.run(case, 0)
    assert len(found) == 5 * 2
    assert all(0 <= row["coverage_90"] <= 1 and row["crps"] <= row["rmse"] for row in found.values())
