"""Functions that are no steps, captured, rolled out, in ensembles or evaluated."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import forced_step, line, same
from cases.wrong import Case, damped, decaying, each, hybrid
from phi.torch.flow import PERIODIC, CenteredGrid, Field, math

import phi_hybrid as ph
from phi_hybrid import metrics
from phi_hybrid.evaluation import calibration

State, Capture = ph.StateError, ph.CaptureError
u, data, net = line(0, b=2), decaying(), torch.nn.Conv1d(1, 1, 1)
weight = torch.nn.Parameter(torch.ones(2))


def captured(step: Callable) -> Any:
    return ph.capture(step)(u)


def writing(v: Field) -> Field:
    v.values.native("b,x,vector").mul_(2)
    return v


def yielding(v: Field) -> Iterator[Field]:
    yield 0.9 * v


def remembering(v: Field, calls: list = []) -> Field:  # noqa: B006
    calls.append(1)
    return len(calls) * v


def without_gradient(v: Field) -> Field:
    with torch.no_grad():
        return 0.9 * v


def to_torch(v: Field) -> Any:
    return v.values.native("b,x,vector")


def rolled(step: Callable, steps: int = 2, *inputs: Any) -> Any:
    return ph.rollout(step, line(0), steps, *inputs)


def evaluated(**settings: Any) -> Any:
    return ph.evaluate(**{"solvers": {"a": damped}, "data": data, **settings})


CASES: list[Case] = [
    # --- captured ---
    ("state written into", lambda: captured(writing), Capture, "writes into one of its arguments.*new value"),
    ("generator", lambda: captured(yielding), State, "not generator"),
    ("numbers of torch", lambda: captured(to_torch), State, "not Tensor.*phi.math.wrap"),
    (
        "numbers of NumPy's generator",
        lambda: captured(lambda v: v * np.random.rand()),
        Capture,
        "NumPy or Python.*random",
    ),
    (
        "numbers of Python's generator",
        lambda: captured(lambda v: v * random.random()),
        Capture,
        "NumPy or Python.*random",
    ),
    (
        "the time of day",
        lambda: captured(lambda v: v * (time.perf_counter() % 1)),
        Capture,
        "changes from call to call",
    ),
    ("a counter", lambda: captured(remembering), Capture, "changes from call to call.*counter"),
    (
        "a float of a tensor",
        lambda: captured(lambda v: v * float(math.max(v.values, "b,x,vector"))),
        Capture,
        r"float\(\)",
    ),
    ("hidden gradient", lambda: captured(without_gradient), Capture, "gradient 0.*missing|hides operations"),
    (
        "trained constant",
        lambda: captured(lambda v: v * math.wrap(weight, "b:b")),
        Capture,
        "trainable tensor.*HybridSol",
    ),
    ("network", lambda: ph.capture(net), State, r"step = Conv1d.*HybridSolver\(physics, network\)"),
    ("object", lambda: ph.capture(object()), State, "step = <object"),
    ("array as example", lambda: ph.capture(damped, np.ones(8)), State, "ndarray.*phi.math.wrap"),
    ("tensor of torch", lambda: ph.capture(damped)(torch.ones(3)), State, "Tensor.*phi.math.wrap"),
    ("misspelt input", lambda: ph.capture(forced_step)(u, forc=u), State, "forc=….*'force'"),
    ("an input twice", lambda: ph.capture(forced_step)(u, u, force=u), State, "multiple values.*'force'"),
    (
        "two precisions",
        lambda: ph.capture(forced_step)(line(0), line(1, dtype=torch.float64)),
        State,
        "float32.*float64",
    ),
    ("dims of another name", lambda: ph.capture(forced_step)(u, CenteredGrid(0, PERIODIC, y=8)), State, r"\(y=8\)"),
    # --- rolled out ---
    ("network rolled out", lambda: rolled(net), State, r"step = Conv1d.*HybridSolver\(physics, network\)"),
    ("layers rolled out", lambda: rolled(torch.nn.Sequential(net)), State, "step = Sequential.*HybridSolver"),
    ("step that returns two", lambda: rolled(lambda v: (v, v)), State, "takes and what it returns differ.*tuple of 2"),
    ("step that returns a number", lambda: rolled(lambda v: 3.0), State, "differ.*3.0"),
    ("step that returns values", lambda: rolled(lambda v: v.values), State, "differ.*a tensor"),
    ("step to other walls", lambda: rolled(lambda v: v.with_boundary(0)), State, "boundary periodic and 0"),
    ("too few inputs in time", lambda: rolled(forced_step, 5, line(1, time=3)), State, "3 entries.*5 steps need 5"),
    ("a state with times", lambda: ph.rollout(damped, line(0, time=2), 3), State, "dim 'time'.*state.time"),
    ("growth without end", lambda: rolled(lambda v: 1e20 * v, 5), ph.NonFiniteError, "step 2 of 5.*error.trajectory"),
    # --- ensembles ---
    ("members by name", lambda: ph.Ensemble({"a": damped}), State, r"members\[0\] = 'a'"),
    ("no member", lambda: ph.Ensemble([None]), State, r"members\[0\] = None"),
    ("networks as members", lambda: ph.Ensemble([net, net]), State, r"members\[0\] = Conv1d.*HybridSolver"),
    (
        "ensemble of ensembles",
        lambda: ph.Ensemble([ph.Ensemble([damped])]),
        State,
        r"members\[0\] = Ensemble.*\.members",
    ),
    ("other number of members", lambda: ph.Ensemble([damped] * 2)(line(0, member=3)), State, "3 entries.*2 members"),
    ("spread of one", lambda: calibration.spread(line(0, member=1)), State, r"'member' of at least 2, got sizes \[1\]"),
    ("parts of steps", lambda: ph.Ensemble([damped]).rollout(u, 2.0), State, "steps = 2.0"),
    # --- evaluated ---
    ("network evaluated", lambda: evaluated(solvers={"a": net}), State, r"solvers\['a'\] = Conv1d.*HybridSolver"),
    ("numbers as names", lambda: evaluated(solvers={1: damped}), State, "solvers = {1.*from names to steps"),
    ("solver without its input", lambda: evaluated(solvers={"a": forced_step}), State, "missing.*'force'"),
    (
        "solver to another grid",
        lambda: evaluated(solvers={"a": lambda v: v @ line(0, cells=4)}),
        State,
        "'x', 8.*'x', 4",
    ),
    (
        "metric of a solver alone",
        lambda: evaluated(metrics={"m": lambda own: own}),
        State,
        r"with \(solver, reference\)",
    ),
    ("metric that is a number", lambda: evaluated(metrics={"m": lambda a, b: 1.0}), State, "'m'.*one number per traj"),
    ("metric of a known name", lambda: evaluated(metrics={"mae": metrics.MAE()}), State, r"\['mae'\].*other names"),
    (
        "part that is not there",
        lambda: evaluated(metrics={"m": metrics.Part("s", metrics.MAE())}),
        State,
        "no part 's'",
    ),
    ("metric not measured", lambda: evaluated()["nope"], State, "'nope'.*'mae'"),
    ("horizon beyond", lambda: evaluated().table(horizons=(99,)), State, r"\[99\].*1 … 6"),
    # --- hybrid solvers ---
    ("correction of a missing part", lambda: hybrid(corrects=["smoke"])(u), State, "'smoke'.*'state'"),
    ("scales of NaN", lambda: hybrid().set_scales(torch.tensor([float("nan")]), torch.ones(1)), State, "input_scale"),
]


@each(CASES)
def test_steps(call: Callable[[], Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        call()


def test_what_looks_odd_and_is_right() -> None:
    """Captured blocks captured again, partial functions, global lists that grow, constant results."""
    seen: list[Field] = []

    def noting(v: Field) -> Field:
        seen.append(v)
        return 0.9 * v

    for step in (noting, ph.capture(damped), functools.partial(lambda c, v: c * v, 0.9)):
        assert same(ph.capture(step)(u), damped(u))
    assert ph.capture(lambda v: (v, 3, "a", None))(u)[1:] == (3, "a", None)


def test_a_module_of_ones_own_may_be_a_step() -> None:
    class Decay(torch.nn.Module):
        def forward(self, v: Field) -> Field:
            return 0.9 * v

    for step in (Decay(), torch.nn.Sequential(Decay()), torch.nn.Sequential(hybrid(), ph.capture(damped))):
        assert same(ph.repeat(step, u, 1), step(u))
    assert same(ph.repeat(torch.nn.Identity(), u, 2), u)
