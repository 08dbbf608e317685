"""Fields ↔ network channels, against explicit loops over the faces."""

from __future__ import annotations

import pytest
import torch
from cases.bodies import BODIES, FIELDS
from cases.small import equal, same
from cases.states import (
    MORE_BOUNDARIES,
    RESOLUTION,
    cells_of_faces,
    component_values,
    faces_of_cells,
    field_of,
    names,
    noise,
    random_field,
    random_leaves,
)
from phi.torch.flow import batch, channel, instance, math, spatial

from phi_hybrid.bridge import ChannelMap, flatten, from_channels, to_channels, unflatten
from phi_hybrid.errors import StateError


def _flat(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Two batch dims in one."""
    return [t.flatten(0, 1) for t in leaves]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", MORE_BOUNDARIES)
def test_channels_are_loops_over_faces(kind: str, dims: int) -> None:
    dtype = torch.float64 if dims == 2 else torch.float32
    leaves = random_leaves("staggered", kind, dims, (2, 3), dtype)
    u = field_of(leaves, "staggered", kind, dims, ("a", "b"))
    seen = to_channels(u)
    assert equal(
        [seen], [torch.stack([cells_of_faces(t, kind, dims, c) for t, c in zip(_flat(leaves), names(dims))], 1)]
    )
    channels = noise(6, dims, *RESOLUTION[dims].values())
    result = from_channels(channels, u)
    assert result.boundary == u.boundary and result.bounds == u.bounds
    found = _flat(component_values(result, ("a", "b")))
    for c, component in enumerate(names(dims)):
        assert torch.equal(found[c], faces_of_cells(channels[:, c], kind, dims, component).to(found[c]))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("placement", ["scalar", "vector"])
def test_centred_fields_round_trip(placement: str, dims: int) -> None:
    (leaf,) = leaves = random_leaves(placement, "inflow", dims, (2, 3))
    u = field_of(leaves, placement, "inflow", dims, ("a", "b"))
    channels = to_channels(u)
    assert torch.equal(
        channels, leaf.flatten(0, 1).movedim(-1, 1) if placement == "vector" else leaf.reshape(6, 1, *leaf.shape[2:])
    )
    assert same(from_channels(channels, u), u)


def test_no_batch_is_a_batch_of_one() -> None:
    u = random_field("staggered", "closed", 2)
    channels = to_channels(u)
    assert channels.shape == (1, 2, 6, 5)
    assert from_channels(channels, u).values.shape.batch.rank == 0


def test_batch_dims_are_flattened_in_alphabetical_order() -> None:
    (leaf,) = leaves = random_leaves("scalar", "open", 1, (2, 3))
    channels = to_channels(field_of(leaves, "scalar", "open", 1, ("time", "b")))
    assert torch.equal(channels, leaf.transpose(0, 1).reshape(6, 1, 7))


@pytest.mark.smoke
def test_several_inputs_are_broadcast_and_concatenated() -> None:
    (u,) = random_leaves("scalar", "open", 2, (2,), seed=0)
    v = random_leaves("staggered", "closed", 2, (3,), seed=1)
    (w,) = random_leaves("vector", "inflow", 2, (), seed=2)
    nu = torch.tensor([0.25, 0.5])  # Reynolds number per trajectory
    pair = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    channels = to_channels(
        field_of([u], "scalar", "open", 2, ("b",)),
        field_of(v, "staggered", "closed", 2, ("a",)),
        field_of([w], "vector", "inflow", 2),
        math.wrap(nu, batch("b")),
        math.wrap(pair, batch("a"), channel(parameter="mass,charge")),
        math.wrap(torch.tensor(7.0)),
    )
    assert channels.shape == (6, 1 + 2 + 2 + 1 + 2 + 1, 6, 5)
    cells = [cells_of_faces(t, "closed", 2, c) for t, c in zip(v, "xy")]
    for a in range(3):
        for b in range(2):
            row = channels[a * 2 + b]
            assert torch.equal(row[0], u[b])
            assert torch.equal(row[1], cells[0][a]) and torch.equal(row[2], cells[1][a])
            assert torch.equal(row[3:5], w.movedim(-1, 0))
            assert bool((row[5] == nu[b]).all())
            assert bool((row[6] == pair[a, 0]).all()) and bool((row[7] == pair[a, 1]).all())
            assert bool((row[8] == 7.0).all())


def test_several_states_come_back() -> None:
    u, rho = random_field("staggered", "open", 2, b=2), random_field("scalar", "open", 2, seed=1, b=2)
    channels = noise(2, 3, 6, 5)
    back = from_channels(channels, (u, rho))
    assert torch.equal(component_values(back[1], "b")[0], channels[:, 2])
    assert torch.equal(component_values(back[0], "b")[0], faces_of_cells(channels[:, 0], "open", 2, "x"))


def test_values_without_spatial_dims_take_nothing_back() -> None:
    u, nu = random_field("scalar", "open", 1, b=2), math.wrap(torch.ones(()))
    back, zero = from_channels(torch.ones(2, 2, 7), (u, nu))
    assert bool((back.values.native("b,x") == 1).all())
    assert not zero.native(zero.shape).any()


def test_like_without_the_batch_dims_of_the_channels() -> None:
    """A map can carry more batch dims than its layout: those of other network inputs."""
    u = random_field("staggered", "closed", 2)
    tensors, layout = flatten(u)
    channel_map = ChannelMap(layout, batch=["time"])
    assert channel_map.batch == ["time"] and channel_map.channels == 2
    channels = noise(4, 2, 6, 5)
    natives = channel_map.from_channels(channels, [4])
    assert [tuple(t.shape) for t in natives] == [(4, 5, 5), (4, 6, 4)]
    assert torch.equal(natives[1], faces_of_cells(channels[:, 1], "closed", 2, "y"))
    assert len(unflatten(layout, tensors).shape) == len(u.shape)


def test_channels_are_differentiable_and_linear_in_the_owned_faces() -> None:
    leaves = [t.requires_grad_() for t in random_leaves("staggered", "inflow", 2, (2,))]
    channels = to_channels(field_of(leaves, "staggered", "inflow", 2, ("b",)))
    gradients = torch.autograd.grad((channels**2).sum() / 2, leaves)
    assert torch.equal(gradients[0], leaves[0])  # periodic: all owned
    assert torch.equal(gradients[1][..., :-1], leaves[1][..., :-1]) and not gradients[1][..., -1].any()


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 2, 5, 6), (2, 2, 7, 6), (1, 2, 6, 5), (2, 2, 6)])
def test_wrong_network_output_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(StateError, match=r"\(2, 2, 6, 5\)"):
        from_channels(torch.zeros(shape), random_field("staggered", "open", 2, b=2))


def test_unfit_states_are_refused() -> None:
    fine = random_field("scalar", "open", 2)
    coarse = math.wrap(torch.zeros(3, 5), spatial("x,y"))
    with pytest.raises(StateError, match="one grid resolution"):
        to_channels(fine, coarse)
    with pytest.raises(StateError, match="one grid resolution.*no spatial dims"):
        to_channels(math.wrap(torch.zeros(())))
    with pytest.raises(StateError, match="points"):
        to_channels(fine, math.wrap(torch.zeros(3), instance("points")))
    for strange in (BODIES["sphere"](), FIELDS["number at a side"](), FIELDS["particles"]()):
        with pytest.raises(StateError, match="cannot be network channels.*sees="):
            to_channels(fine, strange)
