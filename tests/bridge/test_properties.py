"""What holds for all states: nothing is lost on the way to tensors and network channels, and back."""

from __future__ import annotations

import pickle
import re

import torch
from cases.domains import Domain, domains
from cases.drawn import few, fields, identical, made, random_tensor, states, structure
from cases.small import equal
from hypothesis import given
from hypothesis import strategies as st
from phi.torch.flow import Field

from phi_hybrid.bridge import flatten, from_channels, to_channels, unflatten

PRECISION = st.sampled_from([32, 64])


@few(40)
@given(states(), PRECISION)
def test_a_state_comes_back(text: str, precision: int) -> None:
    state = made(text, precision)
    tensors, layout = flatten(state)
    back = unflatten(layout, tensors)
    assert identical(back, state)
    again, found = flatten(back)
    assert found == layout and equal(again, tensors)
    assert all(t.is_contiguous() and t.dim() == len(axes) for t, axes in zip(tensors, layout.leaves, strict=True))


@few(20)
@given(states())
def test_values_and_sizes_of_batches_are_not_part_of_a_layout(text: str) -> None:
    wide = re.sub(r"batch\([^)]*\)", lambda dims: re.sub(r"=\d", "=5", dims[0]), text)
    drawn = [made(text), made(text, 64, seed=1), made(wide)]
    layout, *others = [flatten(state)[1] for state in drawn]
    for other in (*others, pickle.loads(pickle.dumps(layout))):
        assert layout == other and hash(layout) == hash(other)


NARROW = [Domain((("x", 0.0, size), ("y", 0.0, 1.0)), (3, cells)) for size in (1.0, 2.0) for cells in (3, 4)]
BATCH = st.sampled_from(["batch()", "batch(b=2)", "batch(c=2)", "batch(b='low,high')"])


@few(10)
@given(st.lists(st.sampled_from(NARROW).flatmap(lambda d: fields(d, BATCH)), min_size=5, max_size=5))
def test_layouts_are_equal_for_equal_structure_alone(texts: list[str]) -> None:
    drawn = [made(text, seed=n) for n, text in enumerate((*texts, texts[0]))]
    known = [(flatten(state)[1], structure(state)) for state in drawn]
    for layout, words in known:
        for other, others in known:
            assert (layout == other) == (words == others)


# --- channels ---


def components(field: Field) -> list[tuple[str | None, torch.Tensor]]:
    """Values `(batch, *spatial)` of every component, dims in alphabetical order, and the dim that its faces are normal to."""
    names = field.resolution.names
    values = [(n, field.values[{"~vector": n}]) for n in names] if field.is_staggered else [(None, field.values)]
    found = []
    for normal, part in values:
        batch, spatial, channel = (sorted(getattr(part.shape, k).names) for k in ("batch", "spatial", "channel"))
        native = part.native([*batch, *spatial, *channel])
        native = native.reshape(-1, *native.shape[len(batch) : len(batch) + len(spatial)], part.shape.channel.volume)
        found += [(normal, entry) for entry in native.unbind(-1)]
    return found


def stored(cells: torch.Tensor, field: Field, normal: str | None) -> torch.Tensor:
    """Values on stored faces: those of the cells above them; of the cell below for an outer upper one."""
    if normal is None:
        return cells
    axis = 1 + sorted(field.resolution.names).index(normal)
    lower, upper = field.boundary.valid_outer_faces(normal)
    last = cells.shape[axis] - 1
    return cells.index_select(axis, torch.tensor([*range(not lower, last + 1), *[last] * upper]))


@few(10)
@given(domains().flatmap(fields))
def test_axes_are_in_one_order(text: str) -> None:
    """Batch and channel dims by name, spatial dims as the grid declares them."""
    state = made(text)
    for axes in flatten(state)[1].leaves:
        batch, spatial, channel = ([a.name for a in axes if a.kind == k] for k in ("batch", "spatial", "channel"))
        assert [a.name for a in axes] == [*sorted(batch), *state.resolution.names, *sorted(channel)] and spatial


@few(40)
@given(domains().flatmap(fields))
def test_a_correction_on_owned_faces_is_mapped_without_loss(text: str) -> None:
    like = made(text)
    shown = to_channels(like)
    correction = random_tensor(*shown.shape, like=shown)
    state = from_channels(correction, like)
    assert structure(state) == structure(like)
    assert shown.shape[1] == len(components(like))
    again = to_channels(state)
    for number, ((normal, corrected), (_, values)) in enumerate(zip(components(state), components(like))):
        assert torch.equal(corrected, stored(correction[:, number], like, normal))
        assert torch.equal(stored(again[:, number], like, normal), corrected)
        if normal is None or not like.boundary.valid_outer_faces(normal)[1]:  # no cell shows an outer upper face
            assert torch.equal(stored(shown[:, number], like, normal), values)
