"""What holds for all trajectories: files give everything back or are refused, and parts are slices of plain tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.domains import domains
from cases.drawn import few, fields, identical, made, random_tensor, trees
from cases.small import equal
from hypothesis import given
from hypothesis import strategies as st

import phi_hybrid as ph
from phi_hybrid.data import Windows

NAMES = st.sampled_from(["dt", "é", "", "a b", "\0"]) | st.text(max_size=5)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES
JSON = st.recursive(VALUES, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3), max_leaves=5)


@dataclass(frozen=True)
class Recipe:
    """Trajectories as text: an example state, inputs with their batch dims, sizes, bits, metadata."""

    like: str
    inputs: tuple[tuple[str, str], ...]
    by_name: bool
    trajectories: int
    steps: int
    precision: int
    metadata: dict[str, Any]

    @cached_property
    def example(self) -> Any:
        return made(self.like, self.precision)

    @cached_property
    def states(self) -> list[torch.Tensor]:
        """Plain tensors `(trajectory, time, …)`."""
        batch = self.trajectories, self.steps + 1
        return [
            (3 * random_tensor(*batch, *t.shape, like=t.double(), seed=n)).to(t.dtype)
            for n, t in enumerate(ph.bridge.flatten(self.example)[0])
        ]

    @cached_property
    def given_inputs(self) -> Any:
        values = {name: made(text, self.precision, seed=n + 9) for n, (name, text) in enumerate(self.inputs)}
        return values if self.by_name else tuple(values.values())

    @cached_property
    def input_tensors(self) -> list[tuple[torch.Tensor, bool]]:
        """Plain tensors `(trajectory, time, …)` or `(trajectory, …)`, and whether they have times."""
        values = self.given_inputs.values() if self.by_name else self.given_inputs
        tensors, layout = ph.bridge.flatten(tuple(values))
        found = []
        for tensor, axes in zip(tensors, layout.leaves):
            names = [a.name for a in axes]
            if varies := "time" in names:
                tensor = tensor.movedim(names.index("time"), 0)
            names = ["time"] * varies + [n for n in names if n != "time"]
            if "trajectory" in names:
                tensor = tensor.movedim(names.index("trajectory"), 0)
            else:
                tensor = tensor.expand(self.trajectories, *tensor.shape)
            found.append((tensor, varies))
        return found

    @property
    def data(self) -> ph.Trajectories:
        return ph.Trajectories.from_tensors(self.states, self.example, self.given_inputs, metadata=self.metadata)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    domain, trajectories, steps = draw(domains()), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    sizes = {"trajectory": trajectories, "time": steps}

    def leaves(dims: str) -> st.SearchStrategy[str]:
        shapes = ["spatial(q=3)", "channel(c=2)", f"spatial({domain.resolution})", "instance(pts=2) & channel(c='a,b')"]
        tensors = [f"tensor({dims} & {shape}, {kind})" for shape in shapes for kind in ("float", "int", "bool")]
        return st.one_of(fields(domain, st.just(dims)), st.sampled_from([*tensors, f"tensor({dims}, float)"]))

    state = draw(fields(domain, st.just("batch()")))
    if draw(st.booleans()):
        state = f"({state}, {draw(trees(leaves('batch()')))})"
    inputs = []
    for name in draw(st.lists(st.sampled_from(["force", "dt", "ν"]), max_size=2, unique=True)):
        order = draw(st.lists(st.sampled_from(list(sizes)), unique=True))
        inputs.append((name, draw(trees(leaves(f"batch({', '.join(f'{n}={sizes[n]}' for n in order)})")))))
    metadata = draw(st.dictionaries(NAMES, JSON, max_size=3))
    return Recipe(
        state, tuple(inputs), draw(st.booleans()), trajectories, steps, draw(st.sampled_from([32, 64])), metadata
    )


def assert_same(found: ph.Trajectories, expected: ph.Trajectories) -> None:
    """In all that is known of them, to the last bit."""
    assert equal(found.states, expected.states) and equal(found.inputs, expected.inputs)
    assert found.layouts == expected.layouts and found.scale == expected.scale
    assert identical(found.trajectory, expected.trajectory) and identical(found.step_inputs, expected.step_inputs)
    assert repr(dict(found.metadata)) == repr(dict(expected.metadata))


@contextmanager
def file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "data.h5"


# --- files ---


@few(15)
@given(recipes())
def test_files_give_everything_back(recipe: Recipe) -> None:
    with file() as path:
        recipe.data.save(path)
        for lazy in (False, True):
            assert_same(ph.Trajectories.load(path, lazy=lazy), recipe.data)


@few(15)
@given(recipes(), st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.booleans())
def test_a_flipped_bit_or_a_cut_is_an_error(recipe: Recipe, place: float, bit: int, cut: bool) -> None:
    with file() as path:
        recipe.data.save(path)
        content = bytearray(path.read_bytes())
        index = int(place * len(content))
        content[index] ^= 1 << bit
        path.write_bytes(content[:index] if cut else content)
        for lazy in (False, True):
            with pytest.raises(ph.DataError, match="data.h5"):
                ph.Trajectories.load(path, lazy=lazy)


# --- parts ---


def assert_holds(data: ph.Trajectories, recipe: Recipe, trajectories: Sequence[int], start: int, stop: int) -> None:
    """These trajectories from one time to another, cut from the plain tensors."""
    chosen = list(trajectories)
    assert equal(data.states, [t[chosen, start : stop + 1] for t in recipe.states])
    inputs = [t[chosen, start:stop] if varies else t[chosen] for t, varies in recipe.input_tensors]
    assert equal(data.inputs, inputs)
    assert (len(data), data.steps) == (len(chosen), stop - start)
    assert repr(dict(data.metadata)) == repr(recipe.metadata)


@few(20)
@given(recipes(), st.data())
def test_parts_are_slices(recipe: Recipe, choose: st.DataObject) -> None:
    data, count, steps = recipe.data, recipe.trajectories, recipe.steps
    assert_holds(data, recipe, range(count), 0, steps)
    numbers = choose.draw(st.lists(st.integers(-count, count - 1), min_size=1, max_size=5))
    assert_holds(data[numbers], recipe, numbers, 0, steps)
    assert_holds(data[numbers[0]], recipe, numbers[:1], 0, steps)
    part = choose.draw(st.slices(count).filter(lambda s: range(count)[s] and (s.step or 1) > 0))
    assert_holds(data[part], recipe, range(count)[part], 0, steps)
    start = choose.draw(st.integers(0, steps - 1))
    stop = choose.draw(st.integers(start + 1, steps))
    assert_holds(data.between(start, stop), recipe, range(count), start, stop)
    if count > 1:
        first = choose.draw(st.integers(1, count - 1))
        a, b = data.split(first)
        assert_holds(a, recipe, range(first), 0, steps)
        assert_holds(b, recipe, range(first, count), 0, steps)
        assert_same(ph.Trajectories.concat(a, b), data)


@few(15)
@given(recipes())
def test_fields_and_tensors_make_the_same(recipe: Recipe) -> None:
    data = recipe.data
    inputs = data.step_inputs
    if recipe.by_name:
        inputs = dict(zip(recipe.given_inputs, inputs, strict=True))
    assert_same(ph.Trajectories.from_fields(data.trajectory, inputs, metadata=recipe.metadata), data)


@few(20)
@given(recipes(), st.data())
def test_a_batch_of_windows_is_what_a_loop_cuts_out(recipe: Recipe, choose: st.DataObject) -> None:
    data, steps = recipe.data, choose.draw(st.integers(1, recipe.steps))
    windows = data.windows(steps)
    places = [(n, start) for n in range(recipe.trajectories) for start in range(recipe.steps - steps + 1)]
    assert len(windows) == len(places)
    numbers = choose.draw(st.lists(st.integers(0, len(places) - 1), min_size=1, max_size=6))
    chosen = [places[number] for number in numbers]
    states = [torch.stack([t[n, s : s + steps + 1] for n, s in chosen]) for t in recipe.states]
    inputs = [
        torch.stack([t[n, s : s + steps] if varies else t[n] for n, s in chosen]) for t, varies in recipe.input_tensors
    ]
    for batch in (windows.gather(torch.tensor(numbers)), windows.collate([windows[n] for n in numbers])):
        assert equal(batch.states, states) and equal(batch.inputs, inputs) and batch.scale == data.scale
    assert_every_window_once(windows, choose)


def assert_every_window_once(windows: Windows, choose: st.DataObject) -> None:
    """An epoch of shuffled batches."""
    size, seed = choose.draw(st.integers(1, len(windows))), choose.draw(st.integers(0, 99))
    batches = [windows.shuffled(number, size, seed).states[0] for number in range(len(windows) // size)]
    found = [row for states in batches for row in states]
    known = [w.states[0][0] for w in windows]
    indices = [next(n for n, w in enumerate(known) if torch.equal(w, row)) for row in found]
    assert len(set(indices)) == len(found) == len(windows) // size * size
