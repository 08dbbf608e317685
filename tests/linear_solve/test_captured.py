"""Captured steps with linear solves: values, all derivatives, copies, and what happens when a solve fails."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import SmallNet
from cases.solve_steps import around, box, flow, moving, part, pushed, several, smoothed, squared, with_pressure
from cases.solves import (
    BOUNDARIES,
    METHODS,
    components,
    diffuse_implicitly,
    noise,
    obstacles,
    on_faces,
    project,
    relative_error,
    scalar,
    stacked,
    velocity,
)
from phi.torch.flow import (
    PERIODIC,
    Box,
    CenteredGrid,
    Field,
    Solve,
    Tensor,
    batch,
    channel,
    diffuse,
    dual,
    fluid,
    math,
    spatial,
    wrap,
)

import phi_hybrid as ph
from phi_hybrid.linear_solve import ConjugateGradient, LinearSolve, Method

Native = Callable[[torch.Tensor], torch.Tensor]
TIGHT = Solve("CG", 1e-13, 1e-13, max_iterations=2000)


def solves_of(block: ph.PhysicsBlock) -> list[LinearSolve]:
    return [m for m in block.modules() if isinstance(m, LinearSolve)]


def flat_function(block: ph.PhysicsBlock, u: Field) -> tuple[Native, torch.Tensor]:
    """The native face as a function of one vector, with a point at which to differentiate it."""
    leaves = block.flatten(u)
    sizes = [t.numel() for t in leaves]

    def f(x: torch.Tensor) -> torch.Tensor:
        parts = [p.reshape(t.shape) for p, t in zip(x.split(sizes), leaves)]
        return torch.cat([y.reshape(-1) for y in block.native(*parts)])

    return f, torch.cat([t.reshape(-1) for t in leaves])


# --- values ---


@functools.cache
def block_of(kind: str) -> ph.PhysicsBlock:
    """Of a step around a moving obstacle; compared with PhiFlow for some."""
    return ph.capture(moving, velocity(kind), check=kind in ("closed", "inflow"))


@pytest.mark.parametrize("kind", BOUNDARIES)
def test_block_equals_a_dense_solve(kind: str) -> None:
    v = velocity(kind, seed=7)
    with math.precision(64):
        expected = project(v + 0.1 * v * v, obstacles("moving")).velocity
    block = block_of(kind)
    assert relative_error(stacked(components(block(v))), stacked(expected)) < 1e-9
    assert len(block.graphs) == 1 and len(solves_of(block)) == 1


@pytest.mark.parametrize("kind", BOUNDARIES)
def test_gradient_equals_that_of_phiflow(kind: str) -> None:
    """Which multiplies by the masks of obstacles with a custom gradient."""
    leaves = [t.detach().clone().requires_grad_() for t in components(velocity(kind))]
    found = torch.autograd.grad(sum((c**3).sum() for c in block_of(kind).native(*leaves)), leaves)
    u = on_faces(leaves, kind)
    with math.precision(64):
        u, _ = fluid.make_incompressible(u + 0.1 * u * u, obstacles("moving"), TIGHT)
        expected = torch.autograd.grad(sum((c**3).sum() for c in components(u)), leaves)
    assert max(float(g.abs().max()) for g in expected) > 0.1
    assert relative_error(stacked(found), stacked(expected)) < 1e-9


def test_pressure_is_a_result_like_others() -> None:
    v = velocity("closed")
    u, p = ph.capture(with_pressure, v)(v)
    expected = project(v, obstacles("one"))
    assert relative_error(stacked(components(u)), stacked(expected.velocity)) < 1e-9
    assert relative_error(components(p)[0].flatten(1), expected.pressure) < 1e-9


def test_several_solves() -> None:
    """Components that differ in their matrix have a solver each, equal pressure equations share one."""
    v = velocity("closed")
    block = ph.capture(several, v)
    assert len(solves_of(block)) == 3
    with math.precision(64):
        u = v.with_values(_faces(diffuse_implicitly(v, 0.1, 0.2)))
        u = v.with_values(_faces(project(u).velocity))
        u = u + 0.1 * u * u
    assert relative_error(stacked(components(block(v))), stacked(project(u).velocity)) < 1e-9


def _faces(values: list[Any]) -> Tensor:
    values = {n: wrap(torch.as_tensor(v), batch("b"), *[spatial(d) for d in "xy"]) for n, v in zip("xy", values)}
    return math.stack(values, math.dual("vector"))


def test_unknowns_in_another_order_than_equations() -> None:
    matrix, rhs = noise(6, 6).numpy() + 6 * np.eye(6), noise(3, 6)
    stored = wrap(matrix.reshape(2, 3, 2, 3).transpose(0, 1, 3, 2).copy(), channel("x,y"), dual("y,x"))

    def step(y: Tensor) -> Tensor:
        return math.solve_linear(stored, y, Solve(x0=math.zeros(batch(b=3), channel(y=3, x=2))))

    y = wrap(rhs.reshape(3, 2, 3), batch("b"), channel("x,y"))
    with math.precision(64):
        found = ph.capture(step, y)(y).native("b,x,y").reshape(3, 6)
    assert relative_error(found, np.linalg.solve(matrix, rhs.numpy().T).T) < 1e-13


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_by_argument(method: Method) -> None:
    v = velocity("inflow")
    block = ph.capture(box, v, solver=method)
    assert all(s.method == method for s in solves_of(block))
    with math.precision(64):
        expected = project(v + 0.1 * v * v).velocity
    assert relative_error(stacked(components(block(v))), stacked(expected)) < 1e-9


def test_new_signatures_have_solvers_of_their_own() -> None:
    block = ph.PhysicsBlock(box, check=False)
    cases = [
        velocity("closed"),
        velocity("open"),
        velocity("closed", b=2, time=2),
        velocity("closed", "xyz"),
        velocity("closed", cells={"x": 5, "y": 7}),
        velocity("closed", dtype=torch.float32),
    ]
    for v in cases:
        names = v.shape.batch.names
        with math.precision(64):
            expected = project(v + 0.1 * v * v).velocity
        found = components(block(v), names)
        assert found[0].dtype == components(v, names)[0].dtype
        error = relative_error(stacked(found), stacked(expected))
        assert error < (1e-5 if found[0].dtype == torch.float32 else 1e-9)
    assert len(block.graphs) == len(cases)


def test_constant_systems_are_solved_once() -> None:
    """A solve that does not depend on the state is part of the constants."""
    fixed, u = scalar("open"), scalar("open", seed=5)
    block = ph.capture(lambda u: u + diffuse.implicit(fixed, 0.3, 0.7), u)
    assert not any(n.op == "call_module" and "linear_solve" in n.target for n in block.graphs[0].module.graph.nodes)
    expected = components(u)[0] + torch.as_tensor(diffuse_implicitly(fixed, 0.3, 0.7)[0])
    assert relative_error(components(block(u))[0], expected) < 1e-9


# --- derivatives ---

CASES = {
    "periodic": (box, "periodic", "fast"),
    "closed": (moving, "closed", "factored"),
    "wake": (flow, "inflow", "iterative"),
    "box of walls": (box, "closed", "iterative"),
    "part of a box": (part, "closed", "factored"),
}


@functools.cache
def case(name: str) -> tuple[ph.PhysicsBlock, Field]:
    step, kind, method = CASES[name]
    u = velocity(kind, b=1)
    return ph.capture(step, u, check=False, solver=METHODS[method]), u


@pytest.mark.parametrize("name", CASES)
def test_jacobians(name: str) -> None:
    f, x = flat_function(*case(name))
    reverse, forward = torch.func.jacrev(f)(x), torch.func.jacfwd(f)(x)
    columns = [(f(x + 1e-6 * e) - f(x - 1e-6 * e)) / 2e-6 for e in torch.eye(len(x), dtype=x.dtype)]
    expected = torch.stack(columns, 1)
    assert (expected.abs() > 1e-4).any(0).float().mean() > 0.8  # all inputs outside of obstacles matter
    torch.testing.assert_close(reverse, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(forward, reverse, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_through_the_native_face(name: str) -> None:
    block, u = case(name)
    leaves = [t.requires_grad_() for t in block.flatten(u)]
    assert torch.autograd.gradcheck(block.native, leaves, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(block.native, leaves, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives(name: str) -> None:
    f, x = flat_function(*case(name))

    def energy(x: torch.Tensor) -> torch.Tensor:
        return (f(x) ** 3).sum() / 3

    v = noise(len(x), seed=1)
    gradient = torch.func.grad(energy)
    by_differences = (gradient(x + 1e-6 * v) - gradient(x - 1e-6 * v)) / 2e-6
    assert by_differences.abs().max() > 0.1
    pushed_forward = torch.func.jvp(gradient, (x,), (v,))[1]
    torch.testing.assert_close(pushed_forward, by_differences, rtol=1e-6, atol=1e-6)
    pulled_back = torch.func.vjp(gradient, x)[1](v)[0]
    torch.testing.assert_close(pulled_back, by_differences, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_vmap_is_the_loop(name: str) -> None:
    f, x = flat_function(*case(name))
    points = torch.stack([x, 0.5 * x, -x])
    torch.testing.assert_close(torch.func.vmap(f)(points), torch.stack([f(p) for p in points]), rtol=0, atol=1e-10)
    tangents = torch.func.vmap(lambda p, v: torch.func.jvp(f, (p,), (v,))[1])(points, points.flip(0))
    loop = torch.stack([torch.func.jvp(f, (p,), (v,))[1] for p, v in zip(points, points.flip(0))])
    assert loop.abs().max() > 0.1
    torch.testing.assert_close(tangents, loop, rtol=0, atol=1e-10)


def test_dual_numbers_without_torch_func() -> None:
    f, x = flat_function(*case("wake"))
    with torch.autograd.forward_ad.dual_level():
        pushed_forward = torch.autograd.forward_ad.unpack_dual(
            f(torch.autograd.forward_ad.make_dual(x, noise(len(x), seed=1)))
        ).tangent
    expected = torch.func.jacrev(f)(x) @ noise(len(x), seed=1)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(pushed_forward, expected, rtol=0, atol=1e-10)


def test_velocity_of_an_obstacle_as_an_input() -> None:
    """The matrix does not depend on it; its gradient is that of finite differences."""

    def step(u: Field, w: Tensor) -> Field:
        (body,) = obstacles("one")
        return fluid.make_incompressible(u, math.copy_with(body, velocity=w))[0]

    u, w = velocity("closed"), noise(2, seed=3)
    block = ph.capture(step, u, wrap(w, channel(vector="x,y")))
    leaves = block.flatten(u, wrap(w, channel(vector="x,y")))
    assert torch.autograd.gradcheck(lambda w: block.native(*leaves[:2], w), w.clone().requires_grad_())


@pytest.mark.parametrize(("kind", "obstacle"), [("periodic", "none"), ("closed", "one"), ("mixed", "none")])
def test_constants_of_the_pressure_have_no_gradient(kind: str, obstacle: str) -> None:
    """Without an opening, the pressure has vanishing mean, whatever the velocity."""
    v = velocity(kind)
    block = ph.capture(lambda u: fluid.make_incompressible(u, obstacles(obstacle))[1], v, check=False)
    leaves = [t.requires_grad_() for t in block.flatten(v)]
    (p,) = block.native(*leaves)
    assert p.detach().sum((1, 2)).abs().max() < 1e-10
    for gradient in torch.autograd.grad(p, leaves, torch.ones_like(p), retain_graph=True):
        assert gradient.abs().max() < 1e-10
    assert max(float(g.abs().max()) for g in torch.autograd.grad(p[0, 0, 0], leaves)) > 1e-2


def test_potential_flows_vanish() -> None:
    """The projection is linear, removes gradients, and keeps what is free of divergence: P·∇q = 0 and P·P = P."""
    v = velocity("closed")
    block = ph.capture(lambda u: fluid.make_incompressible(u)[0], v)
    u = block(v)
    with math.precision(64):
        gradient = v - u
    assert relative_error(stacked(components(block(u))), stacked(components(u))) < 1e-10
    assert np.abs(stacked(components(block(gradient)))).max() < 1e-10 * np.abs(stacked(components(gradient))).max()


def test_new_signature_inside_a_transformation() -> None:
    block = ph.PhysicsBlock(box, check=False)
    x = [t[:1] for t in block.flatten(velocity("closed"))]
    _, tangent = torch.func.jvp(lambda *t: block.native(*t)[0], tuple(x), tuple(torch.ones_like(t) for t in x))
    by_differences = (block.native(*(t + 1e-6 for t in x))[0] - block.native(*(t - 1e-6 for t in x))[0]) / 2e-6
    torch.testing.assert_close(tangent, by_differences, rtol=0, atol=1e-7)
    assert len(block.graphs) == 1 and tangent.abs().max() > 0.01


@pytest.mark.slow
def test_compiled_steps() -> None:
    v = velocity("inflow", dtype=torch.float32)
    plain, own = ph.capture(flow, v), ph.capture(flow, v, compile=True)
    outside = torch.compile(plain.native)
    leaves = [t.requires_grad_() for t in plain.flatten(v)]
    expected = plain.native(*leaves)
    gradient = torch.autograd.grad(sum((c**2).sum() for c in expected), leaves)
    for f in (own.native, outside):
        found = f(*leaves)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        found = torch.autograd.grad(sum((c**2).sum() for c in found), leaves)
        torch.testing.assert_close(found, gradient, rtol=0, atol=1e-4)
    x, v = tuple(t.detach() for t in leaves), tuple(torch.ones_like(t) for t in leaves)
    tangents = torch.func.jvp(own.native, x, v)[1]
    assert tangents[0].abs().max() > 0.1
    torch.testing.assert_close(tangents, torch.func.jvp(plain.native, x, v)[1], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_compiled_solves_that_fail() -> None:
    block = ph.capture(smoothed, line(1.0, 2.0), compile=True)
    with pytest.raises(ph.SolveError, match="holds 8 NaN or infinite values of 16"):
        block(line(1.0, float("nan")))
    block(line(1.0, 3.0))
    rest = 0 * velocity("open")
    block = ph.capture(around, rest, compile=True, check=False, solver=ConjugateGradient(max_iterations=1))
    with pytest.raises(ph.SolveError, match="missed its tolerance") as error:
        block(velocity("open"))
    assert 1e-5 < error.value.residual < 1 and error.value.iterations == 1


# --- copies ---


def copies(block: ph.PhysicsBlock) -> list[ph.PhysicsBlock]:
    buffer = io.BytesIO()
    torch.save(block, buffer)
    buffer.seek(0)
    return [copy.deepcopy(block), pickle.loads(pickle.dumps(block)), torch.load(buffer, weights_only=False)]


@pytest.mark.parametrize(("step", "method"), [(box, "iterative"), (flow, "factored")])
def test_copies_solve_by_themselves(step: Callable, method: str) -> None:
    v = velocity("inflow")
    block = ph.capture(step, v, check=False, solver=METHODS[method])
    expected = components(block(v))
    others, (original,) = copies(block), solves_of(block)
    del block
    for other in others:
        (own,) = solves_of(other)
        assert own is not original and own.number != original.number and not own._solvers
        assert all(torch.equal(a, b) for a, b in zip(components(other(v)), expected))
        assert own._solvers and len(other.graphs) == 1
        leaves = [t.requires_grad_() for t in other.flatten(v)]
        gradient = torch.autograd.grad(sum((c**2).sum() for c in other.native(*leaves)), leaves)
        assert max(float(g.abs().max()) for g in gradient) > 0.1
    assert len({id(next(iter(s._solvers.values()))) for other in others for s in solves_of(other)}) == 3
    others[1](velocity("inflow", b=3))
    assert len(others[1].graphs) == 2 and len(others[0].graphs) == 1


def test_local_steps_travel_without_their_code() -> None:
    v = velocity("open")
    block = ph.capture(lambda u: fluid.make_incompressible(u)[0], v)
    other = pickle.loads(pickle.dumps(block))
    assert all(torch.equal(a, b) for a, b in zip(components(other(v)), components(block(v))))


def test_moving_to_where_it_is_changes_nothing() -> None:
    v = velocity("closed")
    block = ph.capture(box, v)
    before = components(block(v))
    assert block.to("cpu") is block and block.to(torch.float32) is block
    assert all(torch.equal(a, b) for a, b in zip(components(block(v)), before))
    assert not list(block.parameters()) and not block.state_dict()


# --- solves that fail ---


def line(*scales: float) -> Field:
    """A random centred scalar per scale, `(b, x)`."""
    values = torch.tensor(scales)[:, None] * noise(1, 8, dtype=torch.float32).abs().clamp(0.5, 2.0)
    return CenteredGrid(wrap(values, batch("b"), spatial("x")), PERIODIC, bounds=Box(x=2.0))


def pushes(steps: int, bad: int) -> Tensor:
    """An input over time with one entry that is not finite."""
    return wrap(torch.tensor([float("nan") if n == bad else 0.1 for n in range(steps)]), batch("time"))


@pytest.mark.parametrize("captured", [True, False])
def test_states_that_are_not_finite(captured: bool) -> None:
    u = line(1.0, 2.0)
    step = ph.capture(smoothed, u) if captured else ph.unroll.as_step(smoothed)
    with pytest.raises(ph.SolveError, match="holds 8 NaN or infinite values of 16") as error:
        step(u * math.wrap(torch.tensor([1.0, float("nan")]), batch("b")))
    assert np.isnan(error.value.residual) and error.value.iterations == 0 and error.value.step is None
    step(u)


def test_examples_that_fail() -> None:
    with pytest.raises(ph.SolveError, match="NaN"):
        ph.capture(smoothed, line(1.0) * float("nan"))
    with pytest.raises(ph.SolveError, match="missed its tolerance.*ConjugateGradient\\(max_iterations=…\\)") as error:
        ph.capture(flow, velocity("inflow"), solver=ConjugateGradient(max_iterations=1))
    assert 1e-5 < error.value.residual < 1 and error.value.iterations == 1
    with pytest.raises(ph.SolveError, match="FastDiagonalization.* does not apply"):
        ph.capture(flow, velocity("inflow"), solver=METHODS["fast"])


def test_iterations_that_fail_in_a_captured_step() -> None:
    """The example is at rest, so that there is nothing to iterate."""
    rest = 0 * velocity("open")
    block = ph.capture(around, rest, check=False, solver=ConjugateGradient(max_iterations=1))
    with pytest.raises(ph.SolveError, match="missed its tolerance") as error:
        block(velocity("open"))
    assert 1e-5 < error.value.residual < 1 and error.value.iterations == 1


def test_gradients_that_are_not_finite() -> None:
    block = ph.capture(smoothed, line(1.0))
    (leaf,) = block.flatten(line(1.0))
    (y,) = block.native(leaf.requires_grad_())
    with pytest.raises(ph.SolveError, match="NaN"):
        y.backward(torch.full_like(y, float("nan")))


@pytest.mark.parametrize("captured", [True, False])
def test_rollouts_keep_what_was_computed(captured: bool) -> None:
    u, push = line(1.0, 2.0), pushes(5, bad=2)
    step = ph.capture(pushed) if captured else pushed
    with pytest.raises(ph.SolveError, match="in step 3 of 5: .*NaN") as error:
        ph.rollout(step, u, 5, push)
    assert error.value.step == 3 and np.isnan(error.value.residual)
    expected = ph.rollout(step, u, 2, push)
    math.assert_close(error.value.trajectory.values, expected.values, abs_tolerance=0, rel_tolerance=0)
    assert error.value.trajectory.shape.get_size("time") == 3


def test_unchecked_rollouts_fail_likewise() -> None:
    with pytest.raises(ph.SolveError) as error:
        ph.rollout(ph.capture(squared), line(1.0, 1e3), 9, check=False)
    assert error.value.step == 4 and error.value.trajectory.shape.get_size("time") == 4


@pytest.mark.parametrize("captured", [True, False])
def test_evaluation_goes_on_with_the_other_trajectories(captured: bool) -> None:
    """Two of four trajectories fail, in steps 4 and 3."""
    scales = (1.0, 1e3, 0.5, 1e5)
    data = ph.Trajectories.generate(ph.capture(smoothed), line(*scales), 6, progress=False)
    step = ph.capture(squared) if captured else squared
    found = ph.evaluate({"squared": step}, data)
    assert torch.isfinite(found.mae["squared"]).sum(1).tolist() == [6, 3, 6, 2]
    alone = ph.evaluate({"squared": step}, data[[0, 2]])
    torch.testing.assert_close(found.mae["squared"][[0, 2]], alone.mae["squared"], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.nrmse["squared"][[0, 2]], alone.nrmse["squared"], rtol=1e-6, atol=0)
    assert found.summary()["squared"]["blow_up"] == 0.5
    first = ph.evaluate({"squared": step}, data[[1]])
    torch.testing.assert_close(found.mae["squared"][1, :3], first.mae["squared"][0, :3], rtol=1e-6, atol=0)


class Reckless(torch.optim.SGD):
    """Moves the weights far away before it asks for the loss of its second update, as line searches do."""

    def step(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:
        self.updates = getattr(self, "updates", 0) + 1
        if self.updates == 2:
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.fill_(1e30)
        return super().step(closure)


def test_training_restores_the_weights() -> None:
    data = ph.Trajectories.generate(ph.capture(squared), line(1.0, 0.5), 3, progress=False)
    solver = ph.HybridSolver(ph.capture(squared), SmallNet(1, 1, 1))
    optimizer = Reckless(solver.parameters(), 1e-3)
    trainer = ph.Trainer(solver, data, ph.Unrolled(2), optimizer=optimizer, batch_size=2, progress=False)
    trainer.fit(1)
    before = copy.deepcopy(solver.state_dict())
    with pytest.raises(ph.SolveError, match="at update 1: .*NaN or infinite") as error:
        trainer.fit(5)
    assert error.value.step == 1 and trainer.update == 1
    assert all(torch.equal(a, b) for a, b in zip(solver.state_dict().values(), before.values()))
    assert any(bool(p.any()) for p in solver.parameters())


@pytest.mark.parametrize(("every", "stored"), [(1, 4), (2, 2)])
def test_reference_solvers_that_fail(every: int, stored: int, tmp_path: Path) -> None:
    with pytest.raises(ph.DataError, match=f"reference solver failed in stored step {stored}: .*NaN") as error:
        ph.Trajectories.generate(
            ph.capture(squared), line(1.0, 1e3), 9, every=every, path=tmp_path / "data.h5", progress=False
        )
    assert isinstance(error.value.__cause__, ph.SolveError)
    assert list(tmp_path.iterdir()) == []
