"""Scales of a solver's network against root mean squares by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from cases.small import DT, SmallNet, component_values, faces, forced_step, line, scalar, step
from phi.torch.flow import PERIODIC, ZERO_GRADIENT, Field, StaggeredGrid, batch, math, vec

import phi_hybrid as ph
from phi_hybrid.training.scales import estimate_scales

TRAJECTORIES, STEPS = 3, 6


def reference(u: Field, f: Field) -> Field:
    return 0.8 * step(u) + 3 * DT * f


@pytest.fixture(scope="module")
def block() -> ph.PhysicsBlock:
    return ph.capture(forced_step)


@pytest.fixture(scope="module", params=["constant", "time"])
def data(request: pytest.FixtureRequest) -> ph.Trajectories:
    f = line(1, b=TRAJECTORIES) if request.param == "constant" else line(1, b=TRAJECTORIES, time=STEPS)
    return ph.Trajectories.generate(ph.capture(reference), line(0, b=TRAJECTORIES), STEPS, (f,), progress=False)


def rms(x: torch.Tensor) -> float:
    return float((x.double() ** 2).mean().sqrt())


def by_hand(data: ph.Trajectories, times: list[int]) -> tuple[list[float], float]:
    """Plain PhiFlow: what the network sees (result of the physics, force) and what it has to return."""
    after, force, error = [], [], []
    for n in times:
        f = data.step_inputs[0]
        f = f.time[n] if "time" in f.shape else f
        result = component_values(forced_step(data.trajectory.time[n], f), ("trajectory",))[0]
        after.append(result)
        force.append(component_values(f, ("trajectory",))[0])
        error.append(data.states[0][:, n + 1] - result)
    return [rms(torch.stack(after)), rms(torch.stack(force))], rms(torch.stack(error))


@pytest.mark.parametrize(("samples", "times"), [(16, list(range(STEPS))), (2, [0, 5]), (1, [0])])
def test_scales_are_root_mean_squares(
    samples: int, times: list[int], data: ph.Trajectories, block: ph.PhysicsBlock
) -> None:
    solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
    assert not solver.scaled
    estimate_scales(solver, data, samples)
    expected_in, expected_out = by_hand(data, times)
    assert solver.input_scale.tolist() == pytest.approx(expected_in, rel=1e-5)
    assert solver.output_scale.tolist() == pytest.approx([expected_out], rel=1e-5)
    assert solver.scaled


def test_only_what_is_seen_is_scaled(data: ph.Trajectories, block: ph.PhysicsBlock) -> None:
    feature = 7.0 * line(5)
    solver = ph.HybridSolver(block, SmallNet(2, 1, 1), sees=(), features=(feature,))
    estimate_scales(solver, data)
    expected = [by_hand(data, list(range(STEPS)))[0][0], rms(component_values(feature)[0])]
    assert solver.input_scale.tolist() == pytest.approx(expected, rel=1e-5)


def test_components_of_a_staggered_velocity() -> None:
    """Per component over the faces that cells own; walls are zeros among them."""
    data = ph.Trajectories.generate(lambda u: u * 0.5, faces("closed", 0, b=3), 2, progress=False)
    solver = ph.HybridSolver(lambda u: u * 0.25, SmallNet(2, 2, 2))
    estimate_scales(solver, data)
    for component, states in enumerate(data.states):
        u = states[:, :-1]
        mean_square = float((u**2).sum() / (3 * 2 * 30))  # trajectories, times, cells
        assert float(solver.input_scale[component]) == pytest.approx(0.25 * mean_square**0.5, rel=1e-5)
        assert float(solver.output_scale[component]) == pytest.approx(0.25 * mean_square**0.5, rel=1e-5)


def test_perfect_physics_and_absent_forces_keep_scale_one(block: ph.PhysicsBlock) -> None:
    """Nothing to correct and nothing to see: channels that are always zero are not divided by zero."""
    data = ph.Trajectories.generate(block, line(0, b=2), 2, (0 * line(1, b=2),), progress=False)
    solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
    estimate_scales(solver, data)
    assert solver.output_scale.tolist() == [1.0] and solver.input_scale[1] == 1.0
    assert solver.input_scale[0] != 1.0


def test_parameters_and_several_fields() -> None:
    """A Reynolds number per trajectory is a channel like the others, of its own size."""

    def both(state: tuple[Field, Field], re: math.Tensor) -> tuple[Field, Field]:
        return state[0] * 0.5, state[1] + 1 / re

    re = math.wrap(torch.tensor([100.0, 300.0]), batch("b"))
    v, s = faces("periodic", 0, b=2), scalar(1, b=2)
    data = ph.Trajectories.generate(lambda state, re: state, (v, s), 2, (re,), progress=False)
    solver = ph.HybridSolver(both, SmallNet(4, 3, 2))
    estimate_scales(solver, data)
    x, y = component_values(v, "b")
    c = component_values(s, "b")[0]
    shifted = c + torch.tensor([0.01, 1 / 300]).view(2, 1, 1)
    expected = [rms(0.5 * x), rms(0.5 * y), rms(shifted), (0.5 * (100.0**2 + 300.0**2)) ** 0.5]
    assert solver.input_scale.tolist() == pytest.approx(expected, rel=1e-5)
    assert solver.output_scale.tolist() == pytest.approx([rms(0.5 * x), rms(0.5 * y), rms(shifted - c)], rel=1e-4)


def test_states_of_unseen_boundaries_are_refused() -> None:
    """Before and after binding, with the scales from data or from a file; a solver without scales takes any state."""

    def trained() -> ph.HybridSolver:
        solver = ph.HybridSolver(step, SmallNet(2, 2, 2))
        solver(faces("closed", 0))
        estimate_scales(solver, ph.Trajectories.generate(step, faces("periodic", 0, b=2), 2, progress=False))
        return solver

    loaded = ph.HybridSolver(step, SmallNet(2, 2, 2))
    loaded(faces("closed", 0))
    loaded.load_state_dict(trained().state_dict())
    for solver in (trained(), copy.deepcopy(trained()), loaded):
        solver(faces("periodic", 3, b=5))
        for kind in ("closed", "open", "inflow"):
            with pytest.raises(ph.StateError, match=r"\{'x-': 'periodic'"):
                solver(faces(kind, 0))
    anew = ph.HybridSolver(step, loaded.network)
    anew(faces("closed", 0))
    loaded.set_scales(torch.ones(2), torch.ones(2))  # without boundaries: the user's own choice
    loaded(faces("closed", 0))


@pytest.mark.smoke
def test_another_inflow_is_no_other_boundary() -> None:
    """Constants of the boundary may change: solvers are to work at other velocities."""
    u = faces("inflow", 0, b=2)
    solver = ph.HybridSolver(lambda v: v, SmallNet(2, 2, 2))
    estimate_scales(solver, ph.Trajectories.generate(lambda v: v, u, 2, progress=False))
    faster = u.with_boundary({"x": PERIODIC, "y-": vec(x=0.0, y=2.0), "y+": ZERO_GRADIENT})
    assert solver(faster).boundary == faster.boundary
    torch.testing.assert_close(solver.network.seen[:, 1, :, 0] * solver.input_scale[1], torch.full((2, 6), 2.0))


def test_the_value_of_a_fixed_face_is_no_error_of_the_physics() -> None:
    """Inflow of speed 1: the face it fixes is right in every state."""
    inflow = {"x-": 1.0, "x+": ZERO_GRADIENT, "y": PERIODIC}
    state = (StaggeredGrid(0.5, inflow, x=8, y=8) * math.wrap([1.0, 1.0], batch("b"))).with_boundary(inflow)
    data = ph.Trajectories.generate(lambda u: u.with_values(u.values + 0.01), state, 3, progress=False)
    solver = ph.HybridSolver(lambda u: u, torch.nn.Conv2d(2, 2, 1))
    estimate_scales(solver, data)
    share = 7 / 8  # of the cells' faces in x
    torch.testing.assert_close(solver.output_scale, torch.tensor([0.01 * share**0.5, 0.01]), rtol=1e-4, atol=0)


def test_number_of_samples(data: ph.Trajectories, block: ph.PhysicsBlock) -> None:
    with pytest.raises(ph.StateError, match="samples = 0"):
        estimate_scales(ph.HybridSolver(block, SmallNet(2, 1, 1)), data, 0)


def test_both_of_a_nested_pair_get_scales(data: ph.Trajectories, block: ph.PhysicsBlock) -> None:
    """The inner solver first, as if it stood alone; the outer one then from its steps."""
    inner, outer_net = ph.HybridSolver(block, SmallNet(2, 1, 1)), SmallNet(2, 1, 1, seed=1)
    alone = ph.HybridSolver(block, SmallNet(2, 1, 1))
    estimate_scales(alone, data)
    by_hand = ph.HybridSolver(alone, SmallNet(2, 1, 1, seed=1))
    estimate_scales(by_hand, data)
    outer = ph.HybridSolver(inner, outer_net)
    optimizer = torch.optim.SGD(outer.parameters(), 1e-3)
    ph.Trainer(outer, data, ph.Unrolled(1), optimizer=optimizer, progress=False)
    for found, expected in ((inner, alone), (outer, by_hand)):
        assert bool(found.scaled) and float(found.output_scale) != 1
        assert torch.equal(found.input_scale, expected.input_scale)
        assert torch.equal(found.output_scale, expected.output_scale)
