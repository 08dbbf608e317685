"""Calls with inputs of the wrong kind: an error of the package names the value, before any work is done or lost."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import line
from phi.field import Field
from phi.torch.flow import StaggeredGrid, math

import phi_hybrid as ph
from phi_hybrid.bridge import ChannelMap, flatten, from_channels, to_channels, unflatten
from phi_hybrid.data import Trajectories, coarsen
from phi_hybrid.evaluation import Spread, Table
from phi_hybrid.inverse import flow, motion
from phi_hybrid.linear_solve import FastDiagonalization
from phi_hybrid.training import Diverted, Pushforward, Ramp, estimate_scales, precompute_corrections

Gradient, L, Coupling = ph.gradient, ph.losses, ph.coupling


def damped(u: Field) -> Field:
    return 0.9 * u


def forced(u: Field, force: Field) -> Field:
    return 0.9 * u + force


def nothing(u: Field) -> None:
    u * 2


def exploding(u: Field) -> Field:
    return u / 0.0


u, u4 = line(0, b=2), line(0, cells=4, b=2)
net = torch.nn.Conv1d(1, 1, 1)
solver = ph.HybridSolver(damped, net)
block = ph.capture(damped)
data = Trajectories.generate(damped, u, 4, progress=False)
coarse = Trajectories.generate(damped, u4, 4, progress=False)
forced_data = Trajectories.generate(forced, u, 4, (u,), progress=False)
window = ph.Unrolled(2)
adam = torch.optim.Adam(solver.parameters())
found = ph.evaluate({"damped": damped}, data)
members = ph.Ensemble([damped, damped]).repeat(u)
frozen = ph.HybridSolver(damped, torch.nn.Conv1d(1, 1, 1).requires_grad_(False))


def hybrid(*args: Any, **settings: Any) -> ph.HybridSolver:
    return ph.HybridSolver(*(args or (damped, net)), **settings)


def generate(*args: Any, **settings: Any) -> Trajectories:
    return Trajectories.generate(*(args or (damped, u, 2)), **{"progress": False, **settings})


def train(solver: Any = solver, data: Any = data, objective: Any = window, **settings: Any) -> ph.Trainer:
    return ph.Trainer(solver, data, objective, **{"optimizer": adam, "progress": False, **settings})


def reconstruct(**settings: Any) -> Any:
    return ph.reconstruct(block, u, u, **{"iterations": 1, **settings})


def evaluate(**settings: Any) -> Any:
    return ph.evaluate(**{"solvers": {"damped": damped}, "data": data, **settings})


State, Data, Capture = ph.StateError, ph.DataError, ph.CaptureError

CALLS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    # --- steps and states ---
    ("state of arrays", lambda: flatten(np.ones(3)), State, "ndarray"),
    ("class of a state", lambda: flatten(Field), State, "Field"),
    ("layout and tensors swapped", lambda: unflatten(*flatten(u)), State, r"layout = .*unflatten\(layout, tensors\)"),
    ("channels of arrays", lambda: from_channels(np.ones((2, 1, 8)), u), State, "channels = "),
    ("channels of numbers", lambda: to_channels(u, 3), State, r"values\[1\] = 3"),
    ("layout of channels", lambda: ChannelMap(u), State, "layout = "),
    ("capture a name", lambda: ph.capture("step"), State, "step = 'step'"),
    ("capture a class", lambda: ph.capture(ph.HybridSolver), State, "step = .*HybridSolver"),
    ("capture a step that returns None", lambda: ph.capture(nothing, u), State, "nothing returns None"),
    ("roll out a step that returns None", lambda: ph.rollout(nothing, u, 2), State, "nothing returns None"),
    ("a class as linear solver", lambda: ph.capture(damped, u, solver=FastDiagonalization), State, "solver = .*Fast"),
    ("a name as linear solver", lambda: ph.capture(damped, u, solver="cg"), State, "solver = 'cg'"),
    ("missing input", lambda: block.bind(), State, r"takes \(u.*0 by position"),
    ("state for the native face", lambda: block.bind(u).native(u), State, "torch tensors.*Field"),
    ("state for the native face of a step", lambda: ph.capture(damped, u).native(u), State, "torch tensors.*Field"),
    ("roll out a string of steps", lambda: ph.rollout(damped, u, "10"), State, "steps = '10'"),
    ("roll out 10.0 steps", lambda: ph.rollout(damped, u, 10.0), State, "steps = 10.0"),
    ("roll out True steps", lambda: ph.repeat(damped, u, True), State, "steps = True"),
    ("roll out steps and state swapped", lambda: ph.rollout(damped, 10, u), State, "steps = "),
    ("roll out the state first", lambda: ph.rollout(u, damped, 10), State, "step = "),
    ("roll out an array", lambda: ph.rollout(damped, np.ones(8), 2), State, "ndarray"),
    ("roll out a solver over a string", lambda: solver.rollout(u, steps="5"), State, "steps = '5'"),
    # --- hybrid solvers ---
    (
        "network and physics swapped",
        lambda: hybrid(net, block),
        State,
        r"network = PhysicsBlock.*HybridSolver\(physics, n",
    ),
    ("network and function swapped", lambda: hybrid(net, damped), State, "network = .*damped.*torch module"),
    ("class of a network", lambda: hybrid(damped, torch.nn.Conv1d), State, "network = .*Conv1d.*torch module"),
    ("function for a network", lambda: hybrid(damped, lambda x: x), State, "network = .*lambda.*torch module"),
    ("name of the physics", lambda: hybrid("burgers", net), State, "physics = 'burgers'"),
    ("class of the physics", lambda: hybrid(ph.PhysicsBlock, net), State, "physics = .*PhysicsBlock"),
    ("name of a coupling", lambda: hybrid(coupling="additive"), State, "coupling = 'additive'.*Additive()"),
    ("class of a coupling", lambda: hybrid(coupling=ph.Additive), State, r"coupling = .*Additive.*Additive\(\)"),
    ("class of a placement", lambda: hybrid(coupling=Coupling.Parallel), State, r"coupling = .*Parallel.*Additive\(\)"),
    ("name of a combination", lambda: Coupling.Parallel("additive"), State, "combine = 'additive'"),
    ("class of a combination", lambda: Coupling.Before(Coupling.Multiplicative), State, "combine = .*Multiplicative"),
    ("string for a strength", lambda: ph.Additive("0.5"), State, "strength = '0.5'"),
    ("float for an input", lambda: Coupling.Forcing(0.0), State, "input = 0.0"),
    ("bool for an input", lambda: Coupling.Parameter(True), State, "input = True"),
    ("name of a link", lambda: Coupling.Parameter(0, "exp"), State, "link = 'exp'"),
    (
        "class of a combination beside",
        lambda: Coupling.Parameter(0, combine=ph.Additive),
        State,
        "combine = .*Additive",
    ),
    ("names of inputs that are seen", lambda: hybrid(sees=["force"]), State, r"sees = \['force'\]"),
    ("number of inputs that is no count", lambda: hybrid(sees=0.5), State, "sees = 0.5"),
    ("parts that are no names", lambda: hybrid(corrects=[0.5]), State, r"corrects = \[0.5\]"),
    (
        "part that the state has not",
        lambda: hybrid(lambda s: s, net, corrects="smoke")({"u": u}),
        State,
        r"'smoke'.*\['u'\]",
    ),
    ("feature outside of a tuple", lambda: hybrid(features=u), State, "features = "),
    ("feature that is an array", lambda: hybrid(features=(np.ones(8),)), State, "ndarray"),
    ("name of a projection", lambda: hybrid(project="pressure"), State, "project = 'pressure'"),
    ("scales in lists", lambda: hybrid().set_scales([1.0], [1.0]), State, r"input_scale = \[1.0\].*torch.tensor"),
    ("input on another grid", lambda: hybrid(forced, torch.nn.Conv1d(2, 1, 1))(u, u4), State, "input 0 is on a grid"),
    ("no members", lambda: ph.Ensemble([]), State, "no members"),
    ("names of members", lambda: ph.Ensemble(["a", "b"]), State, r"members\[0\] = 'a'"),
    ("a single member", lambda: ph.Ensemble(solver), State, r"members = HybridSolver.*Ensemble\(\["),
    ("class of a member", lambda: ph.Ensemble([solver, ph.HybridSolver]), State, r"members\[1\] = .*HybridSolver"),
    ("ensemble over a string of steps", lambda: ph.Ensemble([damped]).rollout(u, "5"), State, "steps = '5'"),
    # --- data ---
    ("generate from a name", lambda: generate("burgers", u, 2), State, "step = 'burgers'"),
    ("generate a string of steps", lambda: generate(damped, u, "2"), State, "steps = '2'"),
    ("generate 2.0 steps", lambda: generate(damped, u, 2.0), State, "steps = 2.0"),
    ("generate from a step that returns None", lambda: generate(nothing, u, 2), State, "nothing returns None"),
    ("list of inputs", lambda: generate(forced, u, 2, [u]), State, r"inputs = \[.*inputs=\(force,\)"),
    ("store every 1.5 steps", lambda: generate(every=1.5), State, "every = 1.5"),
    ("coarsen by a string", lambda: generate(coarsen="2"), State, "coarsen = '2'"),
    ("coarsen by a float", lambda: coarsen(u, 2.5), State, "factor = 2.5"),
    ("coarsen by a bool", lambda: coarsen(u, True), State, "factor = True"),
    ("write to a number", lambda: generate(path=3), State, "path = 3"),
    ("metadata in a list", lambda: generate(metadata=["dt", 0.1]), State, "metadata = "),
    (
        "metadata that no file can hold",
        lambda: generate(exploding, u, 2, metadata={"step": damped}, path="x.h5"),
        Data,
        "JSON",
    ),
    ("load a missing file", lambda: Trajectories.load("missing.h5"), Data, "missing.h5"),
    ("load from a number", lambda: Trajectories.load(3), State, "path = 3"),
    ("save to a number", lambda: data.save(3), State, "path = 3"),
    (
        "states for trajectories",
        lambda: Trajectories([u], (), data.state_layout, data.input_layout),
        State,
        "states = ",
    ),
    ("split at a string", lambda: data.split("0.8"), State, "first = '0.8'"),
    ("split at a bool", lambda: data.split(True), State, "first = True"),
    ("between floats", lambda: data.between(0.0, 2), State, "start = 0.0"),
    ("between strings", lambda: data.between(0, "2"), State, "stop = '2'"),
    ("windows of a string of steps", lambda: data.windows("2"), State, "steps = '2'"),
    ("windows of an objective", lambda: data.windows(ph.Unrolled(2)), State, "steps = Unrolled"),
    ("trajectory of a name", lambda: data["first"], State, "selection = 'first'"),
    ("trajectory and time", lambda: data[0, 1], State, r"selection = \(0, 1\)"),
    ("arrays for inputs", lambda: data.with_inputs(np.ones(8)), State, "ndarray"),
    ("a device that is not there", lambda: data.whole().to("cuda:99"), State, "device = 'cuda:99'"),
    ("a device that is none", lambda: data.whole().to("gpu"), State, "device = 'gpu'"),
    # --- training ---
    ("unroll a string of steps", lambda: ph.Unrolled("10"), State, "steps = '10'"),
    ("unroll 10.0 steps", lambda: ph.Unrolled(10.0), State, "steps = 10.0"),
    ("unroll True steps", lambda: ph.Unrolled(True), State, "steps = True"),
    ("warm up 1.0 steps", lambda: ph.Unrolled(4, warm_up=1.0), State, "warm_up = 1.0"),
    ("a term for losses", lambda: ph.Unrolled(4, L.L2()), State, r"losses = L2.*Losses\("),
    ("class of a gradient mode", lambda: ph.Unrolled(4, gradient=Gradient.Full), State, "gradient = .*Full"),
    ("name of a gradient mode", lambda: ph.Unrolled(4, gradient="full"), State, "gradient = 'full'"),
    ("number for noise", lambda: ph.Unrolled(4, noise=0.1), State, r"noise = 0.1.*Noise\(0.01\)"),
    ("pushforward over a string", lambda: Pushforward("4"), State, "steps = '4'"),
    ("class of a reference", lambda: Diverted(2, ph.PhysicsBlock), State, "reference = .*PhysicsBlock"),
    ("list of stages", lambda: ph.Curriculum([ph.Unrolled(1)]), State, "stages = .*Unrolled"),
    ("class of a stage", lambda: ph.Curriculum({0: ph.Unrolled}), State, "stages = .*Unrolled"),
    ("bool for an update", lambda: ph.Curriculum({False: ph.Unrolled(1)}), State, "stages = .*False"),
    ("truncate at a string", lambda: Gradient.Truncated("4"), State, "every = '4'"),
    ("segments of True steps", lambda: Gradient.Checkpointed(True), State, "segment = True"),
    ("string for a factor", lambda: Gradient.Paths("0"), State, "network = '0'"),
    ("class of a chaining", lambda: Gradient.Paths(chaining=Gradient.Full), State, "chaining = .*Full"),
    ("name of a chaining", lambda: Gradient.SignConsistent("full"), State, "chaining = 'full'"),
    ("terms in a list", lambda: L.Losses([L.L2()]), State, r"terms = \[L2"),
    ("class of a term", lambda: L.Losses({"a": L.L2}), State, r"terms\['a'\] = .*L2"),
    ("string for a weight", lambda: L.Losses({"a": ("0.1", L.L2())}), State, r"terms\['a'\] = .*'0.1'"),
    ("class of steps that count", lambda: L.L1(L.LastStep), State, r"at = .*LastStep.*LastStep\(\)"),
    ("float for a step that counts", lambda: L.Steps(1.0), State, "numbers = 1.0"),
    ("string for a power", lambda: L.Spectral("1"), State, "power = '1'"),
    ("name of a quantity", lambda: L.Vanishing("divergence"), State, "quantity = 'divergence'"),
    ("class of a residual", lambda: L.Residual(ph.PhysicsBlock), State, "step = .*PhysicsBlock"),
    ("class of an inner term", lambda: L.BeforeCorrection(L.L2), State, "term = .*L2"),
    ("string for sigma", lambda: ph.Noise("0.1"), State, "sigma = '0.1'"),
    ("bool for sigma", lambda: ph.Noise(True), State, "sigma = True"),
    ("place of noise", lambda: ph.Noise(0.1, where="everywhere"), State, "where = 'everywhere'"),
    ("class of a schedule", lambda: ph.Noise(0.1, schedule=Ramp), State, "schedule = .*Ramp"),
    ("name of an admissible state", lambda: ph.Noise(0.1, project="solenoidal"), State, "project = 'solenoidal'"),
    ("string in a ramp", lambda: Ramp("1", 0, 100), State, "first = '1'"),
    ("float for the length of a ramp", lambda: Ramp(1, 0, 100.0), State, "updates = 100.0"),
    ("class of an objective", lambda: train(objective=ph.Unrolled), State, r"objective = .*Unrolled.*Unrolled\(16\)"),
    ("number for an objective", lambda: train(objective=16), State, r"objective = 16.*Unrolled\(16\)"),
    ("list for trajectories", lambda: train(data=[u, u]), State, r"data = \[.*generate"),
    ("function for a solver", lambda: train(solver=damped), State, "solver = .*damped.*HybridSolver"),
    ("class of an optimizer", lambda: train(optimizer=torch.optim.Adam), State, "optimizer = .*Adam"),
    ("name of a scheduler", lambda: train(scheduler="cosine"), State, "scheduler = 'cosine'"),
    ("float for a batch size", lambda: train(batch_size=8.0), State, "batch_size = 8.0"),
    ("string for a clip", lambda: train(clip="1"), State, "clip = '1'"),
    ("bool for a skip", lambda: train(skip=True), State, "skip = True"),
    ("float for a seed", lambda: train(seed=0.5), State, "seed = 0.5"),
    ("list for validation", lambda: train(validation=[u]), State, "validation = "),
    ("validation on another grid", lambda: train(validation=coarse), State, "validation.*x.*8.*4"),
    ("validation with other inputs", lambda: train(validation=forced_data), State, "validation.*1 inputs.*0"),
    ("float for a frequency", lambda: train(validate_every=1.5), State, "validate_every = 1.5"),
    ("number for a checkpoint", lambda: train(checkpoint=3), State, "checkpoint = 3"),
    (
        "frozen weights",
        lambda: train(frozen, optimizer=torch.optim.Adam(frozen.parameters())),
        State,
        r"frozen.*requires_grad_\(True\)",
    ),
    (
        "physics that makes NaN",
        lambda: train(s := hybrid(exploding, net), optimizer=torch.optim.Adam(s.parameters())),
        ph.NonFiniteError,
        "the physics is the cause, not the network",
    ),
    ("train for a string of updates", lambda: train().fit("10"), State, "updates = '10'"),
    ("train for True updates", lambda: train().fit(True), State, "updates = True"),
    ("resume from a missing file", lambda: train().resume("missing.pt"), Data, "missing.pt"),
    ("resume from a number", lambda: train().resume(3), State, "path = 3"),
    ("scales of a block", lambda: estimate_scales(block, data), State, "solver = PhysicsBlock"),
    ("scales from a float of samples", lambda: estimate_scales(hybrid(), data, 2.0), State, "samples = 2.0"),
    ("corrections of a name", lambda: precompute_corrections("burgers", data), State, "physics = 'burgers'"),
    ("corrections of a list", lambda: precompute_corrections(damped, [u]), State, "data = "),
    ("corrections of a weight", lambda: precompute_corrections(damped, data, "1"), State, "weight = '1'"),
    # --- evaluation ---
    ("evaluate a list", lambda: evaluate(solvers=[damped]), State, "solvers = .*'hybrid': solver"),
    ("evaluate no function", lambda: evaluate(solvers={"damped": 3}), State, r"solvers\['damped'\] = 3"),
    ("evaluate a class", lambda: evaluate(solvers={"a": ph.HybridSolver}), State, r"solvers\['a'\] = .*HybridSolver"),
    ("evaluate on a list", lambda: evaluate(data=[u]), State, "data = "),
    ("evaluate a string of steps", lambda: evaluate(steps="4"), State, "steps = '4'"),
    ("evaluate 4.0 steps", lambda: evaluate(steps=4.0), State, "steps = 4.0"),
    ("float for a batch of rollouts", lambda: evaluate(batch_size=2.0), State, "batch_size = 2.0"),
    ("metrics in a list", lambda: evaluate(metrics=[ph.metrics.MAE()]), State, "metrics = .*MAE"),
    (
        "class of a metric",
        lambda: evaluate(metrics={"a": ph.metrics.SpectrumError}),
        State,
        r"metrics\['a'\] = .*Spectrum",
    ),
    ("name of a metric", lambda: evaluate(metrics={"a": "energy"}), State, r"metrics\['a'\] = 'energy'"),
    ("name of a measured quantity", lambda: ph.metrics.MAE("vorticity"), State, "of = 'vorticity'"),
    ("name of a conserved quantity", lambda: ph.metrics.Drift("energy"), State, "quantity = 'energy'"),
    ("string for a scale", lambda: ph.metrics.Drift(ph.quantities.energy, "1"), State, "scale = '1'"),
    ("horizon outside of a tuple", lambda: found.summary(2), State, r"horizons = 2.*\(8,\)"),
    ("string for a horizon", lambda: found.until("2"), State, "steps = '2'"),
    ("threshold outside of a tuple", lambda: found.summary((), 0.8), State, r"thresholds = 0.8.*\(0.8,\)"),
    ("string for a threshold", lambda: found.time_to("0.8"), State, "threshold = '0.8'"),
    ("groups in a list", lambda: found.grouped([0, 1]), State, r"groups = \[0, 1\]"),
    ("rows in a list", lambda: Table([{"mae": 1.0}]), State, r"rows = \[\{'mae': 1.0\}\]"),
    ("number for a row", lambda: Table({"a": 1.0}), State, r"'a'.* 1.0"),
    ("spread of a number", lambda: Spread(1.0), State, "values = 1.0"),
    ("spread of names", lambda: Spread(("a", "b")), State, r"values = \('a', 'b'\)"),
    ("level in percent as string", lambda: ph.calibration.coverage(members, u, "90"), State, "level = '90'"),
    ("string for a factor of a spread", lambda: ph.calibration.rescale(members, "2"), State, "factor = '2'"),
    ("energy of a number", lambda: ph.quantities.energy(3.0), State, "state = 3.0"),
    # --- inverse problems ---
    ("reconstruct from a name", lambda: ph.reconstruct("burgers", u, u), State, "physics = 'burgers'"),
    ("class of a rule", lambda: reconstruct(rule=ph.optim.Gradient), State, r"rule = .*Gradient.*Gradient\(\)"),
    ("name of a rule", lambda: reconstruct(rule="gradient"), State, r"rule = 'gradient'.*Gradient\(\)"),
    ("name of a distance", lambda: reconstruct(loss="l2"), State, "loss = 'l2'"),
    ("name of an optimizer", lambda: reconstruct(optimizer="adam"), State, "optimizer = 'adam'"),
    ("instance of an optimizer", lambda: reconstruct(optimizer=adam), State, "optimizer = Adam"),
    ("class of no optimizer", lambda: reconstruct(optimizer=dict), State, "optimizer.*a torch optimizer"),
    ("string for a rate", lambda: reconstruct(lr="1"), State, "lr = '1'"),
    ("float for iterations", lambda: reconstruct(iterations=10.0), State, "iterations = 10.0"),
    ("bool for iterations", lambda: reconstruct(iterations=True), State, "iterations = True"),
    ("string for times", lambda: reconstruct(times="8"), State, "times = '8'"),
    (
        "string for a tolerance",
        lambda: ph.inverse.fixed_point(torch.cos, torch.ones(1), "1e-6"),
        State,
        "tolerance = '1",
    ),
    (
        "float for evaluations",
        lambda: ph.inverse.fixed_point(torch.cos, torch.ones(1), 1e-6, 9.0),
        State,
        "max_steps = 9.0",
    ),
    ("way back that is a name", lambda: flow.local_inverse(damped, "back"), State, "back = 'back'"),
    ("float for corrections", lambda: flow.local_inverse(damped, damped, 2.0), State, "iterations = 2.0"),
    ("string for a time step", lambda: flow.advect_back("0.1"), State, "dt = '0.1'"),
    ("name of an advection", lambda: flow.burgers_back(0.1, "upwind"), State, "advection = 'upwind'"),
    ("float for waves", lambda: motion.solenoidal_waves(StaggeredGrid(0.0, 0, x=4, y=4), 2.5), State, "waves = 2.5"),
]


@pytest.mark.parametrize("call, error, named", [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_wrong_inputs(call: Callable[[], Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        call()


def test_a_single_name_or_number_is_a_choice_of_one() -> None:
    assert hybrid(corrects="u").corrects == ("u",) and hybrid(corrects=0, sees=0).sees == (0,)
    assert torch.equal(ph.calibration.skill(members, u, "b").native("b"), torch.zeros(2))


# --- conditions on tensors ---


def mean(u: Field) -> Any:
    return math.mean(u.values, u.shape)


def by_if(u: Field) -> Field:
    if (u.values > 0).any:  # here: if
        return 2 * u
    return u


def by_while(u: Field) -> Field:
    while mean(u) > 1e-3:  # here: while
        u = 0.5 * u
    return u


def by_and(u: Field) -> Field:
    return u if u.is_centered and float(mean(u)) < 1 else 2 * u  # here: and


def by_keyword(factor: float, u: Field) -> Field:
    return factor * u if not mean(u) > 0 else u  # here: partial


by_lambda = lambda u: u if mean(u) > 0 else 2 * u  # noqa: E731  # here: lambda


def by_nested(u: Field) -> Field:
    def inner(v: Field) -> Field:
        return max([v, 2 * v], key=lambda w: mean(w))  # here: nested

    return inner(u)


class Method:
    def step(self, u: Field) -> Field:
        assert math.is_finite(u.values).all  # here: method
        return u


CONDITIONS = {
    "if": by_if,
    "while": by_while,
    "and": by_and,
    "partial": functools.partial(by_keyword, 2.0),
    "lambda": by_lambda,
    "nested": by_nested,
    "method": Method().step,
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_on_tensors_name_the_line(name: str) -> None:
    source = open(__file__).read().splitlines()
    number = 1 + next(n for n, text in enumerate(source) if text.endswith(f"# here: {name}"))
    with pytest.raises(Capture, match=rf"(Python condition|float).* at {re.escape(__file__)}:{number} .*Way out"):
        ph.capture(CONDITIONS[name], line(0))
