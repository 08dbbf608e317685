"""Blocks, plain steps and hybrid solvers are called like the PhiFlow function behind them."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases.small import SmallNet, equal, line, same
from phi.torch.flow import CenteredGrid, Field, Noise, StaggeredGrid, advect, diffuse, math

import phi_hybrid as ph
from phi_hybrid.steps import as_step


def burgers(u: Field, nu: Any = 0.02, *, dt: float = 0.1, force: Field | None = None) -> Field:
    u = diffuse.explicit(advect.semi_lagrangian(u, u, dt), nu, dt)
    return u if force is None else u + dt * force


def plume(v: Field, s: Field, pressure: Any = None, dt: float = 1.5) -> tuple:
    """The book's call: step(velocity, smoke, pressure=None, dt=1.5)."""
    s = advect.semi_lagrangian(s, v, dt)
    v = advect.semi_lagrangian(v, v, dt) + dt * (s * (0, 0.1)).at(v)
    return v, s, s if pressure is None else pressure + s


class Flow:
    def __init__(self, nu: float) -> None:
        self.nu = nu

    def step(self, u: Field, dt: float = 0.1) -> Field:
        return burgers(u, self.nu, dt=dt)


CALLS: dict[str, tuple[Callable, Callable[[Callable, Field, Field], Any]]] = {
    "defaults": (burgers, lambda f, u, g: f(u)),
    "positional": (burgers, lambda f, u, g: f(u, 0.05)),
    "keyword": (burgers, lambda f, u, g: f(u, nu=0.05)),
    "state by keyword": (burgers, lambda f, u, g: f(u=u, nu=0.05)),
    "keyword only": (burgers, lambda f, u, g: f(u, dt=0.2)),
    "several": (burgers, lambda f, u, g: f(u, dt=0.2, nu=0.01)),
    "None": (burgers, lambda f, u, g: f(u, force=None)),
    "field by keyword": (burgers, lambda f, u, g: f(u, force=g)),
    "tensor by keyword": (burgers, lambda f, u, g: f(u, nu=math.wrap(0.03), dt=0.2)),
    "partial": (functools.partial(burgers, dt=0.2), lambda f, u, g: f(u, force=g)),
    "partial, overridden": (functools.partial(burgers, dt=0.2), lambda f, u, g: f(u, dt=0.05)),
    "bound method": (Flow(0.03).step, lambda f, u, g: f(u, dt=0.2)),
    "any keywords": (lambda u, **more: burgers(u, **more), lambda f, u, g: f(u, dt=0.2, force=g)),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_those_of_the_step(name: str) -> None:
    step, call = CALLS[name]
    for wrapped in (ph.capture(step, check=False), as_step(step)):
        for seed in (0, 2):
            u, g = line(seed, b=2), line(seed + 1, b=2)
            assert same(call(wrapped, u, g), call(step, u, g))
        assert len(wrapped.known) == 1


def test_the_books_call() -> None:
    box = dict(x=8, y=8)
    v, s = StaggeredGrid(Noise(), 0, **box), CenteredGrid(Noise(), 0, **box)
    block = ph.capture(plume, check=False)
    for arguments in ({}, {"pressure": None, "dt": 1.5}, {"pressure": s, "dt": 0.5}, {"dt": 0.5}):
        assert same(block(v, s, **arguments), plume(v, s, **arguments))
    assert same(block(v, s, None, 1.5), plume(v, s))


@pytest.mark.smoke
def test_ways_to_write_a_call_share_a_graph() -> None:
    block = ph.capture(burgers, check=False)
    u = line(0, b=2)
    block(u, 0.05), block(u, nu=0.05), block(u=u, nu=0.05), block(nu=0.05, u=u)
    assert len(block.known) == 1
    block(u, 0.06)
    assert len(block.known) == 2


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda f, u: f(), "u"),
        (lambda f, u: f(u, viscosity=1), "viscosity"),
        (lambda f, u: f(u, 0.1, 0.2), "takes"),
        (lambda f, u: f(u, 0.1, nu=0.1), "nu"),
    ],
)
def test_wrong_calls_are_named_before_any_work(call: Callable, names: str) -> None:
    calls = []

    def counted(u: Field, nu: Any = 0.02, *, dt: float = 0.1) -> Field:
        calls.append(u)
        return u

    for step in (ph.capture(counted), as_step(counted), ph.HybridSolver(counted, SmallNet(1, 1, 1))):
        with pytest.raises(ph.StateError, match=names):
            call(step, line(0, b=2))
    assert not calls


def test_rollout_and_repeat_take_keywords() -> None:
    u, forces = line(0, b=2), line(1, b=2, time=3)
    expected = [u]
    for n in range(3):
        expected.append(burgers(expected[-1], 0.05, dt=0.2, force=forces.time[n]))
    for step in (ph.capture(burgers), burgers):
        found = ph.rollout(step, u, 3, 0.05, dt=0.2, force=forces)
        assert all(same(found.time[n], e) for n, e in enumerate(expected))
        assert same(ph.repeat(step, u, 3, nu=0.05, dt=0.2, force=forces), expected[-1])
    with pytest.raises(ph.StateError, match="2 entries.*3"):
        ph.rollout(burgers, u, 3, force=forces.time[:2])


def test_data_and_training_take_keywords(tmp_path: Any) -> None:
    u, forces = line(0, b=2), line(1, b=2, time=4)
    by_name = {"nu": math.wrap(0.05), "dt": 0.2, "force": forces}
    data = ph.Trajectories.generate(burgers, u, 4, by_name, path=tmp_path / "d.h5", progress=False)
    found = ph.rollout(burgers, u, 4, **by_name)
    assert equal([data.states[0]], ph.bridge.flatten(found)[0])
    loaded = ph.Trajectories.load(tmp_path / "d.h5")
    assert loaded.input_layout == data.input_layout
    solver = ph.HybridSolver(ph.capture(burgers), SmallNet(3, 1, 1))
    optimizer = torch.optim.SGD(solver.parameters(), 1e-3)
    ph.Trainer(solver, loaded, ph.Unrolled(2), optimizer=optimizer, progress=False).fit(1)
    assert float(ph.evaluate({"plain": burgers, "hybrid": solver}, loaded).mae["plain"].max()) < 1e-6
    rolled = solver.rollout(u, 4, **by_name)
    assert same(rolled.time[1], solver(u, nu=math.wrap(0.05), dt=0.2, force=forces.time[0]))


def test_bound_steps_take_keywords_and_other_batch_sizes() -> None:
    block, u, g = ph.capture(burgers, check=False), line(0, b=2), line(1, b=2)
    bound = block.bind(u, dt=0.2, force=g)
    assert same(bound.unflatten(bound.native(*bound.flatten(u, dt=0.2, force=g))), burgers(u, dt=0.2, force=g))
    with pytest.raises(ph.StateError, match="0.1 and 0.2"):
        bound.flatten(u, dt=0.1, force=g)
    more, few = line(2, b=5), line(3)
    (state,), (_, force) = bound.flatten(more), bound.flatten(u, dt=0.2, force=g)
    found = bound.unflatten(bound.native(state, force[:1].expand(5, *force.shape[1:])))
    assert same(found, burgers(more, dt=0.2, force=g.b[0]))
    assert bound.flatten(few)[0].shape[0] == 2  # repeated along the batch that it is bound to


def test_bound_steps_are_modules_for_torch() -> None:
    block, u = ph.capture(burgers, check=False), line(0, b=2)
    solver = ph.HybridSolver(block, SmallNet(1, 1, 1))
    bound = solver.bind(u)
    tensors = bound.flatten(u)
    assert {id(p) for p in bound.parameters()} == {id(p) for p in solver.parameters()}
    weights = {name: p.detach() * 2 for name, p in bound.named_parameters()}
    doubled = torch.func.functional_call(bound, weights, tensors)
    assert not torch.equal(doubled[0], bound(*tensors)[0])
    jacobian = torch.func.jacrev(bound.native)(*tensors)[0]
    assert jacobian.shape == (*tensors[0].shape, *tensors[0].shape)
    copy = pickle.loads(pickle.dumps(block.bind(u)))
    assert equal(copy(*tensors), block.bind(u)(*tensors))
