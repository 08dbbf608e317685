"""Couplings against formulas written by hand, and the scales that go with them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases.small import (
    DT,
    SmallNet,
    component_values,
    faces,
    forced_step,
    line,
    relative_difference,
    same,
    step,
    zero_net,
)
from phi.torch.flow import PERIODIC, Box, CenteredGrid, Field, batch, channel, field, fluid, math, spatial

import phi_hybrid as ph
from phi_hybrid.bridge import from_channels, to_channels
from phi_hybrid.training import estimate_scales

Tensors = tuple[torch.Tensor, ...]


def scaled_down(f: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return f * torch.exp(c)


COUPLINGS: dict[str, Any] = {
    "additive": ph.Additive(),
    "multiplicative": ph.coupling.Multiplicative(0.5),
    "function": lambda before, after, c: tuple(0.5 * b + 0.5 * a + c**2 for b, a, c in zip(before, after, c)),
    "parallel": ph.coupling.Parallel(),
    "parallel multiplicative": ph.coupling.Parallel(ph.coupling.Multiplicative()),
    "before": ph.coupling.Before(),
    "forcing": ph.coupling.Forcing(),
    "parameter": ph.coupling.Parameter(0, scaled_down),
    "parameter and state": ph.coupling.Parameter(0, scaled_down, ph.Additive()),
    "replacement": ph.coupling.Replacement(),
    "prediction": ph.coupling.Replacement(residual=False),
}


def by_hand(name: str, u: Field, f: Field, network: Callable[..., list[Field]]) -> Field:
    """The new state in plain PhiFlow; `network(state, force)` returns fields like the state, one per output."""
    if name in ("additive", "multiplicative", "function"):
        after = forced_step(u, f)
        (c,) = network(after, f)
        return {
            "additive": lambda: after + c,
            "multiplicative": lambda: after * (1 + 0.5 * c),
            "function": lambda: 0.5 * u + 0.5 * after + c * c,
        }[name]()
    outputs = network(u, f)
    c = outputs[0]
    return {
        "parallel": lambda: forced_step(u, f) + c,
        "parallel multiplicative": lambda: forced_step(u, f) * (1 + c),
        "before": lambda: forced_step(u + c, f),
        "forcing": lambda: forced_step(u, f + c),
        "parameter": lambda: forced_step(u, f * math.exp(c)),
        "parameter and state": lambda: forced_step(u, f * math.exp(c)) + outputs[-1],
        "replacement": lambda: u + c,
        "prediction": lambda: c,
    }[name]()


@pytest.fixture(scope="module")
def block() -> ph.PhysicsBlock:
    return ph.capture(forced_step)


def network_for(name: str, dims: int) -> SmallNet:
    return SmallNet(2 * dims, dims * (2 if name == "parameter and state" else 1), dims).double()


@pytest.mark.parametrize(
    ("name", "kind"), [(name, ["line", "closed", "inflow"][n % 3]) for n, name in enumerate([*COUPLINGS, "additive"])]
)
def test_value_and_gradient_by_hand(name: str, kind: str, block: ph.PhysicsBlock) -> None:
    dims = 1 if kind == "line" else 2
    double = dict(dtype=torch.float64, b=2)
    u, f = (line(s, **double) if kind == "line" else faces(kind, s, **double) for s in (0, 1))
    net = network_for(name, dims)
    solver = ph.HybridSolver(block, net, COUPLINGS[name])

    def network(state: Field, force: Field) -> list[Field]:
        output = net(to_channels(state, force))
        # a correction has no boundary value of its own
        return [homogeneous(from_channels(part, like=state)) for part in output.split(dims, 1)]

    with math.precision(64):
        found = component_values(solver(u, f), "b")
        expected = component_values(by_hand(name, u, f, network), "b")
    assert relative_difference([t.detach() for t in found], [t.detach() for t in expected]) < 1e-13
    parameters = list(net.parameters())
    gradients = [
        torch.autograd.grad(sum((t**2).sum() for t in values), parameters, allow_unused=True)
        for values in (found, expected)
    ]
    assert relative_difference(*gradients) < 1e-12
    assert all(g.abs().max() > 0 for g in gradients[0])


def homogeneous(correction: Field) -> Field:
    """The same values with a boundary of zero gradient or zero, so that sums keep the boundary of the other."""
    boundary = correction.boundary
    return correction if boundary == PERIODIC else correction.with_boundary(boundary - boundary)


def test_zero_network(block: ph.PhysicsBlock) -> None:
    """All but pure prediction leave the solver alone, to the last bit."""
    u, f, dims = faces("open", 0, b=2), faces("open", 1, b=2), 2
    bare = block(u, f)
    for name in set(COUPLINGS) - {"function", "replacement", "prediction"}:
        outputs = dims * (2 if name == "parameter and state" else 1)
        solver = ph.HybridSolver(block, zero_net(2 * dims, outputs, dims), COUPLINGS[name])
        assert same(solver(u, f), bare), name
    assert same(ph.HybridSolver(block, zero_net(2 * dims, dims, dims), ph.coupling.Replacement())(u, f), u)


def test_what_the_network_sees(block: ph.PhysicsBlock) -> None:
    """The state before the physics, unless the coupling is a bare combination."""
    u, f = line(0, b=2), line(1, b=2)
    for name, coupling in COUPLINGS.items():
        net = SmallNet(2, 2 if name == "parameter and state" else 1, 1)
        ph.HybridSolver(block, net, coupling)(u, f)
        seen = block(u, f) if name in ("additive", "multiplicative", "function") else u
        assert torch.equal(net.seen, to_channels(seen, f)), name


@pytest.mark.parametrize("name", ["additive", "before", "parameter and state"])
def test_each_batch_entry_as_if_alone(name: str, block: ph.PhysicsBlock) -> None:
    """A force without batch becomes one per entry, and a state without batch gets that of the force."""
    net = SmallNet(2, 2 if name == "parameter and state" else 1, 1)
    solver = ph.HybridSolver(block, net, COUPLINGS[name])
    for u, f in ((line(0, b=3), line(1)), (line(0), line(1, b=3))):
        with torch.no_grad():
            together = component_values(solver(u, f), "b")[0]
            for n in range(3):
                alone = solver(*(x.b[n] if "b" in x.shape else x for x in (u, f)))
                torch.testing.assert_close(component_values(alone)[0], together[n])


def test_forcing_with_a_force_that_changes(block: ph.PhysicsBlock) -> None:
    """Rollouts take a force with a dim `time`."""
    u, f = line(0, b=2), line(1, b=2, time=3)
    solver = ph.HybridSolver(block, SmallNet(2, 1, 1), ph.coupling.Forcing())
    rolled, state = solver.rollout(u, 3, f), u
    with torch.no_grad():
        for n in range(3):
            state = solver(state, f.time[n])
    assert same(rolled.time[3], state)


def constant_line(value: float, **batches: int) -> Field:
    return line(0, **batches) * 0 + value


def test_scale_of_a_force_is_the_error_over_dt(block: ph.PhysicsBlock) -> None:
    """A unit output moves the state by dt, so that it takes error/dt to mend it."""

    def reference(u: Field, f: Field) -> Field:
        return forced_step(u, f) + 0.3

    data = ph.Trajectories.generate(reference, line(0, b=3), 4, (line(1, b=3),), progress=False)
    scales = {}
    for name in ("additive", "parallel", "forcing"):
        solver = ph.HybridSolver(block, SmallNet(2, 1, 1), COUPLINGS[name])
        estimate_scales(solver, data)
        scales[name] = float(solver.output_scale)
    assert scales["additive"] == scales["parallel"] == pytest.approx(0.3, rel=1e-5)
    assert scales["forcing"] == pytest.approx(0.3 / DT, rel=1e-5)


def test_scales_of_other_couplings() -> None:
    """Physics u → u/2 on a state of 4, reference u → u: the error of a step is 2."""
    data = ph.Trajectories.generate(lambda u: 1.0 * u, constant_line(4.0, b=2), 3, progress=False)
    expected = {
        "additive": 2.0,
        "multiplicative": 2.0 / (0.5 * 2.0),  # C enters with half its strength times P(u) = 2
        "parallel multiplicative": 2.0 / 2.0,
        "before": 2.0 / 0.5,  # the physics halves what is added before
        "replacement": 1.0,  # nothing to predict: scale 1
        "prediction": 4.0,
    }
    for name, scale in expected.items():
        solver = ph.HybridSolver(ph.capture(lambda u: 0.5 * u), SmallNet(1, 1, 1), COUPLINGS[name])
        estimate_scales(solver, data)
        assert float(solver.output_scale) == pytest.approx(scale, rel=1e-5), name


def test_scales_of_a_parameter_and_the_state() -> None:
    """Output channels of the parameter come first; each alone would mend the step."""

    def decay(u: Field, rate: math.Tensor) -> Field:
        return u - DT * rate * u

    rate = math.wrap(torch.full((8,), 0.5), spatial("x"))
    data = ph.Trajectories.generate(lambda u, r: 1.0 * u, constant_line(4.0, b=2), 3, (rate,), progress=False)
    solver = ph.HybridSolver(ph.capture(decay), SmallNet(2, 2, 1), ph.coupling.Parameter(0, combine=ph.Additive()))
    estimate_scales(solver, data)
    error, response = DT * 0.5 * 4.0, DT * 4.0
    assert solver.output_scale.tolist() == pytest.approx([error / response, error], rel=1e-5)


def test_projected_states_have_no_divergence() -> None:
    def project(v: Field) -> Field:
        return fluid.make_incompressible(v)[0]

    u = faces("closed", 0, b=2)
    net = SmallNet(2, 2, 2)
    free = ph.HybridSolver(step, net)
    solver = ph.HybridSolver(step, net, project=ph.capture(project))
    with torch.no_grad(), ph.linear_solve.linear_solves():
        found, before = solver(u), free(u)
        divergences = [float(math.max(abs(field.divergence(v).values), math.shape)) for v in (found, before)]
        assert divergences[0] < 1e-5 < 0.1 < divergences[1]
        assert relative_difference(component_values(found, "b"), component_values(project(before), "b")) < 1e-5
    data = ph.Trajectories.generate(lambda v: 0.5 * v, u, 2, progress=False)
    estimate_scales(solver, data)
    estimate_scales(free, data)
    assert torch.equal(solver.output_scale, free.output_scale)


def test_couplings_are_copied_with_the_solver(block: ph.PhysicsBlock) -> None:
    u, f = line(0, b=2), line(1, b=2)
    solver = ph.HybridSolver(block, SmallNet(2, 2, 1), COUPLINGS["parameter and state"])
    with torch.no_grad():
        assert same(pickle.loads(pickle.dumps(solver))(u, f), solver(u, f))


def test_a_number_is_no_field() -> None:
    """A network cannot set a parameter without grid, and says how to give it one."""

    def viscous(u: Field, viscosity: math.Tensor) -> Field:
        return u + DT * viscosity * u.laplace()

    u, nu = line(0, b=2), math.wrap(torch.tensor([0.1, 0.2]), batch("b"))
    with pytest.raises(ph.StateError, match="input 0.*CenteredGrid"):
        ph.HybridSolver(viscous, SmallNet(2, 1, 1), ph.coupling.Parameter())(u, nu)
    values = math.wrap(torch.full((2, 8, 1), 0.1), batch("b"), spatial("x"), channel(vector="x"))
    as_field = CenteredGrid(values, PERIODIC, bounds=Box(x=2.0))
    ph.HybridSolver(lambda u, nu: u + DT * nu * u.laplace(), SmallNet(2, 1, 1), ph.coupling.Parameter())(u, as_field)


def test_wrong_couplings(block: ph.PhysicsBlock) -> None:
    u, f = line(0), line(1)
    with pytest.raises(ph.StateError, match="input 1 .*1 inputs"):
        ph.HybridSolver(block, SmallNet(2, 1, 1), ph.coupling.Forcing(1))(u, f)
    with pytest.raises(ph.StateError, match="input = -1"):
        ph.coupling.Parameter(-1)
