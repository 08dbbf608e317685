"""Data of the wrong form, and files of others that are read otherwise than they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from cases.small import faces, line, noise
from cases.wrong import Case, decaying, each
from phi.torch.flow import PERIODIC, Box, Field, batch, channel, math, spatial

import phi_hybrid as ph
from phi_hybrid.data import Mixture, read_pdebench, read_the_well

State, Data = ph.StateError, ph.DataError
from_tensors, from_fields, concat = ph.Trajectories.from_tensors, ph.Trajectories.from_fields, ph.Trajectories.concat
data, coarse, walls, double = decaying(), decaying(cells=4), decaying(boundary=0), decaying(dtype=torch.float64)
LIKE, STATES = line(0), noise(3, 5, 8, 1)


def beside(*inputs: Any, **settings: Any) -> ph.Trajectories:
    return from_tensors(STATES, LIKE, *inputs, **settings)


CASES: list[Case] = [
    # --- native tensors ---
    ("one trajectory without its axis", lambda: from_tensors(STATES[0], LIKE), State, r"\(5, 8, 1\).*trajectory, time"),
    ("channels first", lambda: from_tensors(STATES.movedim(-1, 2), LIKE), State, r"\(3, 5, 1, 8\).*permute"),
    ("fields as tensors", lambda: from_tensors(line(0, time=3), LIKE), State, "states = Field"),
    ("numbers as tensors", lambda: from_tensors([[1.0, 2.0]], LIKE), State, r"states\[0\] = \[1.0"),
    ("tensor as example", lambda: from_tensors(STATES, STATES[0, 0]), State, "not Tensor.*phi.math.wrap"),
    ("no example", lambda: from_tensors(STATES, None), State, "`like` has 0"),
    ("half precision", lambda: from_tensors(STATES.half(), LIKE), State, r"float16.*tensor.float\(\)"),
    ("integers", lambda: from_tensors(STATES.long(), LIKE), State, r"int64.*tensor.float\(\)"),
    ("one time", lambda: from_tensors(STATES[:, :1], LIKE), State, "in time = 1.*at least 2"),
    ("faces in one tensor", lambda: from_tensors(noise(2, 3, 6, 5), faces("periodic")), State, "1 tensors.*has 2"),
    ("inputs of torch", lambda: beside((torch.ones(3),)), State, "not Tensor.*phi.math.wrap"),
    ("inputs without names", lambda: beside({0: LIKE}), State, r"inputs = {0.*by name"),
    ("inputs at the last time", lambda: beside((line(1, time=5),)), State, "'time': 5.*time = 4 steps"),
    # --- fields ---
    ("a state without times", lambda: from_fields(LIKE), State, "no batch dim 'time'.*list of states"),
    ("times as a spatial dim", lambda: from_fields(math.ones(spatial(time=3, x=4))), State, "no batch dim 'time'"),
    ("no states", lambda: from_fields([]), State, "in time = 0"),
    ("states in a tuple", lambda: from_fields((LIKE, LIKE)), State, "no batch dim 'time'.*list of states"),
    ("states of a generator", lambda: from_fields(line(n) for n in range(3)), State, "not generator"),
    ("walls that come later", lambda: from_fields([LIKE, line(1, boundary=0)]), State, r"states\[1\].*boundary 0 and"),
    ("a dim of another name", lambda: from_fields([LIKE, line(1, run=2)]), State, r"'run'.*batch\('trajectory'\)"),
    # --- parts and sets ---
    ("sets in a list", lambda: concat([data, data]), State, r"sets\[0\] = \[Trajectories"),
    ("no set", lambda: concat(), State, r"sets = \(\)"),
    ("sets on two grids", lambda: concat(data, coarse), State, r"sets\[1\].*'x', 4.*'x', 8"),
    ("sets with two boundaries", lambda: concat(data, walls), State, "boundary 0 and periodic"),
    ("sets of two precisions", lambda: concat(data, double), State, "float64.*float32.*one precision"),
    ("sets of two lengths", lambda: concat(data, data.between(0, 3)), State, "6.*3.*between.*Mixture"),
    ("trajectory beyond the last", lambda: data[9], State, r"selection = \[9\]: .*0 … 3"),
    ("one of them beyond", lambda: data[[0, -9]], State, r"selection = \[0, -9\]: .*0 … 3"),
    ("parts of trajectories", lambda: data[[0.5]], State, r"selection = \[0.5\]: .*0 … 3"),
    ("names of trajectories", lambda: data[["a"]], State, r"selection = \['a'\]: .*0 … 3"),
    ("mask of another length", lambda: data[torch.tensor([True, False])], State, "selection = .*0 … 3"),
    ("lists in lists", lambda: data[[[0, 1]]], State, r"selection = \[\[0, 1\]\]: .*one list"),
    ("no trajectory", lambda: data[[]], Data, r"selection \[\] of 4 .*empty"),
    ("all in one part", lambda: data.split(1.0), Data, r"split\(1.0\).*1 … 3"),
    ("mixture of a list", lambda: Mixture([data]), State, r"sets = \[.*Mixture\({"),
    ("mixture of a set", lambda: Mixture(data), State, r"sets = Trajectories.*Mixture\({"),
    ("numbers as names", lambda: Mixture({0: data}), State, "name of a set = 0"),
    ("no weight", lambda: Mixture({"a": (0.0, data)}), State, "weight of 'a' = 0.0"),
    ("weight last", lambda: Mixture({"a": (data, 2.0)}), State, "weight of 'a' = Trajectories"),
    ("mixture of mixtures", lambda: Mixture({"a": Mixture({"a": data})}), State, r"sets\['a'\] = Mixture"),
    ("mixture on two grids", lambda: Mixture({"a": data, "b": coarse}), State, r"sets\['b'\].*sets\['a'\]"),
    ("mixture evaluated", lambda: ph.evaluate({"a": abs}, Mixture({"a": data})), State, "data = Mixture"),
]


@each(CASES)
def test_own_data(call: Callable[[], Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        call()


@pytest.mark.parametrize(
    ("selection", "numbers"),
    [
        (-1, [3]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        (slice(-3, None, 2), [1, 3]),
        ([True, False, True, False], [0, 2]),
        (torch.tensor([False, False, True, True]), [2, 3]),
        (torch.tensor([2, 2]), [2, 2]),
        (np.array([3, -4]), [3, 0]),
        (range(1, 3), [1, 2]),
    ],
)
def test_selections_are_those_of_numpy(selection: Any, numbers: list[int]) -> None:
    assert torch.equal(data[selection].states[0], data.states[0][numbers])


def test_trajectories_one_by_one() -> None:
    assert [torch.equal(own.states[0], states[None]) for own, states in zip(data, data.states[0])] == [True] * 4


# --- files of others ---


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "waves.hdf5"
    with h5py.File(path, "w") as file:
        file["tensor"] = noise(4, 5, 8).numpy()
        file["x-coordinate"], file["t-coordinate"] = np.float32(np.arange(8) + 0.5) / 8, np.float32(np.arange(6)) / 10
    return path


READ: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"boundary": None}, State, "boundary = None.*PERIODIC"),
    ({"boundary": "wavy"}, State, "boundary = 'wavy'.*PERIODIC"),
    ({"boundary": Field}, State, "boundary = the class Field.*PERIODIC"),
    ({"boundary": {"x-": 0}}, State, r"boundary = {'x-': 0}: .*both sides"),
    ({"boundary": {"x": None}}, State, "boundary = {'x': None}"),
    ({"boundary": {"y": PERIODIC}}, State, r"boundary for \['y'\].*'x'"),
    ({"fields": ["density"]}, State, r"fields = \['density'\].*\['tensor'\]"),
    ({"fields": "tensor"}, State, "fields = 'tensor'.*list of names"),
    ({"channels": "vector"}, State, r"channels = 'vector'.*channel\("),
    ({"channels": channel(vector="x,y")}, State, "channels = .*1 numbers"),
    ({"channels": batch(b=1)}, State, "channels = "),
    ({"trajectories": 3}, State, r"trajectories = 3: .*slice\("),
    ({"trajectories": [0, 1]}, State, r"trajectories = \[0, 1\]: .*slice\("),
    ({"trajectories": slice(9, 12)}, Data, r"trajectories = slice\(9.*of 4"),
    ({"times": slice(None, None, -1)}, Data, "times = .*turns them round"),
    ({"times": slice(0, None, 2.0)}, State, "times = slice.*integers"),
    ({"times": slice(0, 1)}, Data, "times.*at least two"),
    ({"bounds": (0, 1)}, State, r"bounds = \(0, 1\): .*Box\("),
    ({"bounds": Box(y=1)}, State, r"bounds = Box.*\['x'\]"),
]


@pytest.mark.parametrize(("settings", "error", "named"), READ, ids=[str(case[0])[:40] for case in READ])
def test_files_of_others(settings: dict, error: type[Exception], named: str, path: Path) -> None:
    with pytest.raises(error, match=named):
        read_pdebench(path, **{"boundary": PERIODIC, **settings})


def test_files_that_are_none_of_theirs(path: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("hello")
    data.save(tmp_path / "own.h5")
    for read in (lambda p: read_pdebench(p, PERIODIC), read_the_well):
        for name in ("text.txt", "own.h5", "missing.h5", ""):
            with pytest.raises(Data, match=name or str(tmp_path)):
                read(tmp_path / name)
        for other in (3, None, [path], "", "a\0b"):
            with pytest.raises(State, match="path = "):
                read(other)
    with pytest.raises(Data, match="no file of The Well: it lacks"):
        read_the_well(path)
    for name in ("text.txt", "", "missing.h5"):
        with pytest.raises(Data, match=name or str(tmp_path)):
            ph.Trajectories.load(tmp_path / name)
