"""Bodies, particles, meshes, boundaries with tensors, tree classes ↔ native tensors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases.bodies import (
    BODIES,
    FIELDS,
    KINDS,
    TWO,
    Pair,
    Swarm,
    bounded_by,
    mesh,
    neighbours,
    number,
    on_mesh,
    points,
)
from cases.small import equal
from phi.geom import UniformGrid
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Cuboid,
    Field,
    Obstacle,
    PointCloud,
    Sphere,
    channel,
    math,
    resample,
    spatial,
    union,
    vec,
)

from phi_hybrid.bridge import flatten, layout, unflatten
from phi_hybrid.errors import StateError

SQUARE = dict(x=8, y=8, bounds=Box(x=4.0, y=4.0))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_with_the_same_tensors(kind: str) -> None:
    state = KINDS[kind]()
    tensors, found = flatten(state)
    back = unflatten(found, tensors)
    again, found_again = flatten(back)
    assert type(back) is type(state)
    assert found_again == found and hash(found_again) == hash(found)
    assert equal(again, tensors) and len(tensors) == len(found.leaves)
    assert all(t.is_contiguous() and layout.matches(found, tensors) for t in tensors)
    assert getattr(back, "shape", None) == getattr(state, "shape", None)


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_of_equal_objects_are_equal_values(kind: str) -> None:
    found, other = flatten(KINDS[kind]())[1], flatten(KINDS[kind]())[1]  # different Python objects
    assert found == other and hash(found) == hash(other)
    travelled = pickle.loads(pickle.dumps(found))
    assert travelled == found and hash(travelled) == hash(found)
    assert copy.deepcopy(found) == found


def test_kinds_have_different_layouts_and_say_how_they_differ() -> None:
    found: dict[layout.Layout, str] = {}
    for name, make in KINDS.items():
        found.setdefault(flatten(make())[1], name)
    alike = {
        "sphere on torch",
        "cuboid",
        "embedded",
        "trainable",
    }  # as the sphere, the box, the cylinder, another number
    assert set(KINDS) - set(found.values()) == alike
    layouts = list(found)
    for a, b in zip(layouts, layouts[1:]):
        assert a != b and a.difference(b) and "Layout" not in a.difference(b)


@pytest.mark.parametrize("kind", [k for k in BODIES if k not in ("no geometry", "mesh", "grid", "heights", "graph")])
def test_bodies_come_back_with_the_same_inside(kind: str) -> None:
    body = BODIES[kind]()
    body = body.geometry if isinstance(body, Obstacle) else body
    names = body.shape.get_item_names("vector")
    where = math.random_uniform(spatial(q=200), channel(vector=names), low=-1.0, high=4.0)
    back = unflatten(*reversed(flatten(body)))
    math.assert_close(back.lies_inside(where), body.lies_inside(where))
    if kind not in ("infinite box", "half space", "infinite cylinder", "point", "embedded"):
        own, its = (b.approximate_signed_distance(where) for b in (back, body))
        math.assert_close(own, its, abs_tolerance=1e-5)


def test_limits_of_a_half_space_survive() -> None:
    for box in (BODIES["half space"](), BODIES["infinite box"](), Box(x=(1.0, None), y=None)):
        back = unflatten(*reversed(flatten(box)))
        for own, its in ((back.lower, box.lower), (back.upper, box.upper)):
            assert np.array_equal(own.numpy("vector"), its.numpy("vector"))
    assert flatten(BODIES["half space"]())[1] != flatten(Box(x=(None, 1.5), y=(1.0, 2.0)))[1]
    finite = flatten(Box(x=None, y=(1.0, 2.0)))[0]
    assert all(torch.isfinite(t).all() for t in finite)  # infinite sides are constants


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_come_back_with_the_same_values_beyond_their_edges(kind: str) -> None:
    field = FIELDS[kind]()
    back = unflatten(*reversed(flatten(field)))
    assert back.is_staggered == field.is_staggered and back.geometry == field.geometry
    math.assert_close(back.values, field.values)
    if field.is_grid and kind not in ("undefined", "conditional", "tangential"):
        math.assert_close(back.pad(1).values, field.pad(1).values)
    if kind == "conditional":
        math.assert_close(back.pad({"x": (1, 1)}).values, field.pad({"x": (1, 1)}).values)


def test_boundaries_of_meshes_keep_their_names() -> None:
    back = unflatten(*reversed(flatten(on_mesh(number(0.7)))))
    assert (
        set(back.boundary.ext) == {"x-", "x+", "y", "obstacle"} and (back.boundary.ext["x-"].value == number(0.7)).all
    )
    assert back.mesh.boundary_faces == on_mesh().mesh.boundary_faces
    assert flatten(on_mesh())[0][0].shape == flatten(on_mesh(number()))[0][0].shape
    assert flatten(on_mesh(1))[1] != flatten(on_mesh(2))[1]


def test_meshes_are_equal_by_content() -> None:
    first, second = mesh(), mesh()
    assert first is not second and flatten(first)[1] == flatten(second)[1]
    moved = first.at(math.where(first.vertices.center > 0.5, 1.01, 1.0) * first.vertices.center)
    assert flatten(moved)[1] != flatten(first)[1]
    trainable = first.at(math.wrap(torch.ones((), requires_grad=True)) * first.vertices.center)
    with pytest.raises(StateError, match=r"Mesh\.vertices.*requires gradients"):
        flatten(trainable)


def test_numbers_of_bodies_take_the_precision_of_the_state() -> None:
    body = Obstacle(Sphere(x=1, y=2, radius=3), velocity=vec(x=1, y=0), angular_velocity=0.25)
    for dtype in (torch.float32, torch.float64):
        beside = math.wrap(torch.ones(2, dtype=dtype), spatial("x"))
        (_, *tensors), _ = flatten((beside, body))
        assert [t.dtype for t in tensors] == [dtype] * 4
        assert [t.tolist() for t in tensors] == [[1, 2], 3, [1, 0], 0.25]
    (integers,), _ = flatten(math.wrap([1, 2], spatial("x")))
    assert integers.dtype == torch.int64  # those of other states are what they are
    on_torch = flatten(Sphere(math.tensor(vec(x=1, y=2)), radius=math.tensor(3)))
    assert [t.dtype for t in on_torch[0]] == [torch.float32] * 2


def test_one_layout_for_all_positions_and_velocities() -> None:
    def obstacle(x: float, speed: Any) -> Obstacle:
        return Obstacle(Box(x=(x, x + 1), y=1), speed, 0.1 * x)

    layouts = [flatten(obstacle(x, (x, 0)))[1] for x in (1.0, 2.0)]
    assert layouts[0] == layouts[1]
    at_rest = flatten(obstacle(1.0, 0))[1]
    assert at_rest != layouts[0] and "velocity" in at_rest.difference(layouts[0])


def test_gradients_reach_every_number_of_a_body() -> None:
    def number(value: float) -> torch.Tensor:
        return torch.tensor(value, requires_grad=True)

    given = [number(v) for v in (1.0, 2.0, 0.5, 0.3, 0.2)]
    x, y, radius, speed, angle = map(math.wrap, given)
    state = {
        "body": Obstacle(Sphere(vec(x=x, y=y), radius=radius), vec(x=speed, y=0.0)),
        "bar": Cuboid(vec(x=1.0, y=1.0), x=1, y=2).rotated(angle),
        "wall": bounded_by({"x-": speed, "x+": 0, "y": ZERO_GRADIENT}),
        "particles": PointCloud(points() + x),
        "all": union(Sphere(vec(x=x, y=y), radius=radius), Box(x=1, y=1)),
    }
    tensors, found = flatten(state)
    back = unflatten(found, tensors)
    total = (
        math.sum(back["body"].geometry.center * (1, 10), "vector")
        + 100 * back["body"].geometry.radius
        + 3 * back["body"].velocity.vector["x"]
        + 7 * back["bar"].rot
        + 5 * back["wall"].boundary.ext["x-"].value
        + math.sum(back["particles"].points.vector["x"], "particles")
        + 2 * back["all"].geometries.union[0].center.vector["y"]
    )
    assert [float(g) for g in torch.autograd.grad(total.native(), given)] == [6.0, 12.0, 100.0, 8.0, 7.0]


def test_batch_dims_can_be_added_to_bodies() -> None:
    state = (bounded_by(number()), Obstacle(Sphere(x=1.0, y=2.0, radius=3.0)), PointCloud(points(), 1.0))
    tensors, found = flatten(state)
    wide = layout.with_batch(found, "case")
    field, body, cloud = unflatten(wide, layout.repeat(tensors, found, wide, {"case": 2}))
    assert all(s.shape.get_size("case") == 2 for s in (field, body, body.geometry, cloud, field.boundary))
    frames = layout.stack([tensors, tensors, tensors], found, "time")
    assert unflatten(frames[1], frames[0])[1].geometry.center.shape.get_size("time") == 3
    assert layout.without(wide, "case") == found


def test_the_same_object_in_another_order_of_attributes_is_equal() -> None:
    sphere = Sphere(x=1.0, y=2.0, radius=3.0)
    other = Sphere(x=1.0, y=2.0, radius=3.0, variable_attrs=("radius", "pos"))
    assert flatten(sphere)[1] == flatten(other)[1]
    fixed = Sphere(x=1.0, y=2.0, radius=3.0, variable_attrs=("pos",))
    tensors, found = flatten(fixed)
    assert len(tensors) == 1 and found != flatten(sphere)[1]
    assert found != flatten(Sphere(x=1.0, y=2.0, radius=3.5, variable_attrs=("pos",)))[1]


# --- constants ---


def test_constants_are_compared_by_their_bits() -> None:
    values = (0.0, -0.0, 0, False, float("nan"), None, "nan", 1.0, 1, True, np.float32(1), np.float64(1), 0j, -0.0 * 1j)
    layouts = [flatten(v)[1] for v in values]
    assert len(set(layouts)) == len({str(v) + type(v).__name__ for v in values})
    assert flatten(float("nan"))[1] == flatten(float("nan"))[1]
    assert flatten({"a": float("nan")})[1] == flatten({"a": np.nan})[1]
    assert flatten(0.0)[1].difference(flatten(-0.0)[1]) == "0.0 and -0.0"


def test_none_and_a_field_are_two_layouts() -> None:
    nothing, something = flatten((None,))[1], flatten((bounded_by(0),))[1]
    assert nothing != something
    assert "None" in nothing.difference(something) and "field" in nothing.difference(something)


def test_constants_of_classes_are_part_of_the_layout() -> None:
    first, second = (flatten(Swarm(points(), points(seed=1), name))[1] for name in ("a", "b"))
    assert first != second and "'a' and 'b'" in first.difference(second)
    titled = [flatten(Pair(number(), number(), title))[1] for title in ("a", "b", "a")]
    assert titled[0] == titled[2] != titled[1]


def test_trainable_constants_are_refused() -> None:
    radius = math.wrap(torch.ones((), requires_grad=True))
    with pytest.raises(StateError, match=r"Sphere\.radius.*requires gradients.*variable_attrs"):
        flatten(Sphere(x=1.0, y=2.0, radius=radius, variable_attrs=("pos",)))
    with pytest.raises(StateError, match=r"Box\.size.*requires gradients"):
        flatten(Box(x=None, y=radius))
    with pytest.raises(StateError, match="requires gradients"):
        flatten(CenteredGrid(0.0, 0, Box(x=radius), x=4))


def test_patterns_of_sparse_tensors_are_constants() -> None:
    tensors, found = flatten(neighbours())
    assert len(tensors) == 1 and flatten(2 * neighbours())[1] == found
    dense = math.dense(unflatten(found, [2 * tensors[0]]))
    math.assert_close(dense, 2 * math.dense(neighbours()))


# --- boundaries ---


def test_numbers_are_constants_and_tensors_are_inputs() -> None:
    for constant in (0, 0.5, vec(x=1.0, y=0.0), np.float64(0.5), {"x": 0, "y": PERIODIC}):
        assert len(flatten(bounded_by(constant))[0]) == 1 and isinstance(
            flatten(bounded_by(constant))[1], layout.FieldLayout
        )
    for value in (
        number(),
        math.tensor(vec(x=1.0, y=0.0)),
        math.wrap([1.0, 2.0], TWO),
        math.wrap([1.0, 2.0], channel("c")),
    ):
        tensors, _ = flatten(bounded_by(value))
        assert len(tensors) == 2 and tensors[1].dtype == torch.float32


def test_a_value_that_equals_another_side_stays_a_value() -> None:
    tensors, found = flatten(bounded_by({"x-": number(0.5), "x+": 0.0, "y": 0.0}))
    zero = [tensors[0], torch.zeros(())]  # as if all sides were the same
    back = unflatten(found, zero)
    math.assert_close(back.pad(1).values, bounded_by(0.0).pad(1).values)
    assert flatten(back)[1] == found


def test_the_order_of_sides_matters_where_it_decides_about_corners() -> None:
    sides = {"x": 1.0, "y": 2.0}
    first, second = (bounded_by({n: sides[n] for n in order}) for order in ("xy", "yx"))
    corners = [f.pad(1).values.x[0].y[0].numpy() for f in (first, second)]
    assert corners[0] != corners[1]  # in PhiFlow
    assert flatten(first)[1] != flatten(second)[1]
    with_tensors = [bounded_by({n: math.wrap(torch.tensor(sides[n])) for n in order}) for order in ("xy", "yx")]
    backs = [unflatten(*reversed(flatten(f))) for f in with_tensors]
    assert [f.pad(1).values.x[0].y[0].numpy() for f in backs] == corners


def test_kinds_of_sides_are_known_beside_tensors() -> None:
    assert dict(flatten(FIELDS["profile"]())[1].boundary_kinds) == {
        "x-": "field",
        "x+": "zero-gradient",
        "y-": "constant",
        "y+": "constant",
    }
    plain, with_tensor = ({"x-": v, "x+": PERIODIC, "y": ZERO_GRADIENT} for v in (0.5, number()))
    assert flatten(bounded_by(plain))[1].boundary_kinds == flatten(bounded_by(with_tensor))[1].boundary_kinds
    assert flatten(FIELDS["particles"]())[1].boundary_kinds == ()


class Unknown(type(ZERO_GRADIENT)):
    """A boundary of the user's own."""


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown boundary": (lambda: bounded_by(Unknown(2)), "Unknown.*not supported.*constants"),
    "native attribute": (lambda: Swarm(torch.zeros(3), points()), r"Swarm\.position.*wrap"),
    "array attribute": (lambda: Swarm(np.zeros(3), points()), r"Swarm\.position.*ndarray.*wrap"),
    "network": (lambda: {"net": torch.nn.Linear(1, 1)}, "Linear"),
    "class": (lambda: Sphere, "SphereType"),
    "function": (lambda: {"f": print}, "builtin"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_stays_refused_is_named(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(StateError, match=message):
        flatten(make())


def test_masks_of_bodies_are_those_of_phiflow() -> None:
    grid = CenteredGrid(0.0, 0, **SQUARE)
    for kind in (
        "sphere",
        "box",
        "turned once",
        "turned twice",
        "union of two kinds",
        "inverted",
        "one body per entry",
    ):
        body = BODIES[kind]()
        back = unflatten(*reversed(flatten((grid, body))))[1]
        math.assert_close(resample(back, grid).values, resample(body, grid).values)


def test_values_keep_the_order_of_the_grid_beside_a_tensor() -> None:
    for names in ("xy", "yx"):
        sizes, box = {n: {"x": 3, "y": 4}[n] for n in names}, Box(**{n: 2.0 for n in names})
        values = math.wrap(torch.arange(12.0).reshape(3, 4), spatial("x,y"))
        field = Field(UniformGrid(bounds=box, **sizes), values, number())
        tensors, found = flatten(field)
        assert "".join(a.name for a in found.leaves[0]) == names
        math.assert_close(unflatten(found, tensors).values, values)
