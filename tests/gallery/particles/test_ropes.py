"""A cloth of nodes and sticks: a graph as argument and result, with a loop of relaxations inside."""

from __future__ import annotations

from cases.gallery import Kind, check_derivatives, check_values
from phi.torch.flow import *

NODES = pack_dims(CenteredGrid(0, x=5, y=4, bounds=Box(x=1, y=0.8)).points, "x,y", instance("nodes"))
HELD = math.scatter(expand(False, instance(NODES)), vec(nodes=[19, 3]), True)


@jit_compile
def step(graph: geom.Graph, v, dt=1.0, gravity=vec(x=0, y=-0.012), sweeps=6):
    v += gravity * dt
    x = graph.center + math.where(HELD, 0, dt * v)
    for _ in range(sweeps):
        sticks = math.pairwise_differences(x, format=graph.edges)
        middle = x + 0.5 * sticks
        along = math.vec_normalize(sticks, epsilon=1e-5)
        x = math.where(HELD, x, math.mean(middle - along * 0.5 * graph.edges, dual))
    v = (x - graph.center) / dt
    return geom.Graph(geom.Point(x), graph.edges, {}), v


def start():
    x = NODES + math.random_uniform(NODES.shape) * 0.01
    sticks = math.pairwise_differences(x, max_distance=0.22, format="coo")
    return geom.Graph(geom.Point(x), math.vec_length(sticks), {}), math.zeros_like(x)


KINDS = {"Ropes": Kind(step, start, rounding=1e-6)}


def test_values() -> None:
    check_values(KINDS["Ropes"])


def test_derivatives_by_gravity_and_nodes() -> None:
    check_derivatives(KINDS["Ropes"], gravity=vec(x=0, y=-0.012), rounding=1e-6)
