"""Scales of a solver's network against root mean squares by hand."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases.small import DT, SmallNet, component_values, faces, forced_step, line, scalar, step
from phi.torch.flow import PERIODIC, ZERO_GRADIENT, Box, CenteredGrid, Field, StaggeredGrid, batch, math, spatial, vec

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
            with pytest.raises(ph.StateError, match="boundaries x- periodic, .* but this one"):
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


# --- with a mean ---


def warm(u: Field, f: Field) -> Field:
    return 300.0 + 0.9 * (u - 300.0) + DT * f


@pytest.fixture(scope="module")
def temperatures() -> ph.Trajectories:
    """300 ± 0.01, as of a temperature in kelvin, with a force; float32 resolves 0.00003 of it."""
    f = line(1, b=TRAJECTORIES)
    return ph.Trajectories.generate(warm, 300.0 + 0.01 * line(0, b=TRAJECTORIES), STEPS, (0.01 * f,), progress=False)


def cool(u: Field, f: Field) -> Field:
    return u + DT * f


def seen_values(data: ph.Trajectories) -> list[torch.Tensor]:
    """What a network after `cool` sees, in float64."""
    u, f = data.states[0][:, :-1], data.inputs[0][:, None]
    return [(u + DT * f).double(), f.expand_as(u).double()]


def test_mean_and_deviation_by_hand(temperatures: ph.Trajectories) -> None:
    solver, plain = (ph.HybridSolver(cool, SmallNet(2, 1, 1)) for _ in range(2))
    estimate_scales(solver, temperatures, centred=True)
    estimate_scales(plain, temperatures)
    values = seen_values(temperatures)
    assert solver.input_mean.tolist() == pytest.approx([float(v.mean()) for v in values], rel=1e-6)
    assert solver.input_scale.tolist() == pytest.approx([float(v.std(correction=0)) for v in values], rel=1e-3)
    assert float(plain.input_scale[0]) == pytest.approx(300, rel=1e-3) and plain.input_mean.tolist() == [0, 0]
    assert torch.equal(solver.output_scale, plain.output_scale)
    solver(temperatures.initial_state, *temperatures.step_inputs)
    seen = solver.network.seen
    expected = [(v[:, 0, :, 0] - v.mean()) / v.std(correction=0) for v in values]
    torch.testing.assert_close(seen[:, 0].double(), expected[0], rtol=0, atol=0.02)  # the resolution of float32
    torch.testing.assert_close(seen[:, 1].double(), expected[1], rtol=1e-3, atol=1e-3)


def test_components_have_means_of_their_own() -> None:
    u = faces("periodic", 0, b=3)
    u = u + vec(x=5.0, y=-2.0)
    data = ph.Trajectories.generate(lambda v: v, u, 2, progress=False)
    solver = ph.HybridSolver(lambda v: v, SmallNet(2, 2, 2))
    estimate_scales(solver, data, centred=True)
    for number, part in enumerate(component_values(u, "b")):
        assert float(solver.input_mean[number]) == pytest.approx(float(part.mean()), rel=1e-5)
        assert float(solver.input_scale[number]) == pytest.approx(float(part.std(correction=0)), rel=1e-5)


def test_constants_keep_their_size(block: ph.PhysicsBlock) -> None:
    """Another value of them may come later; channels that are zero keep 1."""

    def with_number(u: Field, number: math.Tensor, f: Field) -> Field:
        return u * 0.5 + f

    data = ph.Trajectories.generate(with_number, line(0, b=2), 2, (math.wrap(0.1), 0 * line(1, b=2)), progress=False)
    solver = ph.HybridSolver(with_number, SmallNet(3, 1, 1))
    estimate_scales(solver, data, centred=True)
    assert solver.input_mean.tolist()[1:] == pytest.approx([0.1, 0])
    assert solver.input_scale.tolist()[1:] == pytest.approx([0.1, 1.0])


def test_means_of_a_mixture_are_those_of_all_that_is_drawn(temperatures: ph.Trajectories) -> None:
    """Half of the drawn windows are 10 warmer, which is nearly all of the deviation."""
    warmer = ph.Trajectories(
        (temperatures.states[0] + 10,), temperatures.inputs, temperatures.state_layout, temperatures.input_layout
    )
    solver = ph.HybridSolver(cool, SmallNet(2, 1, 1))
    mixture = ph.data.Mixture({"cool": (1.0, temperatures[:1]), "warm": (1.0, warmer)})
    estimate_scales(solver, mixture, centred=True)
    assert float(solver.input_mean[0]) == pytest.approx(305, abs=0.05)
    assert float(solver.input_scale[0]) == pytest.approx(5, rel=0.01)


def test_a_mean_is_kept_by_trainers_copies_and_files(temperatures: ph.Trajectories) -> None:
    def make(seed: int = 0) -> ph.HybridSolver:
        return ph.HybridSolver(cool, SmallNet(2, 1, 1, seed=seed))

    solver = make()
    estimate_scales(solver, temperatures, centred=True)
    optimizer = torch.optim.SGD(solver.parameters(), 1e-3)
    mean = solver.input_mean.clone()
    ph.Trainer(solver, temperatures, ph.Unrolled(2), optimizer=optimizer, progress=False).fit(2)
    assert torch.equal(solver.input_mean, mean)
    loaded = make(1)
    loaded.load_state_dict(solver.state_dict())
    arguments = (temperatures.initial_state, *temperatures.step_inputs)
    expected = solver(*arguments).values
    for twin in (loaded, copy.deepcopy(solver)):
        assert torch.equal(twin.input_mean, mean)
        math.assert_close(twin(*arguments).values, expected, rel_tolerance=0, abs_tolerance=0)
    members = [solver, make(1)]
    estimate_scales(members[1], temperatures, centred=True)
    members[1].input_mean += 0.01
    both = ph.Ensemble(members)(*arguments)
    for n, member in enumerate(members):
        math.assert_close(both.member[n].values, member(*arguments).values, rel_tolerance=1e-6, abs_tolerance=1e-6)


def test_files_without_a_mean_have_none(temperatures: ph.Trajectories) -> None:
    """Also for solvers that have one."""
    solver, old = (ph.HybridSolver(cool, SmallNet(2, 1, 1)) for _ in range(2))
    estimate_scales(solver, temperatures, centred=True)
    estimate_scales(old, temperatures)
    state = old.state_dict()
    del state["input_mean"]
    solver.load_state_dict(state)
    assert solver.input_mean.tolist() == [0, 0] and torch.equal(solver.input_scale, old.input_scale)
    estimate_scales(solver, temperatures, centred=True)
    estimate_scales(solver, temperatures)
    assert solver.input_mean.tolist() == [0, 0]


@pytest.mark.parametrize("bad", [torch.ones(3), torch.tensor([1.0, float("nan")]), [1.0, 2.0]])
def test_means_that_do_not_fit(bad: object) -> None:
    solver = ph.HybridSolver(cool, SmallNet(2, 1, 1))
    with pytest.raises(ph.StateError, match="input_mean = .*2 channels"):
        solver.set_scales(torch.ones(2), torch.ones(1), input_mean=bad)
    assert not solver.scaled


def test_data_that_became_nan_are_the_cause_not_the_physics(temperatures: ph.Trajectories) -> None:
    broken = replace(temperatures, states=tuple(t.clone() for t in temperatures.states))
    broken.states[0][:, 1] = float("nan")
    with pytest.raises(ph.NonFiniteError, match="the data holds NaN or infinite values at step 0 or 1"):
        estimate_scales(ph.HybridSolver(cool, SmallNet(2, 1, 1)), broken)


def test_centred_is_yes_or_no(temperatures: ph.Trajectories) -> None:
    with pytest.raises(ph.StateError, match="centred = 1"):
        estimate_scales(ph.HybridSolver(cool, SmallNet(2, 1, 1)), temperatures, centred=1)


@pytest.mark.parametrize("offset", [0.0, 3e-9])
@pytest.mark.parametrize("staggered", [True, False])
def test_a_component_that_is_only_rounding(staggered: bool, offset: float) -> None:
    """A laminar shear flow, whose velocity across is zero up to rounding: that is no signal to learn."""
    grid = StaggeredGrid if staggered else CenteredGrid
    amplitudes = math.tensor([0.5, 0.7], batch("trajectory"))

    def shear(scale: float) -> Field:
        return grid(
            lambda x: vec(
                x=scale * amplitudes * math.sin(x.vector["y"]), y=offset * amplitudes * math.cos(7 * x.vector["x"])
            ),
            PERIODIC,
            x=16,
            y=16,
            bounds=Box(x=2 * math.PI, y=2 * math.PI),
        )

    trajectory = math.stack([shear(0.9**n) for n in range(5)], batch("time"))
    data = ph.Trajectories.from_fields(trajectory)
    values = [t.double().numpy() for t in data.states]
    assert data.scale == pytest.approx([np.std(values[0], ddof=1)] * len(values), rel=1e-5)
    torch.manual_seed(0)
    solver = ph.HybridSolver(ph.capture(lambda u: 0.9 * u), torch.nn.Conv2d(2, 2, 3, padding=1))
    estimate_scales(solver, data)
    first, second = solver.input_scale.tolist()
    assert first == second > 0.1
    trainer = ph.Trainer(
        solver, data, ph.Unrolled(2), optimizer=torch.optim.SGD(solver.parameters(), 0.0), batch_size=2
    )
    assert trainer.fit(1)["loss"][0] < 10  # of an untrained network; 1e8 with rounding for a unit


def test_whole_numbers_beside_a_component_that_is_only_rounding() -> None:
    """The first part has no rounding, the second has."""
    trajectory = batch(trajectory=2, time=3)
    grid = CenteredGrid(0.0, PERIODIC, x=8, y=8)
    shear = math.random_normal(trajectory, spatial(x=8, y=8)) * vec(x=1.0, y=1e-9)
    count = math.to_int32(math.ones(trajectory, spatial(x=8, y=8)))
    data = ph.Trajectories.from_fields({"count": grid.with_values(count), "u": grid.with_values(shear)})
    step = ph.capture(lambda state: {**state, "u": 0.9 * state["u"]})
    solver = ph.HybridSolver(step, torch.nn.Conv2d(3, 2, 3, padding=1), corrects=["u"])
    estimate_scales(solver, data)
    first, second = solver.input_scale.tolist()[-2:]
    assert first == second > 0.1
    trainer = ph.Trainer(
        solver, data, ph.Unrolled(2), optimizer=torch.optim.SGD(solver.parameters(), 0.0), batch_size=2
    )
    assert trainer.fit(1)["loss"][0] < 10
