"""Grids whose dims are declared in any order: captured steps give what PhiFlow gives for the user's own arguments."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases.small import noise, same
from cases.steps import burgers
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    Box,
    CenteredGrid,
    Field,
    Noise,
    Solve,
    StaggeredGrid,
    advect,
    diffuse,
    field,
    fluid,
    math,
    spatial,
)

import phi_hybrid as ph

CELLS, SIZE = {"x": 6, "y": 8, "z": 4}, {"x": 10.0, "y": 1.0, "z": 3.0}
ORDERS = ["xy", "yx", "zyx", "yzx", "xzy"]


def grid(kind: type, order: str, boundary: object = PERIODIC) -> Field:
    return kind(Noise(), boundary, Box(**{d: SIZE[d] for d in order}), **{d: CELLS[d] for d in order})


STEPS = {
    "diffusion": lambda u: diffuse.explicit(u, 0.01, 0.1),
    "advection": lambda u: advect.semi_lagrangian(u, u.with_values(1.0) * field.spatial_gradient(u), 0.1),
    "gradient": field.spatial_gradient,
    "flip": lambda u: u.with_values(u.values[{u.resolution.names[0]: slice(None, None, -1)}]),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", STEPS)
def test_centred_steps_are_as_in_plain_phiflow(name: str, order: str) -> None:
    boundary = (PERIODIC, 0, ZERO_GRADIENT)[(list(STEPS).index(name) + ORDERS.index(order)) % 3]  # each meets each
    u, step = grid(CenteredGrid, order, boundary), STEPS[name]
    assert same(ph.capture(step, u, check=False)(u), step(u))


@pytest.mark.parametrize("order", ["yx", "zyx", "yzx"])
def test_staggered_steps_are_as_in_plain_phiflow(order: str) -> None:
    v = grid(StaggeredGrid, order)
    assert same(ph.capture(burgers, v, check=False)(v), burgers(v))


def test_projection_on_a_grid_declared_y_before_x() -> None:
    v = grid(StaggeredGrid, "yx", 0)
    block = ph.capture(lambda v: fluid.make_incompressible(v, solve=Solve("CG", 1e-6))[0], v, check=False)
    after, before = (float(math.max(abs(field.divergence(u).values))) for u in (block(v), v))
    assert after < 1e-4 * before


def test_reductions_by_position_are_over_the_users_dim() -> None:
    t, total = math.random_normal(spatial(y=5, x=4)), lambda t: math.cumulative_sum(t, t.shape[0])
    assert same(ph.capture(total, t)(t), total(t))


@pytest.mark.parametrize("kind", [CenteredGrid, StaggeredGrid])
def test_networks_see_x_before_y_whatever_was_declared_first(kind: type) -> None:
    fields = {}
    for order in ("xy", "yx"):
        v = grid(kind, order)
        values = {d: noise(6, 8, seed=n) for n, d in enumerate("xy")}
        wrapped = {d: math.wrap(values[d], spatial("x,y")) for d in order}
        if kind is StaggeredGrid:
            fields[order] = v.with_values(math.stack(wrapped, math.dual("vector")))
        else:
            fields[order] = v.with_values(wrapped["x"])
    channels = {order: ph.bridge.to_channels(v) for order, v in fields.items()}
    assert channels["yx"].shape[2:] == (6, 8)
    own = channels["yx"].flip(1)  # components in the order of the vector
    assert torch.equal(channels["xy"], own)
    back = ph.bridge.from_channels(channels["yx"], fields["yx"])
    assert same(back, fields["yx"])


def test_orders_are_told_apart() -> None:
    layouts = {"".join(o): ph.bridge.flatten(grid(CenteredGrid, "".join(o)))[1] for o in itertools.permutations("xyz")}
    assert len(set(layouts.values())) == 6


def test_a_block_takes_both_orders() -> None:
    block = ph.capture(STEPS["diffusion"], check=False)
    for order in ("xy", "yx", "xy"):
        u = grid(CenteredGrid, order)
        assert same(block(u), STEPS["diffusion"](u))


def test_files_keep_the_order(tmp_path) -> None:  # noqa: ANN001
    u = grid(CenteredGrid, "yx")
    data = ph.Trajectories.generate(STEPS["diffusion"], u, 2, path=tmp_path / "d.h5", coarsen=2, progress=False)
    loaded = ph.Trajectories.load(tmp_path / "d.h5")
    assert loaded.state_layout == data.state_layout and loaded.trajectory.resolution.names == ("y", "x")
    assert torch.equal(loaded.states[0], data.states[0])
