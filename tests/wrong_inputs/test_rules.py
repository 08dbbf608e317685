"""Settings of update rules, and searches that they cannot serve."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import forced_step, line
from cases.wrong import Case, damped, each

import phi_hybrid as ph
from phi_hybrid import losses, optim
from phi_hybrid.optim import Gradient

State = ph.StateError
NAN = float("nan")
block, u, v = ph.capture(damped), line(0, b=2), line(1, b=2)

VALUES: list[tuple[str, Callable[[Any], Any], tuple]] = [
    ("kappa", optim.HalfInverse, ("0.5", NAN, True, None, 1.5)),
    ("rcond", lambda v: optim.HalfInverse(0.5, v), ("1e-6", None)),
    ("rcond", lambda v: optim.GaussNewton(0, v)(torch.sin, (torch.ones(1, 1),)), (-1.0, NAN)),
    ("chunk", lambda v: optim.HalfInverse(0.5, 1e-6, v), (0, "2", 2.5)),
    ("damping", optim.GaussNewton, (-1.0, "1", NAN)),
    ("damping", optim.GaussNewtonCG, ("1", -1.0)),
    ("tolerance", lambda v: optim.GaussNewtonCG(tolerance=v), ("1e-3", 0.0, NAN, 1.0)),
    ("iterations", lambda v: optim.GaussNewtonCG(iterations=v), (2.5, "5", 0)),
    ("rule", lambda v: optim.Damped(v, 0.5), (0.5, Gradient, None)),
    ("factor", lambda v: optim.Damped(Gradient(), v), ("0.5", 0.0, Gradient())),
    ("rule", lambda v: optim.TrustRegion(v, 1.0), (1.0, Gradient)),
    ("radius", lambda v: optim.TrustRegion(Gradient(), v), ("1", 0.0)),
    ("weight", lambda v: optim.Blend((Gradient(), v)), ("1", 0.0, NAN)),
    ("rule", lambda v: optim.Blend((v, 1.0)), (Gradient,)),
    ("curvature", optim.Newton, ("clipped", optim.Clipped)),
    ("curvature", optim.SeparableNewton, (1e-6,)),
    ("rcond", optim.Clipped, ("1",)),
    ("rcond", optim.Dropped, ("1", -1.0)),
    ("rcond", optim.Cutoff, ("1", -1.0)),
    ("damping", lambda v: optim.Smooth(1e-3, v), ("1",)),
    ("fn", optim.Inverse, (3, "solve", torch.nn.Linear)),
    ("fn", optim.LinearInverse, ("solve",)),
    ("iterations", optim.QuasiNewton, ("3", 0)),
    ("method", lambda v: optim.NewtonKrylov(5, v), (None,)),
    ("method", optim.InverseByOptimization, ("lgmres", optim.QuasiNewton)),
    ("tolerance", lambda v: optim.InverseByOptimization(tolerance=v), ("1", 0.0, NAN)),
    ("precision", optim.Dense, (64, "float64")),
    ("chunk", optim.Gram, ("3", 0)),
    ("chunk", optim.ParameterGram, (2.0,)),
    ("tolerance", optim.GolubKahan, ("3", 0.0)),
    ("rest", lambda v: optim.Structured(rest=v), (optim.Gram, "gram")),
    ("engine", lambda v: optim.HIG(torch.nn.Linear(1, 1), engine=v), ("dense", optim.Dense)),
    ("factor", lambda v: optim.LevenbergMarquardt(torch.nn.Linear(1, 1), factor=v), (1.0, "2")),
]


@pytest.mark.parametrize(("name", "call", "values"), VALUES, ids=[f"{n} {c[0]}" for n, c in enumerate(VALUES)])
def test_settings(name: str, call: Callable[[Any], Any], values: tuple) -> None:
    for value in values:
        shown = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        with pytest.raises(State, match=re.escape(f"{name} = {shown}") + ".*expected .{9,}"):
            call(value)


def test_numbers_of_numpy_are_numbers() -> None:
    rules = optim.HalfInverse(np.float64(0.5), np.float32(1e-6)), optim.HalfInverse(0.5, float(np.float32(1e-6)))
    function, x = (lambda t: (t**3).flatten(1)), (torch.tensor([[1.0, 2.0], [3.0, 0.5]]),)
    updates = [rule(function, x)[1]((torch.ones(2, 2),))[0] for rule in rules]
    assert torch.equal(*updates)
    optim.TrustRegion(Gradient(), np.float32(1)), optim.HIG(torch.nn.Linear(1, 1), np.float64(1), np.float64(0.5))


def search(**settings: Any) -> Any:
    return ph.reconstruct(**{"physics": block, "observation": u, "x0": v, "iterations": 1, **settings})


CASES: list[Case] = [
    ("observed on another grid", lambda: search(observation=line(0, cells=4, b=2)), State, "'x', 4.*'x', 8"),
    ("observed between walls", lambda: search(observation=line(0, boundary=0, b=2)), State, "boundary 0 and periodic"),
    ("observed as an array", lambda: search(observation=np.ones(8)), State, "ndarray.*phi.math.wrap"),
    ("nothing observed", lambda: search(observation=None), State, "observation.*None"),
    ("other samples", lambda: search(observation=line(0, b=3)), State, "'b' has sizes 2 and 3"),
    ("start of NaN", lambda: search(x0=NAN * v), ph.NonFiniteError, "x0 holds 16 NaN"),
    ("physics and observation swapped", lambda: ph.reconstruct(u, block, v), State, "physics = Field"),
    ("missing input", lambda: search(physics=forced_step), State, "missing a required argument: 'force'"),
    ("two times, one observation", lambda: search(times=(1, 2)), State, r"\(1, 2\).*'time' of size 2"),
    ("more observations than times", lambda: search(observation=line(0, b=2, time=3)), State, "3 entries.*1 times"),
    ("loss of a training", lambda: search(loss=losses.L2()), State, r"loss is called with \(errors\)"),
    ("loss of torch", lambda: search(loss=torch.nn.functional.mse_loss), State, r"loss is called with \(errors\)"),
    ("loss without samples", lambda: search(loss=lambda e: (e**2).sum()), State, r"returns \[\(\)\].*samples"),
    ("network as physics", lambda: search(physics=torch.nn.Conv1d(1, 1, 1)), State, "physics = Conv1d.*HybridSolver"),
    ("too long steps", lambda: search(lr=1e30, iterations=9), ph.NonFiniteError, "iteration 2 of 9.*smaller lr"),
    ("chain of a function", lambda: optim.Chain(damped), State, r"Chain\(Link\(function, rule\)"),
    ("class in a link", lambda: optim.Link(torch.sin, Gradient), State, "rule = .*Gradient"),
    ("name in a link", lambda: optim.Link("f", Gradient()), State, "function = 'f'"),
]


@each(CASES)
def test_searches(call: Callable[[], Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        call()
