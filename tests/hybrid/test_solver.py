"""Hybrid solvers against the bare physics, hand-written formulas in plain PhiFlow and finite differences."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from cases.small import (
    DT,
    SmallNet,
    component_values,
    equal,
    faces,
    finite_differences,
    forced_step,
    line,
    noise,
    same,
    scalar,
    step,
    zero_net,
)
from phi.torch.flow import Field, advect, batch, channel, field, math, res_net, spatial

import phi_hybrid as ph
from phi_hybrid.bridge import from_channels, to_channels


def states(kind: str) -> tuple[Field, Field, int]:
    """Velocity, force and dimensions."""
    make = line if kind == "line" else partial(faces, kind)
    return make(0, b=2), make(1, b=2), 1 if kind == "line" else 2


def corrected(after: Field, output: torch.Tensor) -> list[torch.Tensor]:
    """Components of a state plus those of its correction."""
    correction = from_channels(output, after)
    return [a + c for a, c in zip(component_values(after, "b"), component_values(correction, "b"))]


@pytest.fixture(scope="module")
def captured() -> ph.PhysicsBlock:
    """One block for all tests: it keeps the graphs of the signatures it has met."""
    return ph.capture(forced_step)


# --- the update rule ---


def test_zero_network_is_the_bare_solver_on_every_boundary(captured: ph.PhysicsBlock) -> None:
    """One solver binds anew where the boundary changes."""
    solvers = {dims: ph.HybridSolver(captured, zero_net(2 * dims, dims, dims), ph.Additive()) for dims in (1, 2)}
    for kind in ("line", "closed", "periodic", "open", "inflow", "closed"):
        u, f, dims = states(kind)
        found, expected = solvers[dims](u, f), forced_step(u, f)
        assert same(found, expected) and not same(expected, u), kind
        assert found.boundary == expected.boundary


@pytest.mark.parametrize("kind", ["line", "open", "inflow"])
def test_update_rule_by_hand(kind: str, captured: ph.PhysicsBlock) -> None:
    """u⁺ = P(u) + σ_out·C([P(u), f]/σ_in), written with plain PhiFlow and the channel maps."""
    u, f, dims = states(kind)
    net = SmallNet(2 * dims, dims, dims)
    solver = ph.HybridSolver(captured, net)
    sigma_in, sigma_out = torch.linspace(0.5, 2.0, 2 * dims), torch.linspace(0.3, 0.7, dims)
    solver.set_scales(sigma_in, sigma_out)
    shape = (1, -1, *[1] * dims)
    after = forced_step(u, f)
    with torch.no_grad():
        output = sigma_out.view(shape) * net(to_channels(after, f) / sigma_in.view(shape))
        found = solver(u, f)
    assert equal(component_values(found, "b"), corrected(after, output))
    assert not same(found, after)


@pytest.mark.parametrize("strength", [0.25, -1.0])
def test_strength_scales_the_correction(strength: float, captured: ph.PhysicsBlock) -> None:
    u, f = line(0, b=2), line(1, b=2)
    net = SmallNet(2, 1, 1)
    full, scaled = (ph.HybridSolver(captured, net, ph.Additive(s)) for s in (1.0, strength))
    with torch.no_grad():
        (bare,), (a,), (b,) = (component_values(s, "b") for s in (forced_step(u, f), full(u, f), scaled(u, f)))
    torch.testing.assert_close(b - bare, strength * (a - bare), rtol=0, atol=1e-6)
    assert (a - bare).abs().max() > 0.1


def test_plain_physics_equals_captured_physics(captured: ph.PhysicsBlock) -> None:
    u, f, _ = states("inflow")
    net = SmallNet(4, 2, 2)
    plain, fast = ph.HybridSolver(forced_step, net), ph.HybridSolver(captured, net)
    assert same(plain(u, f), fast(u, f))


# --- what the network sees ---


def test_sees_selects_inputs() -> None:
    def two_forces(u: Field, a: Field, b: Field) -> Field:
        return step(u) + DT * a - DT * b

    u, a, b = (line(seed, b=2) for seed in range(3))
    after = two_forces(u, a, b)
    for sees, expected in {
        (): [after],
        (0,): [after, a],
        (1,): [after, b],
        (1, 0): [after, b, a],
        ("b", "a"): [after, b, a],
        "b": [after, b],
        None: [after, a, b],
    }.items():
        net = SmallNet(len(expected), 1, 1)
        for physics in (two_forces, ph.capture(two_forces), ph.HybridSolver(two_forces, zero_net(1, 1, 1), sees=())):
            ph.HybridSolver(physics, net, sees=sees)(u, a, b=b)
            assert torch.equal(net.seen, to_channels(*expected)), sees


def test_names_hold_where_an_input_is_left_out_and_others_are_keywords() -> None:
    """The number of an input depends on the call, its name does not."""

    def two_forces(u: Field, a: Field | None = None, *, b: Field) -> Field:
        return step(u) - DT * b if a is None else step(u) + DT * a - DT * b

    u, a, b = (line(seed, b=2) for seed in range(3))
    net = SmallNet(2, 1, 1)
    solver = ph.HybridSolver(two_forces, net, sees="b")
    for inputs in ({"a": a, "b": b}, {"b": b}):
        solver(u, **inputs)
        assert torch.equal(net.seen, to_channels(two_forces(u, **inputs), b))
    with pytest.raises(ph.StateError, match=r"sees = \('a',\): the step has no input 'a', but 1 inputs: 0 'b'"):
        ph.HybridSolver(two_forces, net, sees="a")(u, b=b)


def test_features_follow_the_inputs(captured: ph.PhysicsBlock) -> None:
    u, f, mask = faces("closed", 0, b=3), faces("closed", 1, b=3), scalar(5)
    net = SmallNet(6, 2, 2)
    number = math.wrap(0.5)
    solver = ph.HybridSolver(captured, net, features=(mask, number))
    solver(u, f)
    assert torch.equal(net.seen[:, :4], to_channels(forced_step(u, f), f))
    expected = mask.values.native("x,y")
    assert all(torch.equal(entry, expected) for entry in net.seen[:, 4])
    assert (net.seen[:, 5] == 0.5).all()
    assert not any("feature" in key for key in solver.state_dict())


def test_parameters_are_channels_in_the_order_of_the_arguments() -> None:
    """Whatever the order of their dims; vectors have one for each component."""

    def ignoring(u: Field, first: math.Tensor, second: math.Tensor, wind: math.Tensor) -> Field:
        return u

    net, u = SmallNet(6, 2, 2), faces("periodic", 0)
    first, second = math.wrap(noise(6, 5, seed=3), spatial("x,y")), math.wrap(noise(5, 6, seed=4), spatial("y,x"))
    ph.HybridSolver(ignoring, net)(u, first, second, math.wrap(torch.tensor([0.5, -0.25]), channel(vector="x,y")))
    expected = [*component_values(u), noise(6, 5, seed=3), noise(5, 6, seed=4).T]
    assert torch.equal(net.seen[0, :4], torch.stack(expected))
    assert (net.seen[0, 4] == 0.5).all() and (net.seen[0, 5] == -0.25).all()


# --- kinds of state ---


def test_batch_dims_of_any_name(captured: ph.PhysicsBlock) -> None:
    """Every entry of two batch dims, whatever their names, is treated as if it were alone."""
    u, f = line(0, zeta=2, alpha=3), line(1, zeta=2, alpha=3)
    solver = ph.HybridSolver(captured, SmallNet(2, 1, 1))
    with torch.no_grad():
        (together,) = component_values(solver(u, f), ("zeta", "alpha"))
        for z, a in product(range(2), range(3)):
            (alone,) = component_values(solver(u.zeta[z].alpha[a], f.zeta[z].alpha[a]))
            torch.testing.assert_close(alone, together[z, a])


def test_state_without_batch(captured: ph.PhysicsBlock) -> None:
    solver = ph.HybridSolver(captured, SmallNet(4, 2, 2))
    u, f = faces("closed", 0), faces("closed", 1)
    with torch.no_grad():
        single, batched = solver(u, f), solver(math.expand(u, batch(b=1)), math.expand(f, batch(b=1)))
    assert single.shape.batch.is_empty
    for a, b in zip(component_values(single), component_values(batched, "b")):
        torch.testing.assert_close(a, b[0])


def test_seen_input_with_batch_that_the_physics_ignores() -> None:
    """Only the network sees the label: the result has its batch dim, the physics has none."""

    def ignoring(u: Field, label: math.Tensor) -> Field:
        return step(u)

    u, label = line(0), math.wrap(torch.tensor([0.0, 1.0, 2.0]), batch("b"))
    net = SmallNet(2, 1, 1)
    solver = ph.HybridSolver(ignoring, net)
    bare = component_values(step(u))[0]
    with torch.no_grad():
        found = component_values(solver(u, label), "b")[0]
        expected = (
            bare + net(torch.stack([bare.T.expand(3, -1, -1)[:, 0], label.native("b")[:, None].expand(3, 8)], 1)).mT
        )
        torch.testing.assert_close(found, expected)
        trajectory = solver.rollout(u, 2, label)
    assert trajectory.shape.get_size("b") == 3
    torch.testing.assert_close(component_values(trajectory.time[1], "b")[0], found)


def smoke_step(state: tuple[Field, Field]) -> tuple[Field, Field]:
    velocity, smoke = state
    return step(velocity), advect.semi_lagrangian(smoke, velocity, DT)


def test_state_of_velocity_and_smoke() -> None:
    state, net = (faces("closed", 0, b=2), scalar(1, b=2)), SmallNet(3, 3, 2)
    solver = ph.HybridSolver(ph.capture(smoke_step, state), net)
    after = smoke_step(state)
    with torch.no_grad():
        found, output = solver(state), net(to_channels(*after))
    for a, b, c in zip(found, after, output.split([2, 1], 1)):
        assert equal(component_values(a, "b"), corrected(b, c))


def test_double_precision_physics_with_single_precision_network(captured: ph.PhysicsBlock) -> None:
    u, f = line(0, dtype=torch.float64, b=2), line(1, dtype=torch.float64, b=2)
    net = SmallNet(2, 1, 1)
    solver = ph.HybridSolver(captured, net)
    with math.precision(64):
        after = component_values(forced_step(u, f), "b")[0]
    force = component_values(f, "b")[0]
    with torch.no_grad():
        correction = net(torch.cat([after, force], -1).mT.float()).double()
        found = solver(u, f)
    assert net.seen.dtype == torch.float32
    assert torch.equal(component_values(found, "b")[0], after + correction.mT)
    exact = ph.HybridSolver(captured, zero_net(2, 1, 1))(u, f)
    assert torch.equal(component_values(exact, "b")[0], after) and after.dtype == torch.float64


def test_single_precision_physics_with_double_precision_network(captured: ph.PhysicsBlock) -> None:
    net = SmallNet(2, 1, 1).double()
    found = ph.HybridSolver(captured, net)(line(0, b=2), line(1, b=2))
    assert net.seen.dtype == torch.float64 and component_values(found, "b")[0].dtype == torch.float32


def test_a_solver_wraps_another(captured: ph.PhysicsBlock) -> None:
    u, f = faces("open", 0, b=2), faces("open", 1, b=2)
    inner_net, outer_net = SmallNet(4, 2, 2, seed=1), SmallNet(4, 2, 2, seed=2)
    inner = ph.HybridSolver(captured, inner_net)
    outer = ph.HybridSolver(inner, outer_net)
    with torch.no_grad():
        after, found = inner(u, f), outer(u, f)
        assert equal(component_values(found, "b"), corrected(after, outer_net(to_channels(after, f))))
    assert len(list(outer.parameters())) == 8


@pytest.mark.smoke
def test_corrections_stay_on_faces() -> None:
    """Fixed faces are no part of the state and stay; the outer open face takes the correction of its neighbour."""
    u = faces("inflow", 0, b=2)
    net = SmallNet(2, 2, 2)
    solver = ph.HybridSolver(lambda v: v, net)
    with torch.no_grad():
        found, channels = solver(u), net(to_channels(u))
    (ux, uy), (vx, vy) = component_values(u, "b"), component_values(found, "b")
    torch.testing.assert_close(vx - ux, channels[:, 0], rtol=0, atol=1e-6)  # periodic: every face is a cell's
    # y: the lower face is the inflow, of value 1, so face n + 1 is stored in entry n
    torch.testing.assert_close(vy[:, :, :4] - uy[:, :, :4], channels[:, 1, :, 1:], rtol=0, atol=1e-6)
    torch.testing.assert_close(vy[:, :, 4] - uy[:, :, 4], channels[:, 1, :, 4], rtol=0, atol=1e-6)
    assert (net.seen[:, 1, :, 0] == 1).all()
    assert found.boundary == u.boundary
    assert (found.staggered_tensor().vector["y"].y[0].x[:6].native("b,x") == 1).all()


# --- native face and derivatives ---


def test_native_face_is_the_call(captured: ph.PhysicsBlock) -> None:
    u, f, _ = states("inflow")
    solver = ph.HybridSolver(captured, SmallNet(4, 2, 2))
    tensors = solver.flatten(u, f)
    assert equal(tensors, [*component_values(u, "b"), *component_values(f, "b")])
    with torch.no_grad():
        assert same(solver.unflatten(solver.native(*tensors)), solver(u, f))


def test_derivatives_with_respect_to_the_state(captured: ph.PhysicsBlock) -> None:
    """Autograd and torch.func agree with central differences of the native face in double precision."""
    u, f = (faces("inflow", n, dtype=torch.float64, b=1) for n in (0, 1))
    solver = ph.HybridSolver(captured, SmallNet(4, 2, 2).double())
    tensors = [t.requires_grad_() for t in solver.flatten(u, f)]
    weights = [noise(*o.shape, seed=n, dtype=torch.float64) for n, o in enumerate(solver.native(*tensors))]

    def objective(*natives: torch.Tensor) -> torch.Tensor:
        return sum((w * o).sum() for w, o in zip(weights, solver.native(*natives)))

    by_autograd = torch.autograd.grad(objective(*tensors), tensors)
    detached = [t.detach() for t in tensors]
    by_func = torch.func.grad(objective, argnums=(0, 1, 2, 3))(*detached)
    by_vjp = torch.func.vjp(solver.native, *detached)[1](tuple(weights))
    expected = finite_differences(lambda: objective(*detached), detached)
    for found in (by_autograd, by_func, by_vjp):
        torch.testing.assert_close(list(found), expected, rtol=1e-6, atol=1e-8)


def test_vmap_over_native(captured: ph.PhysicsBlock) -> None:
    u, f = line(0, b=2), line(1, b=2)
    solver = ph.HybridSolver(captured, SmallNet(2, 1, 1))
    tensors = solver.flatten(u, f)
    stacked = [torch.stack([t, 2 * t, -t]) for t in tensors]
    with torch.no_grad():
        (found,) = torch.func.vmap(solver.native)(*stacked)
        for n in range(3):
            torch.testing.assert_close(found[n], solver.native(*(t[n] for t in stacked))[0])


# --- copies ---


def scaled_solver(captured: ph.PhysicsBlock, seed: int = 0) -> ph.HybridSolver:
    solver = ph.HybridSolver(captured, SmallNet(3, 1, 1, seed=seed), features=(line(9),))
    solver.set_scales(torch.tensor([0.5, 2.0, 1.0]), torch.tensor([0.25]))
    return solver


def test_copies_are_equal_and_independent(captured: ph.PhysicsBlock) -> None:
    u, f = line(0, b=2), line(1, b=2)
    solver = scaled_solver(captured)
    expected = solver(u, f)
    for twin in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert same(twin(u, f), expected)
        with torch.no_grad():
            twin.network.last.bias += 1.0
            twin.output_scale *= 2
        assert same(solver(u, f), expected)
        assert not same(twin(u, f), expected)


def test_state_dict_holds_weights_and_scales(captured: ph.PhysicsBlock) -> None:
    """Of a solver within a solver, too, but nothing of the physics."""

    def nested(seed: int) -> ph.HybridSolver:
        return ph.HybridSolver(scaled_solver(captured, seed), SmallNet(2, 1, 1, seed=seed + 1))

    u, f = line(0, b=2), line(1, b=2)
    state = scaled_solver(captured).state_dict()
    assert {"input_scale", "output_scale"} <= set(state) and not any(key.startswith("physics") for key in state)
    bare = ph.HybridSolver(captured, SmallNet(3, 1, 1, seed=5), features=(line(9),))
    for solver, fresh in ((scaled_solver(captured), bare), (nested(0), nested(5))):
        assert not same(fresh(u, f), solver(u, f))
        fresh.load_state_dict(solver.state_dict())
        assert same(fresh(u, f), solver(u, f))
    assert bare.scaled


def test_channels_that_do_not_vary_keep_scale_one(captured: ph.PhysicsBlock) -> None:
    solver = ph.HybridSolver(captured, SmallNet(2, 1, 1))
    solver.set_scales(torch.tensor([0.0, 2.0]), torch.tensor([0.0]))
    assert solver.input_scale.tolist() == [1.0, 2.0] and solver.output_scale.tolist() == [1.0]
    assert solver.scaled


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_bad_scales_are_refused_and_change_nothing(bad: float, captured: ph.PhysicsBlock) -> None:
    solver = scaled_solver(captured)
    with pytest.raises(ph.StateError, match=f"{bad}"):
        solver.set_scales(torch.ones(3), torch.tensor([bad]))
    assert solver.input_scale.tolist() == [0.5, 2.0, 1.0] and solver.output_scale.tolist() == [0.25]


def test_numbers_are_no_features() -> None:
    with pytest.raises(ph.StateError, match=r"features\[0\] = 0.01"):
        ph.HybridSolver(lambda u: u, torch.nn.Conv1d(2, 1, 1), features=(0.01,))


def test_complex_numbers_are_refused_by_name(captured: ph.PhysicsBlock) -> None:
    """Before the physics is called, which may not take them. A network would not see their imaginary part; inputs that it does not see may be complex."""
    u, f = line(0, b=2), line(1, b=2)
    for name, call in {
        "the state": lambda: ph.HybridSolver(captured, SmallNet(2, 1, 1))(u * 1j, f),
        "input 0": lambda: ph.HybridSolver(lambda u, f: u + field.real(f), SmallNet(2, 1, 1))(u, f * 1j),
        "features": lambda: ph.HybridSolver(captured, SmallNet(3, 1, 1), features=(u * 1j,)),
    }.items():
        with pytest.raises(ph.StateError, match=f"{name} holds torch.complex64.*real and imaginary part"):
            call()
    unseen = ph.HybridSolver(lambda u, f: u + field.real(f), SmallNet(1, 1, 1), sees=())
    assert unseen(u, f * 1j).values.dtype.kind is float


def test_wrong_number_of_output_channels(captured: ph.PhysicsBlock) -> None:
    with pytest.raises(ph.StateError, match="1 output channels"):
        ph.HybridSolver(captured, SmallNet(2, 3, 1))(line(0, b=2), line(1, b=2))


def test_wrong_number_of_input_channels(captured: ph.PhysicsBlock) -> None:
    with pytest.raises(ph.StateError, match="3 input channels: state 1, input 0 1, feature 0 1"):
        ph.HybridSolver(captured, SmallNet(5, 1, 1), features=(line(2),))(line(0, b=2), line(1, b=2))


def test_errors_inside_the_network_stay_as_they_are(captured: ph.PhysicsBlock) -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="^something else$"):
        ph.HybridSolver(captured, Broken())(line(0, b=2), line(1, b=2))


@pytest.mark.parametrize("sees", [(0, 3), (-1,), "forces"])
def test_sees_out_of_range(sees: tuple, captured: ph.PhysicsBlock) -> None:
    with pytest.raises(ph.StateError, match="sees = .*1 inputs"):
        ph.HybridSolver(captured, SmallNet(2, 1, 1), sees=sees)(line(0, b=2), line(1, b=2))


def test_arguments_of_different_precision(captured: ph.PhysicsBlock) -> None:
    with pytest.raises(ph.StateError, match="torch.float32, torch.float64"):
        ph.HybridSolver(captured, SmallNet(2, 1, 1))(line(0, b=2), line(1, dtype=torch.float64, b=2))


@pytest.mark.parametrize("physics", ["captured", "plain"])
def test_missing_and_superfluous_inputs(physics: str, captured: ph.PhysicsBlock) -> None:
    solver = ph.HybridSolver(captured if physics == "captured" else forced_step, SmallNet(2, 1, 1))
    with pytest.raises(ph.StateError, match="force.*1 by position"):
        solver(line(0, b=2))
    with pytest.raises(ph.StateError, match="3 by position"):
        solver(line(0, b=2), line(1, b=2), line(2, b=2))


def test_natives_of_unknown_shape(captured: ph.PhysicsBlock) -> None:
    solver = ph.HybridSolver(captured, SmallNet(2, 1, 1))
    solver(line(0, b=2), line(1, b=2))
    with pytest.raises(ph.StateError, match=r"\(2, 9, 1\).*x=8"):
        solver.native(torch.zeros(2, 9, 1), torch.zeros(2, 9, 1))
    with pytest.raises(ph.StateError, match=r"\(2, 9, 1\).*x=8"):
        solver.unflatten((torch.zeros(2, 9, 1),))


def test_scales_of_another_number_of_channels(captured: ph.PhysicsBlock) -> None:
    solver = ph.HybridSolver(captured, SmallNet(2, 1, 1))
    solver.set_scales(torch.ones(4), torch.ones(2))
    with pytest.raises(ph.StateError, match="4 channels.* 2"):
        solver(line(0, b=2), line(1, b=2))


def test_features_of_another_grid(captured: ph.PhysicsBlock) -> None:
    solver = ph.HybridSolver(captured, SmallNet(3, 1, 1), features=(line(9, cells=4),))
    with pytest.raises(ph.StateError, match="one grid resolution"):
        solver(line(0, b=2), line(1, b=2))


class Annotated(torch.nn.Conv1d):
    """Puts its settings beside all entries of a state dict, as networks of the library `neuraloperator` do."""

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        found = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        found["_metadata"] = {"class": torch.nn.Conv1d}
        return found


def test_settings_of_a_network_stay_out_of_the_state_dict() -> None:
    solver = ph.HybridSolver(ph.capture(lambda u: 0.9 * u), torch.nn.Sequential(Annotated(1, 1, 1)))
    assert "network.0.weight" in solver.state_dict() and "_metadata" not in solver.state_dict()
    both = torch.nn.ModuleDict({"a": solver, "b": torch.nn.Linear(1, 1)})
    assert "_metadata" not in both.state_dict() and "b.weight" in both.state_dict()
    both.load_state_dict(both.state_dict())


def test_networks_of_other_channels_than_the_state() -> None:
    """Where one output corrected both components alike, once there were scales."""
    state = faces("periodic", 0, trajectory=2)
    for outputs in (1, 3):
        solver = ph.HybridSolver(ph.capture(lambda u: 0.9 * u), torch.nn.Conv2d(2, outputs, 3, padding=1))
        solver.set_scales(torch.ones(2), torch.tensor([1.0, 2.0]))
        with pytest.raises(ph.StateError, match=rf"the network returned \(2, {outputs}.*; give it 2 output channels"):
            solver(state)


@pytest.mark.parametrize("network, state", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_networks_of_phiml_in_another_precision(network: torch.dtype, state: torch.dtype) -> None:
    """They convert what they see to PhiFlow's current precision."""
    solver = ph.HybridSolver(ph.capture(lambda u: 0.9 * u), res_net(2, 2, [4]).to(network))
    u = faces("periodic", 0, state, trajectory=2)
    for precision in (32, 64):
        with math.precision(precision):
            assert {t.dtype for t in ph.bridge.flatten(solver(u))[0]} == {state}
