"""What a step closes over may change: the block follows, and captures anew only then."""

from __future__ import annotations

import copy
import functools
import pickle
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import equal, same
from phi.torch.flow import (
    PERIODIC,
    CenteredGrid,
    Field,
    Noise,
    Obstacle,
    Sphere,
    diffuse,
    jit_compile,
    math,
    resample,
    spatial,
    wrap,
)

import phi_hybrid as ph
from phi_hybrid.errors import CaptureError
from phi_hybrid.tracing.fingerprint import Fingerprint

U = CenteredGrid(Noise(), PERIODIC, x=8, y=6)
DT, TWICE = 0.1, {"factor": 2.0}
settings = types.ModuleType("settings_of_a_user")
settings.NU = 0.05
sys.modules[settings.__name__] = settings


def with_global(u: Field) -> Field:
    return u + DT * diffuse.explicit(u, settings.NU, 0.1)


def helper(u: Field) -> Field:
    return u * TWICE["factor"]


def with_helper(u: Field) -> Field:
    return functools.reduce(lambda v, _: helper(v), range(2), u)


@dataclass
class Physics:
    viscosity: float = 0.05
    rates: tuple = (1.0, 2.0)

    def step(self, u: Field) -> Field:
        return self.spread(u) * self.rates[1]

    def spread(self, u: Field) -> Field:
        return diffuse.explicit(u, self.viscosity, 0.1)

    __call__ = step


class Cell:
    """A namespace whose entries are changed by the cases below."""


def closures() -> dict[str, tuple[Callable, Callable[[], None]]]:
    """Name → a step, and how what it closes over changes."""
    number, values, array = 0.1, [1.0, 2.0], np.ones(8)
    native, physics, cell = torch.ones(8), Physics(), Cell()
    cell.inner = {"scale": 3.0}
    tensor, network = wrap(torch.ones(8), spatial("x")), torch.nn.Linear(6, 6).requires_grad_(False).eval()
    ball = Obstacle(Sphere(x=3.0, y=3.0, radius=1.5))

    def set_number() -> None:
        nonlocal number
        number = 0.3

    def move() -> None:
        nonlocal ball
        ball = ball.at(ball.geometry.center + 1.0)

    def dense(u: Field) -> Field:
        return u.with_values(wrap(network(u.values.native("x,y")), spatial("x,y")))

    def mask(u: Field) -> Field:
        return u * resample(~ball.geometry, to=u)

    def default(u: Field, rates: list = values) -> Field:
        return u * rates[0]

    return {
        "global": (with_global, lambda: globals().update(DT=globals()["DT"] + 0.1)),
        "module of the user": (with_global, lambda: setattr(settings, "NU", settings.NU + 0.01)),
        "global of a helper": (with_helper, lambda: TWICE.update(factor=TWICE["factor"] + 1.0)),
        "helper itself": (with_helper, lambda: globals().update(helper=lambda u: u * 7.0)),
        "cell": (lambda u: u * number, set_number),
        "entry of a list": (lambda u: u * values[0], lambda: values.__setitem__(0, 5.0)),
        "length of a list": (lambda u: u * sum(values), lambda: values.append(1.0)),
        "entry of an entry": (lambda u: u * cell.inner["scale"], lambda: cell.inner.update(scale=4.0)),
        "default": (default, lambda: values.__setitem__(0, 6.0)),
        "partial": (functools.partial(lambda u, k: u * k[0], k=values), lambda: values.__setitem__(0, 7.0)),
        "bound method": (physics.step, lambda: setattr(physics, "viscosity", 0.2)),
        "callable object": (physics, lambda: setattr(physics, "rates", (1.0, 5.0))),
        "decorated": (jit_compile(lambda u: u * values[0]), lambda: values.__setitem__(0, 8.0)),
        "torch tensor": (lambda u: u * wrap(native, spatial("x")), lambda: native.mul_(2)),
        "PhiML tensor": (lambda u: u * tensor, lambda: tensor.native("x").mul_(2)),
        "small array": (lambda u: u * wrap(array, spatial("x")), lambda: array.__setitem__(0, 9.0)),
        "network": (dense, lambda: network.bias.add_(1.0)),
        "weights by others": (dense, lambda: setattr(network, "bias", torch.nn.Parameter(torch.ones(6), False))),
        "obstacle": (mask, move),
    }


@pytest.mark.parametrize("kind", closures())
def test_changes_are_followed(kind: str) -> None:
    step, change = closures()[kind]
    plain = getattr(step, "f", step)  # PhiML's own jit keeps old constants
    original = globals()["helper"]
    block = ph.capture(step)
    try:
        for _ in range(2):
            assert same(block(U), plain(U))
        assert block._captures == 1
        before = block(U)
        change()
        assert same(block(U), plain(U)) and not same(block(U), before)
        assert equal(block.native(*block.flatten(U)), ph.bridge.flatten(plain(U))[0])
        assert block._captures == 2
    finally:
        globals()["helper"] = original


def test_bound_steps_and_hybrid_solvers_follow_too() -> None:
    physics = Physics()
    block = ph.capture(physics.step)
    bound = block.bind(U)
    solver = ph.HybridSolver(block, torch.nn.Conv2d(1, 1, 1).requires_grad_(False))
    before = solver(U), ph.repeat(block, U, 2)
    physics.viscosity = 0.2
    assert same(bound.unflatten(bound.native(*bound.flatten(U))), physics.step(U))
    assert same(ph.repeat(block, U, 2), physics.step(physics.step(U)))
    fresh = ph.HybridSolver(ph.capture(physics.step), solver.network)
    assert same(solver(U), fresh(U)) and not same(solver(U), before[0])


def test_values_that_return_find_their_graph_again() -> None:
    rate = {"value": 1.0}
    block = ph.capture(lambda u: u * rate["value"])
    for value in (1.0, 2.0, 1.0, 2.0, float("1.0")):
        rate["value"] = value
        assert same(block(U), U * value)
    assert block._captures == 2


def test_zero_has_a_sign_and_nan_equals_itself() -> None:
    rate = {"value": 0.0}
    block = ph.capture(lambda u: u * 0 + rate["value"], check=False)
    for count, value in enumerate((0.0, -0.0, float("nan")), 1):
        for _ in range(2):
            rate["value"] = float(repr(value))
            block(U)
        assert block._captures == count


def test_a_warning_names_what_keeps_changing() -> None:
    rate = {"value": 0.0}
    block = ph.capture(lambda u: u * rate["value"], check=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in range(10):
            rate["value"] = float(n)
            block(U)
    (warning,) = [w for w in caught if "keeps changing" in str(w.message)]
    assert "value" in str(warning.message)


def test_a_counter_is_named_and_notes_are_allowed() -> None:
    count, notes = 0, []

    def counting(u: Field) -> Field:
        nonlocal count
        count += 1
        return u * count

    def noting(u: Field) -> Field:
        notes.append(str(u))
        return u * 2

    with pytest.raises(CaptureError, match="itself changes count"):
        ph.capture(counting, U)
    block = ph.capture(noting)
    for _ in range(3):
        assert same(block(U), U * 2)
    assert block._captures == 1


def test_attributes_of_other_things_and_equal_numbers_do_not_count() -> None:
    """A global that only shares its name with an attribute in the step changes nothing."""
    globals()["values"] = 1
    block = ph.capture(lambda u: u.with_values(u.values * DT))
    block(U)
    globals()["values"] = 2
    globals()["DT"] = float(repr(DT))
    block(U)
    assert block._captures == 1


def test_libraries_are_not_entered() -> None:
    prints = Fingerprint(with_global)
    assert len(prints._entries) < 10 and prints.holds()
    assert not any("phiml" in str(getattr(c, "get", dict)("__name__", "")) for c, _, _ in prints._entries)


def test_copies_look_and_pickles_keep_their_constants() -> None:
    rate = {"value": 2.0}

    def step(u: Field) -> Field:
        return u * rate["value"]

    block = ph.capture(step, U)
    clone, packed = copy.deepcopy(block), pickle.loads(pickle.dumps(block))
    rate["value"] = 3.0
    assert same(clone(U), U * 3.0) and same(packed(U), U * 2.0)


def test_properties_are_not_called() -> None:
    class Loud:
        scale = 2.0

        @property
        def danger(self) -> Any:
            raise AssertionError("a property was called")

    loud = Loud()
    block = ph.capture(lambda u: u * loud.scale if math else u * loud.danger)
    assert same(block(U), U * 2.0)
