"""State ↔ native tensors: lossless, in one order, with layouts that tell states apart."""

from __future__ import annotations

import collections
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import equal, same
from cases.states import (
    BOUNDARIES,
    DTYPE,
    MORE_BOUNDARIES,
    PLACEMENTS,
    component_values,
    field_of,
    noise,
    random_field,
    random_leaves,
)
from phi.torch.flow import (
    PERIODIC,
    Box,
    CenteredGrid,
    Field,
    StaggeredGrid,
    batch,
    channel,
    dual,
    extrapolation,
    instance,
    math,
    spatial,
    vec,
)

from phi_hybrid.bridge import flatten, layout, unflatten
from phi_hybrid.errors import StateError

BATCHES = ({}, {"b": 2}, {"time": 2, "b": 3})


@pytest.mark.parametrize("kind", MORE_BOUNDARIES)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_fields_round_trip(placement: str, kind: str) -> None:
    for number, dims in enumerate((1, 2, 3, 3, 2, 1)):
        bits, batches = (32, 64)[number % 2], BATCHES[number % 3]
        leaves = random_leaves(placement, kind, dims, tuple(batches.values()), DTYPE[bits])
        u = field_of(leaves, placement, kind, dims, tuple(batches))
        tensors, found = flatten(u)
        assert equal(tensors, [t.transpose(0, 1) for t in leaves] if len(batches) == 2 else leaves)  # (b, time)
        assert all(t.is_contiguous() for t in tensors)
        back = unflatten(found, tensors)
        assert back.boundary == u.boundary and back.geometry == u.geometry and back.sampled_at == u.sampled_at
        assert set(back.values.shape.names) == set(u.values.shape.names)
        assert back.values.dtype.precision == bits
        assert equal(component_values(back, tuple(batches)), leaves)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_global_precision_does_not_matter(placement: str) -> None:
    u = random_field(placement, "inflow", 2, dtype=torch.float64, b=2)
    low, low_layout = flatten(u)
    with math.precision(64):
        high, high_layout = flatten(u)
        single, _ = flatten(random_field(placement, "inflow", 2, b=2))
    assert low_layout == high_layout and equal(low, high)
    assert low[0].dtype == torch.float64 and all(t.dtype == torch.float32 for t in single)


def test_axes_are_sorted_by_kind_and_name_but_for_spatial_ones() -> None:
    native = torch.arange(2 * 3 * 4 * 5 * 6.0).reshape(2, 3, 4, 5, 6)
    tensor = math.wrap(native, channel("vector"), spatial("y"), batch("z"), spatial("x"), batch("a"))
    (flat,), found = flatten(tensor)
    assert [a.name for a in found.leaves[0]] == ["a", "z", "y", "x", "vector"]
    assert torch.equal(flat, native.permute(4, 2, 1, 3, 0))
    math.assert_close(unflatten(found, [flat]), tensor)


def test_axes_of_every_kind() -> None:
    native = torch.randn(2, 3, 4, 5)
    tensor = math.wrap(native, spatial("x"), instance("points"), dual(faces="p,q,r,s"), batch("b"))
    flat, found = flatten(tensor)  # one tensor per entry of the dual dim
    assert [[a.name for a in axes] for axes in found.leaves] == [["b", "points", "x"]] * 4
    assert all(torch.equal(t, native[:, :, i].permute(2, 1, 0)) for i, t in enumerate(flat))
    back = unflatten(found, flat)
    assert back.shape.get_item_names("~faces") == ("p", "q", "r", "s")
    assert torch.equal(back.native("x,points,~faces,b"), native)


def test_two_dual_dimensions_stay_in_one_tensor() -> None:
    native = torch.randn(2, 3)
    (flat,), found = flatten(math.wrap(native, dual("q"), dual("p")))
    assert torch.equal(flat, native.T)
    assert torch.equal(unflatten(found, [flat]).native("~q,~p"), native)


def test_labels_of_batch_and_channel_dims_survive() -> None:
    tensor = math.wrap(torch.randn(2, 3), batch(run="low,high"), channel(species="a,b,c"))
    flat, found = flatten(tensor)
    back = unflatten(found, flat)
    assert back.shape.get_item_names("run") == ("low", "high")
    assert back.shape.get_item_names("species") == ("a", "b", "c")
    assert torch.equal(back.native("run,species"), tensor.native("run,species"))


@pytest.mark.smoke
def test_trees_round_trip() -> None:
    u, rho = random_field("staggered", "closed", 2, b=2), random_field("scalar", "open", 2, seed=1)
    state = {"u": u, "rest": [rho, (None, 3, 2.5, "name", True), {}], "nu": math.wrap(torch.tensor(0.5))}
    tensors, found = flatten(state)
    assert [tuple(t.shape) for t in tensors] == [(2, 5, 5), (2, 6, 4), (6, 5), ()]
    back = unflatten(found, tensors)
    assert list(back) == ["u", "rest", "nu"]
    assert type(back["rest"]) is list and type(back["rest"][1]) is tuple
    assert back["rest"][1] == (None, 3, 2.5, "name", True) and back["rest"][2] == {}
    assert same(back, state) and isinstance(back["u"], Field)


def test_numbers_are_told_apart_by_type() -> None:
    layouts = [flatten((x,))[1] for x in (1, 1.0, True, "1", None, 2)]
    assert len(set(layouts)) == len(layouts)
    assert flatten((1.5, None))[1] == flatten((1.5, None))[1]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int32, torch.int64, torch.bool])
def test_other_dtypes_round_trip(dtype: torch.dtype) -> None:
    native = torch.view_as_complex(3 * noise(3, 4, 2, dtype=torch.float64))
    native = native.to(dtype) if dtype.is_complex else native.real.to(dtype)
    (flat,), found = flatten(math.wrap(native, batch("b"), spatial("x")))
    assert flat.dtype == dtype and torch.equal(flat, native)
    with math.precision(64):  # native() casts to the global precision
        assert torch.equal(unflatten(found, [flat]).native("b,x"), native)


def test_numpy_values_take_precision_from_torch_values_beside_them() -> None:
    numbers = math.wrap(np.array([1.0, 2.0, 3.0]), spatial("x"))  # float64
    assert numbers.default_backend.name == "numpy"
    for dtype in DTYPE.values():
        beside = math.wrap(torch.ones(2, dtype=dtype), batch("b"))
        (flat, other), _ = flatten((numbers, beside))
        assert flat.dtype == other.dtype == dtype
        assert torch.equal(flat, torch.tensor([1.0, 2.0, 3.0], dtype=dtype))
    (alone,), _ = flatten(numbers)
    assert alone.dtype == torch.float32  # PhiFlow's precision
    with math.precision(64):
        (alone,), _ = flatten(numbers)
    assert alone.dtype == torch.float64
    (integers,), _ = flatten(math.wrap(np.array([1, 2]), spatial("x")))
    assert integers.dtype == torch.int64


def test_flat_numpy_values_do_not_alias() -> None:
    array = np.zeros(3, np.float32)
    (flat,), _ = flatten(math.wrap(array, spatial("x")))
    array += 1
    assert not flat.any()


def test_gradients_flow_through_flatten_and_unflatten() -> None:
    leaves = [t.requires_grad_() for t in random_leaves("staggered", "open", 2, (2,))]
    u = field_of(leaves, "staggered", "open", 2, ("b",))
    tensors, found = flatten(u)
    back = component_values(unflatten(found, tensors), "b")
    assert equal(torch.autograd.grad(sum((t**2).sum() for t in back), leaves), [2 * t for t in leaves])


def test_layouts_are_values() -> None:
    for placement, kind in zip((*PLACEMENTS, "staggered"), BOUNDARIES):
        u = random_field(placement, kind, 2, b=2)
        (tensors, a), (_, b) = flatten(u), flatten(random_field(placement, kind, 2, seed=1, b=5))
        assert a == b and hash(a) == hash(b) and a is not b  # the size of a batch is open
        copy = pickle.loads(pickle.dumps(a))
        assert copy == a and hash(copy) == hash(a)
        assert same(unflatten(copy, tensors), u)
    labelled = [flatten(math.wrap(torch.zeros(2), batch(b=x)))[1] for x in ("p,q", "p,r")]
    assert labelled[0] != labelled[1]


def test_order_of_boundary_sides_does_not_matter() -> None:
    sides = {"x": PERIODIC, "y": extrapolation.ZERO_GRADIENT}
    boundaries = [extrapolation.combine_sides({n: sides[n] for n in order}) for order in ("xy", "yx")]
    layouts = [flatten(CenteredGrid(1.0, boundary, x=4, y=4))[1] for boundary in boundaries]
    assert layouts[0] == layouts[1]


def test_different_states_have_different_layouts() -> None:
    base: dict[str, Any] = dict(bounds=Box(x=2.0, y=1.5), x=6, y=5)
    closed_by = {"x": 0, "y": PERIODIC}
    states: list[Any] = [
        StaggeredGrid(0.0, PERIODIC, **base),
        StaggeredGrid(0.0, 0, **base),
        StaggeredGrid(0.0, 1, **base),
        StaggeredGrid(0.0, vec(x=0, y=1.0), **base),
        StaggeredGrid(0.0, vec(x=1.0, y=0), **base),
        StaggeredGrid(0.0, closed_by, **base),
        StaggeredGrid(0.0, {"x": PERIODIC, "y": 0}, **base),
        StaggeredGrid(0.0, {"x-": 0, "x+": 1, "y": PERIODIC}, **base),
        StaggeredGrid(0.0, {"x-": 1, "x+": 0, "y": PERIODIC}, **base),
        StaggeredGrid(0.0, extrapolation.ZERO_GRADIENT, **base),
        StaggeredGrid(0.0, PERIODIC, **{**base, "bounds": Box(x=2.0, y=1.6)}),
        StaggeredGrid(0.0, PERIODIC, **{**base, "bounds": Box(x=(1.0, 3.0), y=1.5)}),
        StaggeredGrid(0.0, PERIODIC, **{**base, "y": 6}),
        CenteredGrid(vec(x=0.0, y=0.0), PERIODIC, **base),
        CenteredGrid(0.0, PERIODIC, **base),
        CenteredGrid(0.0, extrapolation.SYMMETRIC, **base),
        CenteredGrid(0.0, PERIODIC, **base).values,
        (CenteredGrid(0.0, PERIODIC, **base),),
        [CenteredGrid(0.0, PERIODIC, **base)],
        {"u": CenteredGrid(0.0, PERIODIC, **base)},
        {"v": CenteredGrid(0.0, PERIODIC, **base)},
    ]
    layouts = [flatten(s)[1] for s in states]
    assert [(i, j) for i, a in enumerate(layouts) for j, b in enumerate(layouts[:i]) if a == b] == []
    assert len(set(layouts)) == len(layouts)


_PRINT_ORDER = """
import sys, torch
sys.path[:0] = [{here!r}]
from phi.torch.flow import batch, channel, math, spatial
from cases.states import random_field
from phi_hybrid.bridge import flatten
u = random_field("staggered", "closed", 3, time=2, b=3, sample=2)
s = random_field("vector", "inflow", 2, zeta=2, alpha=3)
product = random_field("vector", "open", 2, p=2) * math.wrap(torch.ones(3, 2), batch("o"), channel(vector="x,y"))
tensors, layout = flatten((u, s, product))
print([[a.name for a in axes] for axes in layout.leaves], [tuple(t.shape) for t in tensors])
print([round(t.double().flatten()[:50].dot(torch.arange(50.0).double()).item(), 6) for t in tensors if t.numel() >= 50])
"""


def test_order_is_the_same_in_every_process() -> None:
    here = os.path.dirname(os.path.dirname(__file__))
    root = os.path.dirname(here)
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    script = _PRINT_ORDER.format(here=here)

    def run(seed: int) -> str:
        env = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": path}
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script], env=env, capture_output=True, text=True, check=True
        ).stdout

    outputs = [run(seed) for seed in (1, 2)]
    assert outputs[0].startswith("[['b', 'sample', 'time', 'x', 'y', 'z'], ")
    assert "['o', 'p', 'x', 'y', 'vector']" in outputs[0]
    assert outputs[1] == outputs[0]


NUMBERS = math.wrap([1.0, 2.0], batch("b"))
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "objects": (lambda: math.layout(["a", object()], spatial("x")), "not object"),
    "NumPy array": (lambda: np.zeros(3), r"ndarray.*phi\.math\.wrap"),
    "torch tensor": (lambda: torch.zeros(3), r"Tensor.*phi\.math\.wrap"),
    "set": (lambda: {1, 2}, "set"),
    "named tuple": (lambda: collections.namedtuple("Pair", "a")(1.0), "Pair"),
    "batched bounds": (lambda: CenteredGrid(0.0, 0, x=4, bounds=Box(x=NUMBERS)), "bounds"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_without_tensors_are_refused(case: str) -> None:
    make, message = REFUSED[case]
    for value in (make(), {"u": [make()]}):
        with pytest.raises(StateError, match=message):
            flatten(value)


def test_unflatten_wants_all_tensors() -> None:
    tensors, found = flatten(random_field("staggered", "open", 2))
    for wrong in (tensors[:1], (*tensors, tensors[0]), ()):
        with pytest.raises(StateError, match=f"{len(wrong)}"):
            unflatten(found, wrong)


def test_batch_axes_can_be_added_expanded_and_removed() -> None:
    u = random_field("staggered", "closed", 2, b=3)
    nu = math.wrap(torch.tensor(0.5))
    tensors, found = flatten((u, nu))
    wider = layout.with_batch(found, "a", "b")
    assert [[a.name for a in axes] for axes in wider.leaves] == [["a", "b", "x", "y"]] * 2 + [["a", "b"]]
    assert layout.batch_names(wider) == ["a", "b"] and layout.batch_names(found) == ["b"]
    expanded = layout.repeat(tensors, found, wider)
    assert [tuple(t.shape) for t in expanded] == [(1, 3, 5, 5), (1, 3, 6, 4), (1, 1)]
    assert all(torch.equal(e.reshape(t.shape), t) for e, t in zip(expanded, tensors))
    behind = layout.repeat(tensors, found, layout.with_batch(found, "b", "z"), {"z": 2})
    assert torch.equal(behind[0], torch.stack([tensors[0]] * 2, 1)) and behind[2].shape == (1, 2)
    back, back_nu = unflatten(wider, expanded)
    assert back.values.shape.get_size("a") == 1 and set(back_nu.shape.names) == {"a", "b"}
    assert layout.without(wider, "a") == layout.with_batch(found, "b")
    assert layout.without(wider, "a", "b") == flatten((random_field("staggered", "closed", 2), nu))[1]


def test_frames_are_stacked_in_canonical_place() -> None:
    frames = [random_field("staggered", "open", 2, seed=s, b=2, z=3) for s in range(4)]
    flat = [flatten(f)[0] for f in frames]
    found = flatten(frames[0])[1]
    tensors, stacked = layout.stack(flat, found, "time")
    assert [[a.name for a in axes] for axes in stacked.leaves] == [["b", "time", "z", "x", "y"]] * 2
    for c in range(2):
        assert torch.equal(tensors[c], torch.stack([f[c] for f in flat], 1))
    trajectory = unflatten(stacked, tensors)
    assert all(same(trajectory.time[i], frame) for i, frame in enumerate(frames))


def test_matches_leaves_only_batch_sizes_open() -> None:
    tensors, found = flatten(random_field("staggered", "closed", 2, b=2))
    assert layout.matches(found, tensors)
    assert layout.matches(found, [t.repeat(5, 1, 1) for t in tensors])
    assert not layout.matches(found, tensors[::-1])  # (5, 5) and (6, 4) faces
    assert not layout.matches(found, tensors[:1])
    assert not layout.matches(found, [t[0] for t in tensors])
    assert layout.describe_leaves(found) == "(b=any, x=5, y=5), (b=any, x=6, y=4)"


def test_position_of() -> None:
    found = flatten(random_field("vector", "open", 2, b=2))[1]
    assert [layout.position_of(n, found.leaves[0]) for n in ("b", "x", "y", "vector", "z")] == [0, 1, 2, 3, None]


@pytest.mark.parametrize("kind", [batch, channel])
def test_entries_of_unlike_sizes_are_tensors_of_their_own(kind: Callable) -> None:
    parts = [math.random_normal(spatial(x=n)) for n in (3, 4)]
    tensors, layout = flatten(math.stack(parts, kind("parts")))
    assert [tuple(t.shape) for t in tensors] == [(3,), (4,)]
    back = unflatten(layout, tensors)
    assert all(torch.equal(back[{"parts": i}].native("x"), parts[i].native("x")) for i in range(2))


def test_each_value_keeps_its_precision() -> None:
    """Faces would be cast to that of other values in the state when they are put together."""
    faces = random_field("staggered", "closed", 2, dtype=torch.float32)
    tensors, layout = flatten((math.wrap(torch.ones(2, dtype=torch.float64), batch("b")), faces))
    again = unflatten(layout, tensors)
    assert [t.dtype for t in flatten(again)[0]] == [torch.float64, torch.float32, torch.float32]
