"""States other than fields on grids with constant boundaries: bodies, particles, meshes, fields beside other fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from phi import geom
from phi.geom import UniformGrid
from phi.geom._geom import NoGeometry
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Cuboid,
    Field,
    Obstacle,
    Point,
    PointCloud,
    Solve,
    Sphere,
    StaggeredGrid,
    Tensor,
    batch,
    channel,
    extrapolation,
    instance,
    math,
    spatial,
    stack,
    union,
    vec,
)
from phiml.dataclasses import sliceable

from cases.states import noise


@sliceable
@dataclass(frozen=True)
class Swarm:
    """A dataclass of tensors, as users write it."""

    position: Tensor
    velocity: Tensor
    name: str = "swarm"
    variable_attrs: tuple[str, ...] = ("position", "velocity")


class Pair:
    """A class that names its tensors to PhiML."""

    def __init__(self, first: Any, second: Any, title: str) -> None:
        self.first, self.second, self.title = first, second, title

    def __variable_attrs__(self) -> tuple[str, ...]:
        return "first", "second"

    def __value_attrs__(self) -> tuple[str, ...]:
        return ("first",)


def points(count: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random positions in the unit square, `(particles, vector)`."""
    native = noise(count, 2, seed=seed, dtype=torch.float64).sigmoid().to(dtype)
    with math.precision(torch.finfo(dtype).bits):
        return math.wrap(native, instance("particles"), channel(vector="x,y"))


def mesh() -> geom.Mesh:
    """A square with a hole, made anew at each call."""
    return geom.build_mesh(Box(x=1, y=1), x=4, y=4, obstacles=Box(x=(0.3, 0.6), y=(0.3, 0.6)))


def on_mesh(wall: Any = 1) -> Field:
    """A temperature on the mesh, with boundaries by name."""
    sides = {"x-": wall, "x+": ZERO_GRADIENT, "y": ZERO_GRADIENT, "obstacle": 0}
    return Field(mesh(), math.tensor(0.25), sides)


def number(value: float = 0.5) -> Tensor:
    """A 0-dimensional torch tensor."""
    return math.wrap(torch.tensor(value))


def inflow() -> Field:
    """Velocity profile of one cell along x."""
    values = math.wrap(noise(1, 8, 2), spatial("x,y"), channel(vector="x,y"))
    return CenteredGrid(values, ZERO_GRADIENT, bounds=Box(x=2.0, y=2.0))


def bounded_by(boundary: Any) -> Field:
    """Centred scalar field `(x, y)`."""
    return CenteredGrid(math.wrap(noise(4, 3), spatial("x,y")), boundary, bounds=Box(x=2.0, y=2.0))


def faces_bounded_by(boundary: Any) -> Field:
    """Velocity on faces."""
    return StaggeredGrid(
        lambda x, y: vec(x=math.sin(x + y), y=math.cos(x)), boundary, x=4, y=3, bounds=Box(x=2.0, y=2.0)
    )


def neighbours() -> Tensor:
    """Sparse distances between points, `(particles, ~particles)`."""
    return math.vec_length(math.pairwise_distances(points(), max_distance=0.5, format="coo"))


TWO = batch("case")
BAR = Cuboid(vec(x=1.0, y=2.0), x=1, y=2)
MASK = math.wrap([True, False, True], spatial("y"))
BODIES: dict[str, Callable[[], Any]] = {
    "sphere": lambda: Sphere(x=1, y=2, radius=3),
    "sphere on torch": lambda: Sphere(math.tensor(vec(x=1.0, y=2.0)), radius=number()),
    "spheres by volume": lambda: Sphere(points(), volume=0.1),
    "box": lambda: Box(x=1, y=(1, 2)),
    "cuboid": lambda: BAR,
    "turned once": lambda: BAR.rotated(0.1),
    "turned twice": lambda: BAR.rotated(0.1).rotated(0.2),
    "turned in 3D": lambda: Cuboid(vec(x=1.0, y=2.0, z=0.0), x=1, y=2, z=1).rotated(vec(x=0.1, y=0.2, z=0.3)),
    "infinite box": lambda: Box(x=None, y=(1.0, 2.0)),
    "half space": lambda: Box(x=(None, 1.0), y=(1.0, 2.0)),
    "cylinder": lambda: geom.cylinder(vec(x=0.0, y=0.0, z=1.0), 1.0, 2.0),
    "infinite cylinder": lambda: geom.infinite_cylinder(x=1, y=2, radius=1, inf_dim="z"),
    "embedded": lambda: geom.embed(Sphere(x=1, y=2, radius=3), "z"),
    "union of one kind": lambda: union(Sphere(x=1, y=2, radius=3), Sphere(x=2, y=2, radius=1)),
    "union of two kinds": lambda: union(Sphere(x=1, y=2, radius=3), Box(x=1, y=1)),
    "stack along a batch": lambda: stack([Sphere(x=1, y=1, radius=1), Box(x=2, y=3)], batch("case")),
    "intersection": lambda: geom.intersection(Sphere(x=1, y=2, radius=3), Box(x=1, y=1)),
    "no geometry": lambda: NoGeometry(channel(vector="x,y")),
    "inverted": lambda: ~Sphere(x=1, y=2, radius=3),
    "point": lambda: Point(points()),
    "one body per entry": lambda: Sphere(math.wrap([(4.0, 8.0), (8.0, 8.0)], TWO, channel(vector="x,y")), radius=2.0),
    "heights": lambda: geom.Heightmap(
        math.wrap(noise(4, 4).sigmoid(), spatial("x,y")), Box(x=1, y=1, z=2), max_dist=0.1
    ),
    "signed distances": lambda: geom.sample_sdf(Sphere(x=1, y=1, radius=0.5), Box(x=2, y=2), x=4, y=4),
    "obstacle at rest": lambda: Obstacle(Sphere(x=1, y=2, radius=3)),
    "moving obstacle": lambda: Obstacle(Sphere(x=1, y=2, radius=3), velocity=(1, 0), angular_velocity=0.3),
    "graph": lambda: geom.graph(points(), neighbours()),
    "mesh": mesh,
    "grid": lambda: UniformGrid(x=3, y=4),
}
FIELDS: dict[str, Callable[[], Any]] = {
    "particles": lambda: PointCloud(Point(points()), vec(x=1.0, y=0.0)),
    "balls": lambda: Field(Sphere(points(), radius=0.1), math.zeros(points().shape), PERIODIC),
    "field on a mesh": on_mesh,
    "field on a mesh beside a wall": lambda: on_mesh(number()),
    "number at a side": lambda: bounded_by({"x-": number(), "x+": 0, "y": ZERO_GRADIENT}),
    "number at all sides": lambda: bounded_by(number()),
    "number per entry": lambda: bounded_by(math.wrap([1, 2], TWO)),
    "vector on torch": lambda: faces_bounded_by({"x-": vec(x=number(), y=0.0), "x+": ZERO_GRADIENT, "y": 0}),
    "trainable": lambda: bounded_by(math.wrap(torch.ones((), requires_grad=True))),
    "tangential": lambda: faces_bounded_by({"normal": 0, "tangential": number()}),
    "conditional": lambda: bounded_by(extrapolation.where(MASK, PERIODIC, extrapolation.ZERO)),
    "profile": lambda: faces_bounded_by({"x-": inflow().as_boundary(), "x+": ZERO_GRADIENT, "y": 0}),
    "within another": lambda: bounded_by(StaggeredGrid(1.0, 0, x=4, y=4, bounds=Box(x=3.0, y=3.0))["x"]),
    "undefined": lambda: bounded_by(extrapolation.Undefined(inflow()["x"].as_boundary())),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "dataclass": lambda: Swarm(points(), points(seed=1), "flock"),
    "tree class": lambda: Pair(number(), {"u": bounded_by(0), "n": 3}, "two"),
    "sparse": neighbours,
    "boundary": lambda: PERIODIC,
    "boundary with tensors": lambda: inflow().as_boundary(),
    "solve": lambda: Solve("CG", 1e-5, x0=bounded_by(0)),
    "objects": lambda: math.layout(["a", 1.0, None], batch("k")),
    "shape": lambda: spatial(x=4),
}
KINDS = BODIES | FIELDS | OTHERS
