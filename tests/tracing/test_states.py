"""Captured steps on bodies, particles, meshes, and boundaries with tensors: as eager PhiFlow, with all derivatives."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases.bodies import Pair, Swarm, mesh, points
from cases.small import equal, same
from cases.states import noise
from phi import geom
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Cuboid,
    Field,
    Obstacle,
    PointCloud,
    Solve,
    Sphere,
    StaggeredGrid,
    advect,
    batch,
    channel,
    diffuse,
    dual,
    fluid,
    instance,
    math,
    resample,
    spatial,
    union,
    vec,
)

import phi_hybrid as ph
from phi_hybrid.bridge import flatten
from phi_hybrid.errors import CaptureError, StateError

SQUARE = dict(x=8, y=8, bounds=Box(x=8.0, y=8.0))


def velocity(boundary: Any = PERIODIC) -> Field:
    """A smooth velocity on faces."""
    return StaggeredGrid(lambda x, y: vec(x=0.5 + 0.3 * math.sin(y), y=0.4 * math.cos(x)), boundary, **SQUARE)


def scalar(boundary: Any = 0) -> Field:
    """Random values at cell centres."""
    return CenteredGrid(math.wrap(noise(8, 8), spatial("x,y")), boundary, bounds=SQUARE["bounds"])


def moving(v: Field, *bodies: Obstacle) -> tuple:
    bodies = tuple(b.at((b.geometry.center + 0.5 * b.velocity) % SQUARE["bounds"].size) for b in bodies)
    inside = resample(union([b.geometry for b in bodies]), v, soft=True)
    return advect.semi_lagrangian(v, v, 0.5) * (1 - inside), *bodies


def turning(v: Field, bar: Obstacle) -> tuple[Field, Obstacle]:
    bar = bar.rotated(0.5 * bar.angular_velocity)
    return v * (1 - resample(bar.geometry, v, soft=True)), bar


def carried(particles: Field, v: Field) -> tuple[Field, Field]:
    return advect.points(particles, v, 0.2), advect.semi_lagrangian(v, v, 0.2)


def pushed(particles: Field, body: Any) -> tuple[Field, Any]:
    particles = advect.points(particles + 0.1 * vec(x=0.0, y=-9.81), particles, 0.1)
    return fluid.boundary_push(particles, [body, ~SQUARE["bounds"]], separation=0.5), body


def conducted(t: Field) -> Field:
    return t + 1e-3 * diffuse.differential(t, 1.0, correct_skew=False)


def blown(v: Field) -> Field:
    return diffuse.explicit(advect.semi_lagrangian(v, v, 0.5), 0.05, 0.5)


def nested(outer: Field, inner: Field) -> tuple[Field, Field]:
    outer, inner = (advect.semi_lagrangian(v, v, 0.5) for v in (outer, inner))
    return outer, StaggeredGrid(inner, outer, inner.bounds, inner.resolution)


def flown(swarm: Swarm) -> Swarm:
    return Swarm(swarm.position + 0.1 * swarm.velocity, 0.9 * swarm.velocity, swarm.name)


def paired(pair: Pair) -> Pair:
    return Pair(advect.semi_lagrangian(pair.first, velocity(), 0.2), pair.second + 1.0, pair.title)


def stretched(graph: geom.Graph) -> geom.Graph:
    pull = math.sum(math.pairwise_distances(graph.center, format=graph.edges), dual)
    return geom.graph(graph.center + 0.1 * pull, graph.edges)


def bodies() -> tuple[Obstacle, Obstacle]:
    square = Obstacle(Cuboid(vec(x=2, y=6), x=2, y=2), velocity=vec(x=1.0, y=0))
    return square, Obstacle(Sphere(x=4, y=4, radius=1), velocity=(0, 1))


def profile() -> Field:
    values = math.wrap(noise(1, 8, 2), spatial("x,y"), channel(vector="x,y"))
    return CenteredGrid(values, ZERO_GRADIENT, bounds=SQUARE["bounds"])


def cloud() -> Field:
    return PointCloud(Sphere(8 * points(), radius=0.2), vec(x=1.0, y=0.5))


def chain() -> geom.Graph:
    lengths = math.vec_length(math.pairwise_distances(points(), max_distance=0.5, format="coo"))
    return geom.graph(points(), lengths)


BAR = Cuboid(vec(x=4.0, y=4.0), x=1, y=6)
WALLS = {"x-": 1, "x+": ZERO_GRADIENT, "y": ZERO_GRADIENT, "obstacle": 0}
INFLOW = {"x+": ZERO_GRADIENT, "y": 0}
STEPS: dict[str, tuple[Callable, Callable[[], tuple]]] = {
    "moving bodies": (moving, lambda: (velocity(), *bodies())),
    "turned body": (turning, lambda: (velocity(), Obstacle(BAR.rotated(0.1).rotated(0.1), angular_velocity=0.2))),
    "carried particles": (carried, lambda: (PointCloud(8 * points(), 1.0), velocity())),
    "pushed by a body": (pushed, lambda: (cloud(), Obstacle(Box(x=(1, 6), y=(3, 5)).rotated(-0.3)))),
    "pushed by a geometry": (pushed, lambda: (cloud(), Sphere(x=4.0, y=4.0, radius=2.0))),
    "mesh": (conducted, lambda: (Field(mesh(), math.tensor(0.25), WALLS),)),
    "mesh beside a tensor": (conducted, lambda: (Field(mesh(), math.tensor(0.25), WALLS | {"x-": math.tensor(1.0)}),)),
    "inflow profile": (blown, lambda: (velocity(INFLOW | {"x-": profile().as_boundary()}),)),
    "inflow value": (blown, lambda: (velocity(INFLOW | {"x-": vec(x=math.tensor(1.0), y=0.0)}),)),
    "nested grids": (nested, lambda: (velocity(0), StaggeredGrid(0.5, velocity(0), Box(x=(2, 6), y=(2, 6)), x=4, y=4))),
    "dataclass": (flown, lambda: (Swarm(points(), points(seed=1)),)),
    "tree class": (paired, lambda: (Pair(scalar(), math.tensor(0.0), "title"),)),
    "graph": (stretched, lambda: (chain(),)),
}
EXACT = set(STEPS) - {"turned body", "pushed by a body"}  # whose angles PhiFlow computes with in float64, as NumPy does


def state_of(result: Any) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def on_tuple(step: Callable) -> Callable:
    return lambda state: state_of(step(*state))


def assert_equal(a: Any, b: Any, exact: bool) -> None:
    assert flatten(a)[1] == flatten(b)[1], flatten(a)[1].difference(flatten(b)[1])
    for x, y in zip(flatten(a)[0], flatten(b)[0]):
        torch.testing.assert_close(x, y, rtol=0.0 if exact else 1e-6, atol=0.0 if exact else 1e-6)


@pytest.mark.parametrize("kind", STEPS)
def test_steps_and_rollouts_are_those_of_phiflow(kind: str) -> None:
    step, make = STEPS[kind]
    state = make()
    block = ph.capture(on_tuple(step), state)
    captured, eager = [state], state
    for _ in range(2):
        captured, eager = [*captured, block(captured[-1])], state_of(step(*eager))
        assert_equal(captured[-1], eager, kind in EXACT)
    trajectory, layout = flatten(ph.rollout(block, state, 2))
    assert block._captures == 1  # one graph for all positions
    for n, frame in enumerate(captured):
        assert equal([t.select(p, n) for t, p in zip(trajectory, layout.time_axes)], flatten(frame)[0])


@pytest.mark.parametrize("kind", ["mesh beside a tensor", "pushed by a geometry", "dataclass"])
def test_rollouts_of_plain_steps_are_the_same(kind: str) -> None:
    step, make = STEPS[kind]
    state = make()
    assert_equal(ph.rollout(on_tuple(step), state, 2), ph.rollout(ph.capture(on_tuple(step)), state, 2), True)


def test_bodies_that_were_never_turned_can_be_rolled_out() -> None:
    for bar in (BAR, BAR.rotated(0.1)):
        state = scalar(), Obstacle(bar, angular_velocity=0.2)
        field, body = ph.rollout(ph.capture(on_tuple(turning)), state, 3)
        eager = turning(*turning(*turning(*state)))
        assert_equal((field.time[3], body.geometry.rot.time[3]), (eager[0], eager[1].geometry.rot), False)


def test_equal_objects_are_captured_once() -> None:
    block = ph.capture(conducted)
    for _ in range(3):
        block(Field(mesh(), math.tensor(0.25), dict(WALLS)))
    assert block._captures == 1
    block(Field(mesh(), math.tensor(0.25), WALLS | {"x-": 2}))
    assert block._captures == 2


def test_blocks_travel_with_their_states() -> None:
    for kind in ("pushed by a body", "mesh beside a tensor"):
        step, make = STEPS[kind]
        block = ph.capture(step, *make())
        travelled = pickle.loads(pickle.dumps(block))
        assert same(travelled(*make()), block(*make())) and travelled._captures == 1


def test_batches_of_bodies() -> None:
    places = math.wrap(torch.tensor([[2.0, 4.0], [6.0, 4.0]]), batch("case"), channel(vector="x,y"))
    block = ph.capture(moving)
    both, *_ = block(velocity(), Obstacle(Sphere(places, radius=1.0), velocity=vec(x=1.0, y=0.0)))
    for i in range(2):
        single, _ = moving(velocity(), Obstacle(Sphere(places.case[i], radius=1.0), velocity=vec(x=1.0, y=0.0)))
        assert_equal(both.case[i], single, False)


# --- derivatives ---


def gradient_and_difference(f: Callable, given: Sequence[float], h: float = 1e-6) -> tuple[list[float], list[float]]:
    """∂f/∂given by autograd and by central differences, in float64."""
    with math.precision(64):
        leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in given]
        found = torch.autograd.grad(f(*map(math.wrap, leaves)), leaves)
        differences = []
        for i in range(len(given)):
            moved = [
                [torch.tensor(v + s * h * (i == j), dtype=torch.float64) for j, v in enumerate(given)] for s in (1, -1)
            ]
            up, down = (float(f(*map(math.wrap, m))) for m in moved)
            differences.append((up - down) / (2 * h))
    return [float(g) for g in found], differences


def weighted(*values: Any) -> torch.Tensor:
    """Σ wᵢ uᵢ over all tensors of states, with weights that differ from value to value."""
    return sum(
        (t * torch.cos(torch.arange(t.numel(), dtype=t.dtype)).reshape(t.shape)).sum() for t in flatten(values)[0]
    )


def body_step(u: Field, body: Obstacle) -> tuple[Field, Obstacle]:
    body = body.shifted(0.3 * body.velocity).rotated(0.3 * body.angular_velocity)
    return u * (1 - resample(body.geometry, u, soft=True)), body


def ball(x: Any, radius: Any, speed: Any) -> tuple[Any, ...]:
    return scalar64(), Obstacle(Sphere(vec(x=x, y=4.0), radius=radius), vec(x=speed, y=0.5))


def bar(x: Any, size: Any, spin: Any) -> tuple[Any, ...]:
    return scalar64(), Obstacle(Cuboid(vec(x=x, y=4.0), x=size, y=3.0).rotated(0.2), angular_velocity=spin)


def scalar64(boundary: Any = 0) -> Field:
    with math.precision(64):
        values = math.wrap(noise(8, 8, dtype=torch.float64), spatial("x,y"))
        return CenteredGrid(values, boundary, bounds=Box(x=8.0, y=8.0))


def smooth64(boundary: Any) -> Field:
    with math.precision(64):
        return velocity(boundary)


def heated(u: Field, t: Any) -> Field:
    sides = {"x-": t, "x+": 0.25, "y": ZERO_GRADIENT}
    return diffuse.explicit(u.with_boundary(sides), 0.2, 1.0).with_boundary(ZERO_GRADIENT)


def blown_in(v: Field, speed: Any) -> Field:
    v = v.with_boundary(INFLOW | {"x-": vec(x=speed, y=0.1 * speed)})
    return fluid.make_incompressible(advect.semi_lagrangian(v, v, 0.5))[0]


def implicit(u: Field, t: Any) -> Field:
    return diffuse.implicit(
        u.with_boundary({"x-": t, "x+": 0.25, "y": ZERO_GRADIENT}), 0.2, 1.0, Solve("CG", 1e-9, 1e-9)
    )


def drop(x: Any, y: Any) -> tuple[Any, ...]:
    return PointCloud(math.expand(vec(x=x, y=y), instance(p=1)), 1.0), smooth64(PERIODIC)


def with_wall(t: Any) -> tuple[Any, ...]:
    return (Field(mesh(), math.wrap(torch.full((), 0.25, dtype=torch.float64)), WALLS | {"x-": t}),)


def with_profile(a: Any, b: Any) -> tuple[Any, ...]:
    side = CenteredGrid(
        vec(x=a * math.wrap(noise(1, 8, dtype=torch.float64), spatial("x,y")), y=b),
        ZERO_GRADIENT,
        **{"bounds": SQUARE["bounds"]},
    )
    return (smooth64(INFLOW | {"x-": side.as_boundary()}),)


DERIVATIVES: dict[str, tuple[Callable, Callable[..., tuple], tuple[float, ...]]] = {
    "position, radius, velocity of a ball": (body_step, ball, (3.3, 1.7, 0.4)),
    "position, size, spin of a bar": (body_step, bar, (4.2, 1.3, 0.4)),
    "position of a particle": (carried, drop, (3.3, 4.1)),
    "wall of a mesh": (conducted, with_wall, (0.7,)),
    "inflow profile": (lambda u: diffuse.explicit(u, 0.05, 0.5), with_profile, (0.7, 0.3)),
    "number at a side": (heated, lambda t: (scalar64(ZERO_GRADIENT), t), (0.9,)),
    "number of the state's own boundary": (
        lambda u: diffuse.explicit(u, 0.2, 1.0),
        lambda t: (scalar64({"x-": t, "x+": 0.25, "y": 0.1 * t}),),
        (0.9,),
    ),
    "normal and tangential": (
        lambda u: advect.semi_lagrangian(u, smooth64(0), 0.5),
        lambda t: (smooth64({"normal": 0, "tangential": t}),),
        (0.9,),
    ),
    "inflow before a projection": (blown_in, lambda t: (smooth64(INFLOW | {"x-": 0}), t), (0.8,)),
    "wall of implicit diffusion": (implicit, lambda t: (scalar64(ZERO_GRADIENT), t), (0.9,)),
}


@pytest.mark.parametrize("case", DERIVATIVES)
def test_gradients_are_those_of_differences(case: str) -> None:
    step, make, given = DERIVATIVES[case]
    with math.precision(64):
        block = ph.capture(step, *make(*[math.wrap(torch.tensor(v, dtype=torch.float64)) for v in given]))
    found, differences = gradient_and_difference(lambda *leaves: weighted(block(*make(*leaves))), given)
    assert block._captures == 1 and any(abs(d) > 1e-3 for d in differences)
    assert found == pytest.approx(differences, rel=1e-6, abs=1e-6)


def test_transformations_pass_through_bodies() -> None:
    with math.precision(64):
        u, body = ball(*(math.wrap(torch.tensor(v, dtype=torch.float64)) for v in (3.3, 1.7, 0.4)))
        bound = ph.capture(body_step).bind(u, body)
        tensors = bound.flatten(u, body)

        def inside(center: torch.Tensor) -> torch.Tensor:
            return bound.native(tensors[0], center, *tensors[2:])[0].sum()

        center = tensors[1]
        by_reverse, by_forward = torch.func.jacrev(inside)(center), torch.func.jacfwd(inside)(center)
        torch.testing.assert_close(by_forward, by_reverse, rtol=1e-12, atol=1e-12)
        many = torch.stack([center, center + 0.1])
        torch.testing.assert_close(torch.func.vmap(inside)(many), torch.stack([inside(c) for c in many]))


# --- boundary values as inputs ---


def test_a_number_at_a_wall_in_every_form() -> None:
    """One explicit step takes 0.2·T into each of the 8 cells beside the wall."""
    u = CenteredGrid(0.3, ZERO_GRADIENT, **SQUARE)
    t = torch.tensor(0.9, requires_grad=True)
    for value in (
        math.wrap(t),
        math.wrap(t.reshape(1), batch("case")),
        math.wrap(torch.stack([t, 2 * t]), batch("case")),
    ):
        block = ph.capture(heated, u, value)
        result = block(u, value)
        count = value.shape.volume
        (gradient,) = torch.autograd.grad(math.sum(result.values, result.values.shape).native(), t)
        assert float(gradient) == pytest.approx(1.6 * (1 if count == 1 else 3), rel=1e-6)
        assert same(result, heated(u, value)) and block._captures == 1


def test_a_number_at_a_wall_that_changes_with_time() -> None:
    u = CenteredGrid(0.3, ZERO_GRADIENT, **SQUARE)
    values = [0.1, 0.5, 0.9]
    series = math.wrap(torch.tensor(values), batch("time"))
    block = ph.capture(heated)
    trajectory, expected = ph.rollout(block, u, 3, series), u
    for n, value in enumerate(values):
        expected = heated(expected, value)  # a Python number
        math.assert_close(trajectory.time[n + 1].values, expected.values, rel_tolerance=1e-6)
    assert block._captures == 1
    math.assert_close(ph.rollout(heated, u, 3, series).values, trajectory.values, rel_tolerance=0)


def test_a_result_keeps_the_tensor_at_its_boundary() -> None:
    def step(u: Field, t: Any) -> Field:
        return u.with_boundary({"x-": t, "x+": 0, "y": ZERO_GRADIENT}) * 2.0

    t = torch.tensor(0.5, requires_grad=True)
    block = ph.capture(step, scalar(ZERO_GRADIENT), math.wrap(t))
    result = block(scalar(ZERO_GRADIENT), math.wrap(t))
    assert same(result, step(scalar(ZERO_GRADIENT), math.wrap(t)))
    (gradient,) = torch.autograd.grad(result.pad({"x": (1, 0)}).values.native("x,y").sum(), t)
    assert float(gradient) == 8.0
    again = ph.capture(step)
    for _ in range(3):
        result = again(result, math.wrap(t + 1))
    assert again._captures == 1  # whatever the value
    with pytest.raises(StateError, match="cannot be repeated.*field.*Field"):
        ph.rollout(block, scalar(ZERO_GRADIENT), 2, math.wrap(t))


# --- constants ---


def test_none_at_first_and_a_field_later_are_two_graphs() -> None:
    def step(v: Field, p: Field | None) -> tuple[Field, Field]:
        return fluid.make_incompressible(v, (), Solve("CG", 1e-5, 1e-5, x0=p))

    block, state = ph.capture(step), (velocity(0), None)
    for _ in range(4):
        state = block(*state)
    assert block._captures == 2


def test_constants_are_captured_by_their_bits() -> None:
    block = ph.capture(lambda u, a: u * a)
    for value, captures in ((0.0, 1), (-0.0, 2), (0.0, 2), (float("nan"), 3), (float("nan"), 3), (0, 4), (False, 5)):
        block(scalar(), value)
        assert block._captures == captures


def test_constants_that_depend_on_the_inputs_are_refused() -> None:
    def step(s: Swarm) -> Swarm:
        return Swarm(s.position, s.velocity * 2.0, s.name, variable_attrs=("position",))

    with pytest.raises(CaptureError, match=r"Swarm\.velocity.*depends on the inputs.*variable_attrs"):
        ph.capture(step, Swarm(points(), points(seed=1)))


def test_steps_whose_results_change_in_kind_are_refused() -> None:
    def counted(state: tuple) -> tuple:
        u, n = state
        return u, n + 1

    def rounded(state: dict) -> dict:
        return {"u": state["u"], "n": state["n"] + 0.5}

    with pytest.raises(StateError, match="cannot be repeated.*0 and 1"):
        ph.rollout(counted, (scalar(), 0), 2)
    with pytest.raises(StateError, match="int64.*float32.*to_float"):
        ph.rollout(rounded, {"u": scalar(), "n": math.wrap(torch.tensor(1))}, 2)
