"""Files of unknown origin: damaged, truncated, foreign or malicious ones are errors, and nothing in them is executed."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.deployed import coupled
from cases.small import SmallNet, forced_step, line
from phi.torch.flow import Field, diffuse

import phi_hybrid as ph
from phi_hybrid.deployment.container import read_container, write_container
from phi_hybrid.deployment.operators import is_allowed


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A solver with a linear solve."""

    def step(u: Field, force: Field) -> Field:
        return diffuse.implicit(forced_step(u, force), 0.1, 0.1)

    path = tmp_path_factory.mktemp("whole") / "solver.ph"
    solver, arguments = coupled("additive", ph.capture(step, check=False))
    solver.save(path, *arguments)
    return path.read_bytes()


@pytest.fixture
def path(content: bytes, tmp_path: Path) -> Path:
    (tmp_path / "solver.ph").write_bytes(content)
    return tmp_path / "solver.ph"


def refused(path: Path, message: str = "") -> None:
    """Neither a step nor a solver comes of it, and nothing was run: a bomb would have left a file."""
    with pytest.raises(ph.DataError, match=f"solver.ph.*{message}"):
        ph.load(path)
    solver = ph.HybridSolver(forced_step, SmallNet(2, 1, 1))
    before = [t.clone() for t in solver.parameters()]
    with pytest.raises(ph.DataError):
        ph.load(path, into=solver)
    assert all(map(torch.equal, before, solver.parameters()))
    assert {p.name for p in path.parent.iterdir()} <= {"solver.ph"}


# --- damaged bytes ---


def test_flipped_bits_are_found(content: bytes, path: Path) -> None:
    """Fifty of them, in the length, the header and the tensors."""
    generator = random.Random(0)
    for number in range(50):
        place = number % 8 if number < 10 else generator.randrange(len(content))
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        refused(path)


def test_truncated_and_longer_files_are_found(content: bytes, path: Path) -> None:
    cuts = [0, 1, 7, 8, 9, len(content) - 1, *random.Random(1).sample(range(len(content)), 14)]
    for cut in cuts:
        path.write_bytes(content[:cut])
        refused(path)
    path.write_bytes(content + b"\0")
    refused(path, "damaged")


# --- files of another kind ---


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path.with_name("exploded")),)


def foreign_files(path: Path) -> dict[str, Callable[[], Any]]:
    def archive() -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps(Bomb(path)))
            file.writestr("archive/version", "3")

    def claiming(length: int, text: bytes = b"{}") -> bytes:
        return struct.pack("<Q", length) + text

    deep = b'{"__metadata__": ' + b"[" * 100_000
    return {
        "nothing": lambda: path.write_bytes(b""),
        "pickle": lambda: path.write_bytes(pickle.dumps(Bomb(path))),
        "torch": lambda: torch.save({"state": Bomb(path)}, path),
        "zip": archive,
        "huge header": lambda: path.write_bytes(claiming(2**63)),
        "empty header": lambda: path.write_bytes(claiming(2)),
        "deep header": lambda: path.write_bytes(claiming(len(deep), deep)),
        "long number": lambda: path.write_bytes(claiming(100_000, b"9" * 100_000)),
        "other safetensors": lambda: path.write_bytes(claiming(40, b'{"__metadata__": {"format": "pt"}}'.ljust(40))),
    }


@pytest.mark.parametrize("kind", foreign_files(Path()))
def test_foreign_files_are_refused_and_not_run(kind: str, path: Path) -> None:
    foreign_files(path)[kind]()
    refused(path)


def test_files_of_torch_are_told_from_damage(path: Path) -> None:
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(ph.DataError, match=r"a file of torch.*Trainer\.resume"):
        ph.load(path)
    path.write_bytes(b"short")
    with pytest.raises(ph.DataError, match="truncated: it has 5 bytes"):
        ph.load(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "solver.ph", tmp_path, "/dev/zero"):
        with pytest.raises(ph.DataError, match=r"no file at .*solver\.save"):
            ph.load(path)


# --- malicious contents with a right checksum ---


def entry_of(header: dict, target: str = "aten.add.Tensor") -> list:
    return next(entry for entry in header["program"]["entries"] if entry[0] == target)


def matrix_of(tensors: dict, name: str) -> torch.Tensor:
    return next(t for key, t in tensors.items() if key.startswith("module/") and key.endswith(name))


CODE = "__import__('os').mkdir('exploded')"
EVIL: dict[str, Callable[[dict, dict], Any]] = {
    "a file is read": lambda h, t: entry_of(h).__setitem__(slice(0, 2), ["aten.from_file.default", ["/etc/passwd", False, 9]]),
    "a function of Python": lambda h, t: entry_of(h).__setitem__(0, "builtins.eval.default"),
    "a function of torch": lambda h, t: entry_of(h).__setitem__(0, "_C._cuda.default"),
    "an operator that prints": lambda h, t: entry_of(h).__setitem__(slice(0, 2), ["aten._print.default", ["x"]]),
    "code as operator": lambda h, t: entry_of(h).__setitem__(0, CODE),
    "code as keyword": lambda h, t: entry_of(h)[2].update({f"alpha=1, other={CODE}": 1}),
    "code as name of a solve": lambda h, t: h["program"]["modules"].update({f"a(); {CODE}": {"kind": "sparse_product"}}) or entry_of(h).__setitem__(0, f"a(); {CODE}"),
    "code as name of a constant": lambda h, t: t.update({f'constant/"); {CODE} #': torch.ones(1)}) or entry_of(h).__setitem__(slice(0, 2), ["constant", [f'"); {CODE} #']]),
    "code as name of a dim": lambda h, t: h["program"].update(batch=CODE),
    "values before they are computed": lambda h, t: entry_of(h)[1].__setitem__(0, {"value": 10**6}),
    "values of negative number": lambda h, t: entry_of(h)[1].__setitem__(0, {"value": -1}),
    "results from nowhere": lambda h, t: h["program"].update(outputs=[10**6]),
    "fewer results": lambda h, t: h["program"].update(outputs=[]),
    "writing into an argument": lambda h, t: entry_of(h).__setitem__(slice(0, 2), ["aten.fill_.Scalar", [{"value": 0}, 0]]),
    "other numbers": lambda h, t: entry_of(h)[2].update(alpha=2),
    "other weights": lambda h, t: t["constant/network.first.weight"].mul_(2),
    "other shapes": lambda h, t: t.update({"constant/network.first.weight": torch.ones(3)}),
    "entries outside of a matrix": lambda h, t: matrix_of(t, "/indices").fill_(10**6),
    "rows outside of a matrix": lambda h, t: matrix_of(t, "/indptr").fill_(10**6),
    "a matrix of NaN": lambda h, t: matrix_of(t, "/data").fill_(torch.nan),
    "a singular matrix": lambda h, t: matrix_of(t, "/data").fill_(0),
    "a huge grid": lambda h, t: next(iter(h["program"]["modules"].values())).update(shape=[2**40]),
    "a huge tensor": lambda h, t: entry_of(h).__setitem__(slice(0, 2), ["aten.zeros.default", [[2**50]]]),
    "no weights": lambda h, t: t.pop("constant/network.first.weight"),
    "no program": lambda h, t: h.pop("program"),
    "no layout": lambda h, t: h["program"].update(layout={"constant": 1}),
    "other inputs": lambda h, t: h["program"]["entries"].pop(0),
    "other types": lambda h, t: h["program"].update(dtypes=["float64", "float64"]),
    "text in place of lists": lambda h, t: h["program"].update(entries="input"),
    "lists in place of settings": lambda h, t: h.update(settings=[1, 2]),
    "no example": lambda h, t: t.pop("example/0"),
}  # fmt: skip


@pytest.mark.parametrize("how", EVIL)
def test_malicious_files_are_refused_and_not_run(how: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    header, tensors = read_container(path)
    header = json.loads(json.dumps(header))
    EVIL[how](header, tensors)
    write_container(path, header, tensors)
    refused(path)


@pytest.mark.parametrize(
    "entry", [{"data_offsets": [0, 2**40]}, {"data_offsets": [-8, 24]}, {"shape": [2**62, 4]}, {"dtype": "X"}]
)
def test_places_of_tensors_are_checked(entry: dict, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the checksum is right."""
    from phi_hybrid.deployment import container

    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    next(e for name, e in header.items() if name.startswith("constant/")).update(entry)
    header["__metadata__"]["sha256"] = "0" * 64
    text = json.dumps(header).encode()
    digest = container._digest(text, [content[8 + length :]])
    path.write_bytes(struct.pack("<Q", len(text)) + text.replace(b"0" * 64, digest.encode()) + content[8 + length :])
    refused(path)


def test_nonsense_for_the_network_changes_nothing(path: Path) -> None:
    """A program that is right, beside boundaries that are none."""
    solver = ph.HybridSolver(forced_step, SmallNet(2, 1, 1))
    before = [t.clone() for t in solver.parameters()]
    for others in ({"_extra_state": [["x-"]]}, {"_extra_state": 3}, {"_extra_state": [["x-", "none"]]}):
        header, tensors = read_container(path)
        write_container(path, {**header, "others": others}, tensors)
        with pytest.raises(ph.StateError, match="does not fit this solver.*fails for the example"):
            ph.load(path, into=solver)
    assert all(map(torch.equal, before, solver.parameters())) and solver.boundaries == ()


def test_operators_compute_tensors_and_do_nothing_else() -> None:
    for name in ("add.Tensor", "relu_.default", "convolution.default", "_fft_r2c.default", "index_put_.default"):
        assert is_allowed(f"aten.{name}"), name
    for name in (
        "from_file.default",
        "_print.default",
        "set_.source_Storage",
        "resize_.default",
        "_reshape_alias.default",
        "add.out",
        "convolution_backward.default",
    ):
        assert not is_allowed(f"aten.{name}"), name
    for target in ("phi_hybrid.linear_solve.default", "aten.add", "aten.__class__.mro", "prim.print.default", ""):
        assert not is_allowed(target), target


def test_whole_files_load(path: Path) -> None:
    assert ph.load(path)(line(0, b=2), line(1, b=2)) is not None
