"""Inputs of the wrong kind: an error of the package names value and way out, before any work is done or lost."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import line
from phi.field import Field
from phi.torch.flow import StaggeredGrid, math

import phi_hybrid as ph
from phi_hybrid import coupling, gradient, losses, metrics, quantities
from phi_hybrid.bridge import ChannelMap, flatten, from_channels, to_channels, unflatten
from phi_hybrid.data import Trajectories, coarsen
from phi_hybrid.evaluation import Spread, Table, calibration
from phi_hybrid.inverse import fixed_point, flow, motion
from phi_hybrid.linear_solve import FastDiagonalization
from phi_hybrid.training import Diverted, Pushforward, Ramp, estimate_scales, precompute_corrections


def damped(u: Field) -> Field:
    return 0.9 * u


def forced(u: Field, force: Field) -> Field:
    return 0.9 * u + force


def nothing(u: Field) -> None:
    u * 2


def exploding(u: Field) -> Field:
    return u / 0.0


u, coarse = line(0, b=2), line(0, cells=4, b=2)
net, frozen = torch.nn.Conv1d(1, 1, 1), torch.nn.Conv1d(1, 1, 1).requires_grad_(False)
block, solver, blind = ph.capture(damped), ph.HybridSolver(damped, net), ph.HybridSolver(damped, frozen)
data, coarse_data, forced_data = (
    Trajectories.generate(step, v, 4, inputs, progress=False)
    for step, v, inputs in ((damped, u, ()), (damped, coarse, ()), (forced, u, (u,)))
)
adam, window = torch.optim.Adam(solver.parameters()), ph.Unrolled(2)
found, table = ph.evaluate({"damped": damped}, data), Table({"damped": {"mae": 1.0}})
members = ph.Ensemble([damped, damped]).repeat(u)


def hybrid(physics: Any = damped, network: Any = net, **settings: Any) -> ph.HybridSolver:
    return ph.HybridSolver(physics, network, **settings)


def generate(step: Any = damped, start: Any = u, steps: Any = 2, **settings: Any) -> Trajectories:
    return Trajectories.generate(step, start, steps, **{"progress": False, **settings})


def train(solver: Any = solver, data: Any = data, objective: Any = window, **settings: Any) -> ph.Trainer:
    return ph.Trainer(solver, data, objective, **{"optimizer": adam, "progress": False, **settings})


def train_all(solver: ph.HybridSolver) -> ph.Trainer:
    return train(solver, optimizer=torch.optim.Adam(solver.parameters()))


def evaluate(**settings: Any) -> Any:
    return ph.evaluate(**{"solvers": {"damped": damped}, "data": data, **settings})


def reconstruct(**settings: Any) -> Any:
    return ph.reconstruct(block, u, u, **{"iterations": 1, **settings})


State, Data, Capture = ph.StateError, ph.DataError, ph.CaptureError

CALLS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    # --- states and steps ---
    ("state of arrays", lambda: flatten(np.ones(3)), State, "ndarray.*phi.math.wrap"),
    ("class of a state", lambda: flatten(Field), State, "Field"),
    ("tensors and layout swapped", lambda: unflatten(*flatten(u)), State, r"layout = .*unflatten\(layout, tensors\)"),
    ("channels of arrays", lambda: from_channels(np.ones((2, 1, 8)), u), State, "channels = .*torch tensor"),
    ("channels of numbers", lambda: to_channels(u, 3), State, r"values\[1\] = 3 is no tensor"),
    ("state for a layout", lambda: ChannelMap(u), State, "layout = .*flatten"),
    ("step that returns None, captured", lambda: ph.capture(nothing, u), State, "nothing returns None"),
    ("step that returns None", lambda: ph.rollout(nothing, u, 2), State, "nothing returns None"),
    ("missing input", lambda: block.bind(), State, r"takes \(u.*0 by position"),
    ("state for tensors", lambda: block.bind(u).native(u), State, "torch tensors, got Field.*flatten"),
    ("state for tensors of a block", lambda: ph.capture(damped, u).native(u), State, "torch tensors, got Field"),
    ("state and steps swapped", lambda: ph.rollout(damped, 10, u), State, "steps = "),
    ("step and state swapped", lambda: ph.rollout(u, damped, 10), State, "step = "),
    ("rollout of an array", lambda: ph.rollout(damped, np.ones(8), 2), State, "ndarray.*phi.math.wrap"),
    # --- hybrid solvers ---
    ("network and block swapped", lambda: hybrid(net, block), State, r"network = .*HybridSolver\(physics, network\)"),
    ("network and function swapped", lambda: hybrid(net, damped), State, "network = .*damped.*torch module"),
    ("class of a network", lambda: hybrid(network=torch.nn.Conv1d), State, "network = the class Conv1d.*torch module"),
    ("function for a network", lambda: hybrid(network=lambda x: x), State, "network = .*lambda.*torch module"),
    (
        "part that the state has not",
        lambda: hybrid(lambda s: s, corrects="smoke")({"u": u}),
        State,
        r"'smoke'.*\['u'\]",
    ),
    ("feature outside of a tuple", lambda: hybrid(features=u), State, r"features = .*\(mask,\)"),
    ("feature that is an array", lambda: hybrid(features=(np.ones(8),)), State, "ndarray.*phi.math.wrap"),
    ("scales in lists", lambda: solver.set_scales([1.0], [1.0]), State, r"input_scale = \[1.0\].*torch.tensor"),
    (
        "input on another grid",
        lambda: hybrid(forced, torch.nn.Conv1d(2, 1, 1))(u, coarse),
        State,
        "input 0 is on a grid of {'x': 4}.*Resample",
    ),
    ("no members", lambda: ph.Ensemble([]), State, "no members.*Ensemble"),
    ("names of members", lambda: ph.Ensemble(["a", "b"]), State, r"members\[0\] = 'a'"),
    ("a single member", lambda: ph.Ensemble(solver), State, r"members = HybridSolver.*Ensemble\(\["),
    ("class of a member", lambda: ph.Ensemble([solver, ph.HybridSolver]), State, r"members\[1\] = the class Hybrid"),
    ("members over a string", lambda: ph.Ensemble([damped]).rollout(u, "5"), State, "steps = '5'"),
    # --- data ---
    ("reference that returns None", lambda: generate(nothing), State, "nothing returns None"),
    ("list of inputs", lambda: generate(forced, inputs=[u]), State, r"inputs = \[.*inputs=\(force,\)"),
    ("metadata in a list", lambda: generate(metadata=["dt", 0.1]), State, r"metadata = \['dt', 0.1\]"),
    (
        "metadata that no file can hold",  # said before the reference is computed
        lambda: generate(exploding, metadata={"step": damped}, path="data.h5"),
        Data,
        "metadata must be JSON.*function",
    ),
    ("missing file", lambda: Trajectories.load("missing.h5"), Data, "missing.h5.*Trajectories.generate"),
    ("missing file, lazily", lambda: Trajectories.load(Path("missing.h5"), lazy=True), Data, "missing.h5"),
    (
        "states of fields",
        lambda: Trajectories([u], (), data.state_layout, data.input_layout),
        State,
        "states = .*gener",
    ),
    ("arrays for inputs", lambda: data.with_inputs(np.ones(8)), State, "ndarray.*phi.math.wrap"),
    # --- training ---
    ("curriculum without update", lambda: ph.Curriculum({0: window}).loss((), None), State, r"curriculum.at\(update\)"),
    ("curriculum as objective", lambda: ph.Curriculum({0: window}).outputs(0, None), State, r"curriculum.at\(update\)"),
    (
        "random walk of every step",
        lambda: ph.Noise(0.1, random_walk=True, where="every_step"),
        State,
        "random_walk .*where='initial'",
    ),
    ("no steps that count", lambda: losses.Steps(), State, r"numbers = \(\).*Steps\(1, 4\)"),
    ("validation on another grid", lambda: train(validation=coarse_data), State, "validation.*'x', 8.*'x', 4.*split"),
    (
        "validation with other inputs",
        lambda: train(validation=forced_data),
        State,
        "validation.* 1 inputs.* 0.*with_in",
    ),
    ("frozen weights", lambda: train_all(blind), State, r"all 2 parameters are frozen.*requires_grad_\(True\)"),
    (
        "physics that makes NaN",
        lambda: train_all(hybrid(exploding)),
        ph.NonFiniteError,
        "physics is the cause, not the n",
    ),
    ("missing checkpoint", lambda: train().resume("missing.pt"), Data, "missing.pt.*checkpoint="),
    # --- evaluation ---
    ("no function as solver", lambda: evaluate(solvers={"a": 3}), State, r"solvers\['a'\] = 3"),
    (
        "class of a solver",
        lambda: evaluate(solvers={"a": ph.HybridSolver}),
        State,
        r"solvers\['a'\] = the class Hybrid",
    ),
    ("class of a metric", lambda: evaluate(metrics={"a": metrics.MAE}), State, r"metrics\['a'\] = the class MAE.*e.g."),
    ("name of a metric", lambda: evaluate(metrics={"a": "energy"}), State, r"metrics\['a'\] = 'energy'.*e.g."),
    ("horizon beyond the end", lambda: found.summary((9,)), State, r"horizons \[9\].*use 1 … 4"),
    ("spread of a solver", lambda: calibration.spread(u), State, "members along.*ensemble.rollout"),
    # --- inverse problems ---
    ("class of no optimizer", lambda: reconstruct(optimizer=dict), State, "optimizer.*expected a torch optimizer"),
    ("optimizer without rate", lambda: reconstruct(optimizer=lambda x: adam), State, "optimizer.*lr.*torch.optim.Adam"),
    ("marker that is a number", lambda: motion.estimate_motion(1.0, u, 1.0), State, "before is a float.*with_values"),
]

COUNTS = (0, -1, 4.0, "4", True, None)
NAN, INF = float("nan"), float("inf")

VALUES: list[tuple[str, Callable[[Any], Any], tuple]] = [
    # --- steps ---
    ("step", ph.capture, ("step", ph.HybridSolver, None)),
    ("solver", lambda v: ph.capture(damped, u, solver=v), (FastDiagonalization, "cg")),
    ("steps", lambda v: ph.rollout(damped, u, v), (-1, 10.0, "10", None, True)),
    ("steps", lambda v: ph.repeat(damped, u, v), (-1, 10.0, "10")),
    ("steps", lambda v: solver.rollout(u, steps=v), ("5",)),
    # --- hybrid solvers ---
    ("physics", hybrid, ("burgers", ph.PhysicsBlock, None, 3)),
    ("coupling", lambda v: hybrid(coupling=v), ("additive", ph.Additive, coupling.Parallel, None)),
    ("project", lambda v: hybrid(project=v), ("pressure", ph.PhysicsBlock)),
    ("sees", lambda v: hybrid(sees=v), (0.5, [None], (True,))),
    ("corrects", lambda v: hybrid(corrects=v), ([0.5], 0.5, [None])),
    ("members", ph.Ensemble, (3, solver)),
    ("strength", ph.Additive, ("0.5", None, NAN)),
    ("strength", coupling.Multiplicative, ("0.5", True)),
    ("combine", coupling.Parallel, ("additive", ph.Additive, coupling.After())),
    ("combine", lambda v: coupling.Parameter(combine=v), ("additive", coupling.Multiplicative)),
    ("link", lambda v: coupling.Parameter(0, v), ("exp", None)),
    ("input", coupling.Parameter, (-1, 0.0, "0", True)),
    ("input", coupling.Forcing, (-1, 0.0)),
    # --- data ---
    ("step", generate, ("burgers", ph.PhysicsBlock)),
    ("steps", lambda v: generate(steps=v), COUNTS),
    ("every", lambda v: generate(every=v), COUNTS),
    ("coarsen", lambda v: generate(coarsen=v), COUNTS),
    ("factor", lambda v: coarsen(u, v), COUNTS),
    ("path", lambda v: generate(exploding, path=v), (3, ["data.h5"])),
    ("path", Trajectories.load, (3, None)),
    ("path", data.save, (3, None)),
    ("first", data.split, ("0.8", True, None, NAN)),
    ("start", lambda v: data.between(v, 2), (0.0, "0", None)),
    ("stop", lambda v: data.between(0, v), (2.0, "2", True)),
    ("steps", data.windows, ("2", 2.0, window, True)),
    ("selection", lambda v: data[v], ("first", (0, 1), 0.5, None)),
    ("device", data.whole().to, ("cuda:99", "gpu")),
    # --- training ---
    ("steps", ph.Unrolled, COUNTS),
    ("steps", Pushforward, COUNTS),
    ("steps", lambda v: Diverted(v, damped), COUNTS),
    ("warm_up", lambda v: ph.Unrolled(4, warm_up=v), (4, -1, 1.0, "1", True)),
    ("losses", lambda v: ph.Unrolled(4, v), (losses.L1(), losses.Losses, {"a": losses.L1()})),
    ("losses", lambda v: Pushforward(4, v), (losses.L1(),)),
    ("gradient", lambda v: ph.Unrolled(4, gradient=v), (gradient.Full, "full", None)),
    ("gradient", lambda v: Diverted(2, damped, v), ("full",)),
    ("noise", lambda v: ph.Unrolled(4, noise=v), (0.1, ph.Noise)),
    ("reference", lambda v: Diverted(2, v), (None, "burgers", ph.PhysicsBlock)),
    ("stages", ph.Curriculum, ({}, [window], {5: window}, {0: 4}, {0: ph.Unrolled}, {False: window}, {0.0: window})),
    ("every", gradient.Truncated, COUNTS),
    ("segment", gradient.Checkpointed, COUNTS[:-1]),
    ("network", gradient.Paths, (-0.1, NAN, INF, "1", None, True)),
    ("step", lambda v: gradient.Paths(step=v), (-0.1, NAN, INF, "1", None, True)),
    ("chaining", lambda v: gradient.Paths(chaining=v), (gradient.Full, "full")),
    ("chaining", gradient.SignConsistent, (gradient.Full, "full")),
    ("terms", losses.Losses, ({}, losses.L2(), [losses.L2()])),
    (
        "terms['a']",
        lambda v: losses.Losses({"a": v}),
        (0.1, losses.L2, "l2", (losses.L2(), 0.1), ("0.1", losses.L2()), (0.1, losses.L2(), 3)),
    ),
    ("at", losses.L2, ("last", losses.LastStep)),
    ("numbers", losses.Steps, COUNTS),
    ("ratio", losses.Geometric, (0.0, NAN, "0.9", True)),
    ("power", losses.Spectral, (-1.0, "1")),
    ("quantity", losses.Vanishing, ("divergence", Field)),
    ("scale", lambda v: losses.Conserved(damped, v), (0.0, INF, "1")),
    ("step", losses.Residual, ("burgers", ph.PhysicsBlock)),
    ("term", losses.BeforeCorrection, ("l2", losses.L2, 0.1)),
    ("term", lambda v: losses.Part("smoke", v), ("l2", losses.L2)),
    ("sigma", ph.Noise, (-0.1, NAN, INF, "0.1", True)),
    ("where", lambda v: ph.Noise(0.1, where=v), ("all", None)),
    ("target", lambda v: ph.Noise(0.1, target=v), ("noisy",)),
    ("truncated", lambda v: ph.Noise(0.1, truncated=v), (0, "2")),
    ("project", lambda v: ph.Noise(0.1, project=v), ("solenoidal",)),
    ("schedule", lambda v: ph.Noise(0.1, schedule=v), (0.5, Ramp)),
    ("first", lambda v: Ramp(v, 0, 10), ("1", None, NAN)),
    ("updates", lambda v: Ramp(1, 0, v), (-1, 100.0, "100")),
    ("solver", train, (damped, net, ph.HybridSolver)),
    ("data", lambda v: train(data=v), ([u, u], u, Trajectories)),
    ("objective", lambda v: train(objective=v), (ph.Unrolled, 16, "unrolled")),
    ("optimizer", lambda v: train(optimizer=v), (torch.optim.Adam, "adam", None)),
    ("scheduler", lambda v: train(scheduler=v), ("cosine", torch.optim.lr_scheduler.StepLR)),
    ("batch_size", lambda v: train(batch_size=v), COUNTS),
    ("validate_every", lambda v: train(validate_every=v), COUNTS),
    ("checkpoint_every", lambda v: train(checkpoint_every=v), COUNTS),
    ("clip", lambda v: train(clip=v), (0.0, -1.0, NAN, "1", True)),
    ("skip", lambda v: train(skip=v), (1.0, 0.0, -3.0, NAN, "10", True)),
    ("seed", lambda v: train(seed=v), (0.5, "0", None, True)),
    ("validation", lambda v: train(validation=v), ([u], 0.2)),
    ("checkpoint", lambda v: train(checkpoint=v), (3, True)),
    ("updates", lambda v: train().fit(v), (-1, 2.5, 1e3, "10", True)),
    ("path", lambda v: train().resume(v), (3, None)),
    ("solver", lambda v: estimate_scales(v, data), (block, damped)),
    ("samples", lambda v: estimate_scales(solver, data, v), COUNTS),
    ("physics", lambda v: precompute_corrections(v, data), ("burgers", ["burgers"])),
    ("data", lambda v: precompute_corrections(damped, v), ([u],)),
    ("weight", lambda v: precompute_corrections(damped, data, v), (-1.0, NAN, INF, "1")),
    ("iterations", lambda v: precompute_corrections(damped, data, iterations=v), COUNTS),
    # --- evaluation ---
    ("solvers", lambda v: evaluate(solvers=v), ({}, [damped], damped, None)),
    ("data", lambda v: evaluate(data=v), ([u], u)),
    ("steps", lambda v: evaluate(steps=v), (0, -1, 5, "4", 4.0)),
    ("batch_size", lambda v: evaluate(batch_size=v), COUNTS),
    ("metrics", lambda v: evaluate(metrics=v), ([metrics.MAE()], metrics.MAE)),
    ("of", metrics.MAE, ("vorticity", Field)),
    ("of", metrics.SpectrumError, ("velocity",)),
    ("quantity", metrics.Drift, ("energy", None)),
    ("scale", lambda v: metrics.Drift(quantities.energy, v), ("1", 0.0)),
    ("state", quantities.energy, (3.0, {"velocity": u})),
    ("horizons", found.summary, (2,)),
    ("thresholds", lambda v: found.summary((), v), (0.8,)),
    ("threshold", found.time_to, ("0.8", None)),
    ("steps", found.until, COUNTS),
    ("groups", found.grouped, ({}, [0, 1])),
    ("rows", Table, ({}, [{"mae": 1.0}], {"a": 1.0})),
    ("rows", Table.stack, ({},)),
    ("tables", Table.stack, ([table],)),
    ("summaries", Table.over_seeds, (table.rows,)),
    ("values", Spread, ((), 1.0, ("a", "b"))),
    ("level", lambda v: calibration.coverage(members, u, v), (90, "0.9", 0.0, NAN)),
    ("factor", lambda v: calibration.rescale(members, v), (-1.0, "2", NAN)),
    # --- inverse problems ---
    ("physics", lambda v: ph.reconstruct(v, u, u), ("burgers", ph.PhysicsBlock)),
    ("rule", lambda v: reconstruct(rule=v), ("gradient", ph.optim.Gradient)),
    ("loss", lambda v: reconstruct(loss=v), ("l2", losses.L2)),
    ("optimizer", lambda v: reconstruct(optimizer=v), ("adam", adam)),
    ("lr", lambda v: reconstruct(lr=v), ("1", NAN, -1.0)),
    ("iterations", lambda v: reconstruct(iterations=v), (-1, 10.0, "10", True)),
    ("times", lambda v: reconstruct(times=v), ((), (2, 1), (0,), 2, (1.5,), "8", (True,))),
    ("tolerance", lambda v: fixed_point(torch.cos, torch.ones(1), v), (0.0, "1e-6", INF)),
    ("max_steps", lambda v: fixed_point(torch.cos, torch.ones(1), 1e-6, v), COUNTS),
    ("start", lambda v: fixed_point(torch.cos, v, 1e-6), (1.0, u)),
    ("back", lambda v: flow.local_inverse(damped, v), ("back", Field)),
    ("iterations", lambda v: flow.local_inverse(damped, damped, v), COUNTS),
    ("dt", flow.advect_back, ("0.1", 0.0, None)),
    ("advection", lambda v: flow.burgers_back(0.1, v), ("upwind",)),
    ("flow", lambda v: flow.carried(0.1, v), ("flow",)),
    ("waves", lambda v: motion.solenoidal_waves(StaggeredGrid(0.0, 0, x=4, y=4), v), COUNTS),
]


@pytest.mark.parametrize(("call", "error", "named"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_wrong_inputs(call: Callable[[], Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        call()


@pytest.mark.parametrize(("name", "call", "values"), VALUES, ids=[f"{n} {c[0]}" for n, c in enumerate(VALUES)])
def test_wrong_values(name: str, call: Callable[[Any], Any], values: tuple) -> None:
    for value in values:
        shown = f"the class {value.__name__}" if isinstance(value, type) else " ".join(repr(value).split())[:40]
        with pytest.raises(State, match=re.escape(f"{name} = {shown}") + ".*: expected .{9,}"):
            call(value)


def test_a_single_name_or_number_is_a_choice_of_one() -> None:
    assert hybrid(corrects="u").corrects == ("u",) and hybrid(corrects=0, sees=0).sees == (0,)
    assert torch.equal(calibration.expected_skill(members, "b").native("b"), torch.zeros(2).double())


# --- conditions on tensors, for which there is no graph ---


def by_if(u: Field) -> Field:
    if math.mean(u.values, u.shape) > 0:  # here: if
        return 2 * u
    return u


def by_any(u: Field) -> Field:
    if (u.values > 0).any:  # here: any
        return 2 * u
    return u


def by_while(u: Field) -> Field:
    while math.max(u.values, u.shape) > 1e-3:  # here: while
        u = 0.5 * u
    return u


def by_and(u: Field) -> Field:
    return u if u.is_centered and float(math.mean(u.values, u.shape)) < 1 else 2 * u  # here: and


def by_keyword(factor: float, u: Field) -> Field:
    return factor * u if not (u.values > 0).all else u  # here: partial


by_lambda = lambda u: u if (u.values > 0).all else 2 * u  # noqa: E731  # here: lambda


def by_nested(u: Field) -> Field:
    def inner(v: Field) -> Field:
        return max([v, 2 * v], key=lambda w: math.mean(w.values, w.shape))  # here: nested

    return inner(u)


class Method:
    def step(self, u: Field) -> Field:
        assert math.is_finite(u.values).all  # here: method
        return u


CONDITIONS = {
    "if": by_if,
    "any": by_any,
    "while": by_while,
    "and": by_and,
    "partial": functools.partial(by_keyword, 2.0),
    "lambda": by_lambda,
    "nested": by_nested,
    "method": Method().step,
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_on_tensors_name_the_line(name: str) -> None:
    source = Path(__file__).read_text().splitlines()
    number = 1 + next(n for n, text in enumerate(source) if text.endswith(f"# here: {name}"))
    with pytest.raises(Capture, match=rf"(Python condition|float\(\)).* at {re.escape(__file__)}:{number} .*Way out"):
        ph.capture(CONDITIONS[name], line(0))
