"""Ensembles against single rollouts, and all members at once against one after the other."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import component_values, faces, forced_step, line, scalar
from phi.torch.flow import Field, Solve, batch, fluid, math, wrap

import phi_hybrid as ph
from phi_hybrid.bridge import flatten
from phi_hybrid.hybrid import ensemble as ensemble_module
from phi_hybrid.hybrid.ensemble import alike
from phi_hybrid.steps import PlainStep

STEPS = 4
MEMBER = "member"
SHARED = ph.capture(forced_step, check=False)


def network(inputs: int, outputs: int, dims: int = 1, seed: int = 0, extra: Callable | None = None) -> torch.nn.Module:
    conv = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d}[dims]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        between = [] if extra is None else [extra()]
        return torch.nn.Sequential(conv(inputs, 4, 3, padding=1), *between, torch.nn.Tanh(), conv(4, outputs, 1))


def solvers(count: int = 3, dims: int = 1, physics: Callable | None = None, **options: Any) -> list[ph.HybridSolver]:
    physics, extra = physics or SHARED, options.pop("extra", None)
    inputs = 2 * dims + len(options.get("features", ()))
    members = [ph.HybridSolver(physics, network(inputs, dims, dims, n, extra), **options) for n in range(count)]
    for n, member in enumerate(members):
        member.set_scales(torch.full((inputs,), 1 + 0.1 * n), torch.full((dims,), 0.1))
    return members


def double(members: list[ph.HybridSolver]) -> list[ph.HybridSolver]:
    for member in members:
        member.network.double()
    return members


def line_case(**options: Any) -> tuple[list[ph.HybridSolver], Field, Field]:
    u = line(0, dtype=torch.float64, trajectory=2)
    f = line(1, dtype=torch.float64, time=STEPS, trajectory=2)
    return double(solvers(**options)), u, f


def closed_case(**options: Any) -> tuple[list[ph.HybridSolver], Field, Field]:
    u, f = (faces("closed", seed, torch.float64) for seed in (0, 1))
    return double(solvers(dims=2, **options)), u, f


def project(v: Field) -> Field:
    return fluid.make_incompressible(v, solve=Solve("CG", 1e-5, rank_deficiency=0))[0]


CASES: dict[str, Callable[[], tuple[list[ph.HybridSolver], Field, Field]]] = {
    "float32 network": lambda: (solvers(), *line_case()[1:]),
    "copied solvers, features": lambda: (
        list(copy.deepcopy(line_case(features=(line(7, dtype=torch.float64),))[0])),
        *line_case()[1:],
    ),
    "parallel, dropout": lambda: line_case(coupling=ph.coupling.Parallel(ph.Additive()), extra=torch.nn.Dropout),
    "batch norm": lambda: line_case(extra=lambda: torch.nn.BatchNorm1d(4)),
    "staggered, closed, projected": lambda: closed_case(project=ph.capture(project, check=False)),
}


def natives(state: Any) -> list[torch.Tensor]:
    return list(flatten(state)[0])


def close(a: Any, b: Any, tolerance: float) -> bool:
    return all(torch.allclose(x, y, rtol=0, atol=tolerance) for x, y in zip(natives(a), natives(b), strict=True))


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble_module, "alike", lambda members: False)


# --- rollouts ---


@pytest.mark.parametrize("case", CASES)
def test_at_once_one_by_one_and_single_rollouts_agree(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with math.precision(64):
        members, u, f = CASES[case]()
        tolerance = 1e-6 if case == "float32 network" else 1e-12
        ensemble = ph.Ensemble(members)
        assert alike(ensemble.members)
        singles = math.stack([m.rollout(u, STEPS, f) for m in members], batch(MEMBER))
        at_once = ensemble.rollout(u, STEPS, f)
        one_by_one(monkeypatch)
        assert close(at_once, singles, tolerance)
        assert close(ensemble.rollout(u, STEPS, f), singles, tolerance)
        frames = at_once.member[0].time[-1], at_once.member[1].time[-1]
        assert not close(*frames, 1e-3)  # the members differ


def test_alike_members_take_one_call_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    members, u, f = line_case()
    calls: list[torch.nn.Module] = []
    forward = torch.nn.Conv1d.forward
    monkeypatch.setattr(torch.nn.Conv1d, "forward", lambda self, x: (calls.append(self), forward(self, x))[1])
    ph.Ensemble(members)(u, f.time[0])
    assert len(calls) == 2
    one_by_one(monkeypatch)
    ph.Ensemble(members)(u, f.time[0])
    assert len(calls) == 2 + 3 * 2


class Deciding(torch.nn.Module):
    """Looks at its values, which `torch.vmap` does not allow, unless it is told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.looks and float(x.detach().abs().max()) > 1e9 else 0.5 * x


def test_what_cannot_be_vmapped_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the members change: their settings, one of their layers, or their mode."""
    members, u, f = line_case(extra=Deciding)
    ensemble, calls = ph.Ensemble(members), []
    forward = Deciding.forward
    monkeypatch.setattr(Deciding, "forward", lambda self, x: (calls.append(self), forward(self, x))[1])

    def count() -> int:
        calls.clear()
        with math.precision(64):
            found = ensemble(u, f.time[0])
            assert close(found.member[2], members[2](u, f.time[0]), 1e-12)
        return len(calls) - 1

    assert [count() for _ in range(3)] == [4, 3, 3]
    with torch.no_grad():
        members[1].network[0].weight.mul_(2)  # numbers are no settings
    assert count() == 3
    ensemble.eval()
    assert [count(), count()] == [4, 3]
    for member in members:
        member.network[1].looks = False
    assert [count(), count()] == [1, 1]
    for member in members:
        member.network[1] = Deciding()
    assert [count(), count()] == [4, 3]


@pytest.mark.smoke
def test_members_follow_their_own_trajectories() -> None:
    """By hand, in plain PhiFlow: each member feeds itself, not the mean."""
    rates = (0.9, 1.1)
    members = [lambda u, f, rate=rate: rate * forced_step(u, f) for rate in rates]
    u, f = line(0, b=2), line(1, b=2, time=STEPS)
    found = ph.Ensemble(members).rollout(u, STEPS, f)
    for number, rate in enumerate(rates):
        own = u
        for n in range(STEPS):
            own = rate * forced_step(own, f.time[n])
        assert torch.equal(*(component_values(x, ["b"])[0] for x in (found.member[number].time[-1], own)))


def test_states_of_several_fields() -> None:
    def step(state: dict) -> dict:
        return {"v": forced_step(state["v"], state["v"]), "s": 0.9 * state["s"]}

    members = [step, lambda state: {"v": state["v"], "s": 2 * state["s"]}]
    state = {"v": faces("open", 0), "s": scalar(1)}
    found = ph.Ensemble(members)(state)
    for number, member in enumerate(members):
        for key, expected in member(state).items():
            assert close(found[key].member[number], expected, 1e-6)


def test_rollout_continues_where_it_stopped() -> None:
    """States with a dim `member` are shared out, and so are inputs."""
    with math.precision(64):
        members, u, f = line_case()
        ensemble = ph.Ensemble(members)
        whole = ensemble.rollout(u, STEPS, f)
        assert set(whole.shape.batch.names) == {"member", "time", "trajectory"} and len(ensemble) == 3
        assert close(ensemble.rollout(u, 0, f).time[0], ensemble.repeat(u), 0)
        rest = ensemble.rollout(whole.time[2], STEPS - 2, f.time[2:])
        assert close(rest.time[-1], whole.time[-1], 1e-12)
        forces = math.stack([n * f for n in range(3)], batch(MEMBER))
        forced = ensemble.rollout(u, STEPS, forces)
        assert close(forced.member[2], members[2].rollout(u, STEPS, 2 * f), 1e-12)
        assert close(ph.rollout(ensemble, u, STEPS, f), whole, 1e-12)


# --- native face, gradients, weights ---


def test_native_face() -> None:
    members, u, f = line_case()
    ensemble = ph.Ensemble(members)
    bound = ensemble.bind(u, f.time[0])
    tensors = bound.flatten(u, f.time[0])
    (found,) = bound.native(*tensors)
    assert found.shape == (3, 2, 8, 1)
    assert close(bound.unflatten((found,)), ensemble(u, f.time[0]), 0)
    (again,) = bound.native(found, tensors[1])
    assert close(bound.unflatten((again,)), ensemble(ensemble(u, f.time[0]), f.time[0]), 0)


@pytest.mark.parametrize("at_once", [True, False])
def test_gradients_reach_the_weights_of_their_member(at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    members, u, f = line_case()
    if not at_once:
        one_by_one(monkeypatch)
    ensemble = ph.Ensemble(members)
    (found,) = ensemble.native(*ensemble.flatten(u, f.time[0]))
    found[1].square().sum().backward()
    gradients = [p.grad.clone() for p in members[1].parameters()]
    assert all(p.grad is None or not p.grad.any() for n in (0, 2) for p in members[n].parameters())
    members[1].zero_grad()
    (alone,) = members[1].native(*members[1].flatten(u, f.time[0]))
    alone.square().sum().backward()
    for gradient, p in zip(gradients, members[1].parameters(), strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-10, atol=1e-12)


def test_changes_of_the_members_count_from_the_next_step_on() -> None:
    """Nothing of the stacked weights is kept."""
    members, u, f = line_case()
    ensemble = ph.Ensemble(members)
    tensors = ensemble.flatten(u, f.time[0])
    before = ensemble.native(*tensors)[0]
    with torch.no_grad():
        members[1].network[0].weight.mul_(2)
    after = ensemble.native(*tensors)[0]
    assert torch.equal(before[::2], after[::2]) and not torch.equal(before[1], after[1])
    assert close(ensemble(u, f.time[0]).member[1], members[1](u, f.time[0]), 1e-6)
    members[0].set_scales(torch.full((2,), 3.0), torch.full((1,), 0.5))
    assert close(ensemble(u, f.time[0]).member[0], members[0](u, f.time[0]), 1e-6)
    members[2].network[1] = torch.nn.ReLU()  # they are no longer alike
    assert close(ensemble(u, f.time[0]).member[2], members[2](u, f.time[0]), 1e-6)


def test_running_averages_are_not_lost_in_training() -> None:
    members, u, f = line_case(extra=lambda: torch.nn.BatchNorm1d(4))
    single = copy.deepcopy(members[1])
    ensemble = ph.Ensemble(members).eval()
    tensors = ensemble.flatten(u, f.time[0])
    ensemble.native(*tensors)
    assert not members[1].network[1].running_mean.any()
    ensemble.train().native(*tensors)
    single.train()(u, f.time[0])
    assert single.network[1].running_mean.any()
    assert torch.equal(single.network[1].running_mean, members[1].network[1].running_mean)


def test_state_dict_copies_and_pickles() -> None:
    members, u, f = line_case()
    ensemble = ph.Ensemble(members)
    expected = ensemble.rollout(u, STEPS, f)
    others = ph.Ensemble(double(solvers()[::-1]))
    assert not close(others.rollout(u, STEPS, f), expected, 1e-3)
    others.load_state_dict(ensemble.state_dict())
    for twin in (others, copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
        assert close(twin.rollout(u, STEPS, f), expected, 1e-6)
        assert alike(twin.members)


def changed(edit: Callable[[ph.HybridSolver], Any]) -> list[ph.HybridSolver]:
    members = solvers(2)
    edit(members[1])
    return members


UNLIKE: dict[str, Callable[[], list]] = {
    "plain steps": lambda: list(ph.Ensemble([forced_step, forced_step]).members),
    "physics": lambda: [*solvers(1), *solvers(1, physics=lambda u, f: forced_step(u, 2 * f))],
    "plain physics": lambda: solvers(2, physics=PlainStep(forced_step)),
    "coupling": lambda: [*solvers(1), *solvers(1, coupling=ph.coupling.Multiplicative())],
    "project": lambda: [*solvers(1), *solvers(1, project=lambda u: 0.5 * u)],
    "layers": lambda: changed(lambda s: setattr(s, "network", network(2, 1, extra=torch.nn.ReLU))),
    "activation": lambda: changed(lambda s: s.network.__setitem__(1, torch.nn.ReLU())),
    "setting": lambda: changed(lambda s: setattr(s.network[0], "padding_mode", "circular")),
    "own attribute": lambda: changed(lambda s: setattr(s.network, "gain", 2.0)),
    "tensor attribute": lambda: changed(lambda s: setattr(s.network, "mask", torch.ones(3))),
    "hook": lambda: changed(lambda s: s.network.register_forward_hook(lambda *_: None)),
    "mode": lambda: changed(lambda s: s.network.eval()),
    "precision": lambda: changed(lambda s: s.network.double()),
    "scales": lambda: changed(lambda s: setattr(s, "input_scale", torch.ones(1))),
    "boundaries": lambda: changed(lambda s: setattr(s, "boundaries", torch.ones(3, dtype=torch.uint8))),
}


def test_members_that_differ_in_more_than_numbers() -> None:
    assert alike(solvers(2))
    for kind, make in UNLIKE.items():
        members = make()
        assert len(members) == 2 and not alike(members), kind


# --- evaluation and reconstruction ---


def test_evaluation_measures_the_mean_of_the_members() -> None:
    members = solvers()
    u, f = line(0, b=3), line(1, b=3, time=STEPS)
    data = ph.Trajectories.generate(SHARED, u, STEPS, (f,), progress=False)
    ensemble = ph.Ensemble(members)
    found = ph.evaluate({"mean": ensemble, "single": members[0]}, data, batch_size=2)
    trajectory = component_values(ensemble.rollout(u, STEPS, f), ["member", "time", "b"])[0]
    own = trajectory.mean(0)[1:].double()
    expected = (own.transpose(0, 1) - data.states[0][:, 1:].double()).abs().mean([2, 3])
    np.testing.assert_allclose(found.mae["mean"].numpy(), expected.numpy(), rtol=1e-5)
    assert found.summary()["mean"]["blow_up"] == 0 and expected.min() > 1e-3


def test_one_failed_member_fails_the_mean() -> None:
    """The failing trajectory alone, from the step on in which its member overflows."""
    start = line(0, b=2)
    start = start.with_values(start.values * wrap(torch.tensor([1.0, 1e20]), batch("b")))
    data = ph.Trajectories.generate(lambda u: u, start, STEPS, progress=False)
    members = [lambda u: u, lambda u: 1e8 * u]
    found = ph.evaluate({"ensemble": ph.Ensemble(members)}, data)
    assert found.lifetime["ensemble"].tolist() == [STEPS, 2]
    assert torch.isfinite(found.mae["ensemble"][0]).all() and torch.isinf(found.mae["ensemble"][1, 2:]).all()


def test_every_member_reconstructs_its_own_initial_state() -> None:
    with math.precision(64):
        steps, (members, u, f) = 2, line_case(count=2)
        force = f.trajectory[0].time[0]
        ensemble, goal = ph.Ensemble(members), members[0].rollout(u, steps, force).time[-1]
        found = ph.reconstruct(ensemble, goal, ensemble.repeat(0 * u), force, times=(steps,), iterations=3, lr=0.5)
        for number, member in enumerate(members):
            alone = ph.reconstruct(member, goal, 0 * u, force, times=(steps,), iterations=3, lr=0.5)
            assert close(found.state.member[number], alone.state, 1e-10)
            assert not close(alone.state, 0 * u, 1e-2)


def test_members_of_different_kinds_of_states() -> None:
    ensemble = ph.Ensemble([lambda u: u, lambda u: u, lambda u: u.with_boundary(0)])
    with pytest.raises(ph.StateError, match="member 2 .*boundary periodic"):
        ensemble(line(0))
    hybrid = ph.HybridSolver(lambda u: u, network(5, 1))
    with pytest.raises(ph.StateError, match="member 1: .*1 input channels"):
        ph.Ensemble([lambda u: u, hybrid])(line(0))


def test_missing_inputs() -> None:
    with pytest.raises(ph.StateError, match="member 0: .*1 by position"):
        ph.Ensemble(solvers())(line(0))


def test_wrong_number_of_entries() -> None:
    with pytest.raises(ph.StateError, match="2 entries .*3 members"):
        ph.Ensemble(solvers()).rollout(line(0, member=2), 2, line(1))


@pytest.mark.parametrize("at_once", [True, False])
def test_non_finite_member_is_named(at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not at_once:
        one_by_one(monkeypatch)
    members, u, f = line_case()
    with torch.no_grad():
        members[1].network[2].bias.fill_(1e308)
        members[1].output_scale.fill_(1e3)
    with pytest.raises(ph.NonFiniteError, match=r"in step 1 of 4 \(member 1; trajectory 0, 1\)") as caught:
        ph.Ensemble(members).rollout(u, STEPS, f)
    assert caught.value.trajectory.shape.get_size("member") == 3


def test_failed_solve_names_the_member() -> None:
    ensemble = ph.Ensemble([lambda v: v, ph.capture(project, faces("closed", 0))])
    broken = faces("closed", 0) * float("nan")
    with pytest.raises(ph.SolveError, match="in step 1 of 2: member 1: "):
        ensemble.rollout(broken, 2, check=False)
