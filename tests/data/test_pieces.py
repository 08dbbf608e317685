"""Checks and statistics in pieces against those of the whole; trajectories that stay in their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from cases.small import equal, faces, forced_step, line, noise, same, scalar
from phi.torch.flow import batch, math

import phi_hybrid as ph
from phi_hybrid.data import store as pieces

SHAPES = [(5,), (1, 1), (7, 3), (2, 9, 4), (3, 5, 2, 6), (4, 1, 30)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 7, 25, 1000])
def test_pieces_are_the_whole(shape: tuple[int, ...], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", size)
    tensor, seen = noise(*shape, seed=1), torch.zeros(shape)
    for (*outer, first), piece in pieces.pieces(tensor):
        place = (*outer, slice(first, first + len(piece)))
        assert torch.equal(tensor[place], piece) and (piece.numel() <= max(size, 1) or piece.ndim > 1)
        seen[place] += 1
    assert torch.equal(seen, torch.ones(shape))
    deviation = pieces.standard_deviation(tensor)
    if tensor.numel() > 1:
        assert deviation == pytest.approx(np.std(tensor.double().numpy(), ddof=1), rel=1e-12)
    else:
        assert np.isnan(deviation)


@pytest.mark.parametrize("size", [1, 7, 25, 1000])
def test_first_infinity_is_named(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", size)
    tensor = noise(4, 5, 6)
    pieces.require_finite(tensor, "state tensor 0")
    tensor[2, 3, 4], tensor[3, 0, 0] = float("inf"), float("nan")
    with pytest.raises(ph.DataError, match=r"state tensor 0 holds .*first in trajectory 2 at index \[3, 4\]"):
        pieces.require_finite(tensor, "state tensor 0")


# --- lazy loading ---


def stored(tmp_path: Path) -> tuple[ph.Trajectories, Path]:
    def both(state: tuple, force: Any, number: math.Tensor) -> tuple:
        return state[0] * 0.9, state[1] + number * force

    force, number = scalar(2, b=5, time=3), math.wrap(torch.arange(5.0), batch("b"))
    path = tmp_path / "data.h5"
    state = (faces("inflow", b=5), scalar(1, b=5))
    data = ph.Trajectories.generate(both, state, 3, (force, number), path=path, metadata={"dt": 0.1}, progress=False)
    return data, path


def test_lazily_loaded_is_the_same(tmp_path: Path) -> None:
    data, path = stored(tmp_path)
    lazy = ph.Trajectories.load(path, lazy=True)
    assert equal(lazy.states, data.states) and equal(lazy.inputs, data.inputs)
    assert lazy.state_layout == data.state_layout and lazy.input_layout == data.input_layout
    assert lazy.metadata == data.metadata and lazy.scale == data.scale
    assert all(same(a, b) for a, b in zip(lazy.trajectory, data.trajectory))
    assert equal(lazy[1:3].states, data[1:3].states) and equal(lazy[[4, 0]].inputs, data[[4, 0]].inputs)
    assert equal(lazy.windows(2)[5].states, data.windows(2)[5].states)


def test_evaluations_agree(tmp_path: Path) -> None:
    f = line(1, b=5, time=4)
    data = ph.Trajectories.generate(forced_step, line(0, b=5), 4, (f,), path=tmp_path / "data.h5", progress=False)
    lazy = ph.Trajectories.load(tmp_path / "data.h5", lazy=True)
    first, second = (ph.evaluate({"worse": lambda u, f: 0.9 * u + f}, d, batch_size=2) for d in (data, lazy))
    for metric, values in first.values.items():
        assert torch.equal(second[metric]["worse"], values["worse"])


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    data, path = stored(tmp_path)
    before = path.read_bytes()
    lazy = ph.Trajectories.load(path, lazy=True)
    lazy.states[0][0] = 7.0
    assert float(lazy.states[0][0].min()) == 7.0 and path.read_bytes() == before


def test_a_replaced_file_leaves_lazy_tensors_alone(tmp_path: Path) -> None:
    data, path = stored(tmp_path)
    lazy = ph.Trajectories.load(path, lazy=True)
    data[:2].save(path)
    assert equal(lazy.states, data.states) and len(ph.Trajectories.load(path, lazy=True)) == 2


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files(keep: float, tmp_path: Path) -> None:
    _, path = stored(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ph.DataError, match="data.h5 .*generate it again"):
        ph.Trajectories.load(path, lazy=True)


def test_damaged_files(tmp_path: Path) -> None:
    _, path = stored(tmp_path)
    with h5py.File(path, "r+") as file:
        file["states/0"][1, 2, 3, 0] = np.nan
    with pytest.raises(ph.DataError, match=r"state tensor 0 .*trajectory 1 at index \[2, 3, 0\]"):
        ph.Trajectories.load(path, lazy=True)
    with h5py.File(path, "r+") as file:
        values = file["states/0"][:, :2]
        del file["states/0"]
        file["states/0"] = values
    with pytest.raises(ph.DataError, match="its header promises"):
        ph.Trajectories.load(path, lazy=True)


def test_compressed_files_cannot_be_mapped(tmp_path: Path) -> None:
    data, path = stored(tmp_path)
    with h5py.File(path, "r+") as file:
        values = np.nan_to_num(file["states/0"][...])
        del file["states/0"]
        file.create_dataset("states/0", data=values, compression="gzip")
    with pytest.raises(
        ph.DataError, match=r"data.h5/states/0 is compressed or in chunks .*lazy=False, or save it again"
    ):
        ph.Trajectories.load(path, lazy=True)
    again = ph.Trajectories.load(path)
    assert equal(again.states, data.states)
    again.save(path)
    assert equal(ph.Trajectories.load(path, lazy=True).states, data.states)
