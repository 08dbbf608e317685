"""New files are whole or not there: errors, full disks, killed writers, several writers at once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import phi_hybrid as ph
from phi_hybrid.data import files
from phi_hybrid.data.files import new_file, replacing

linux = pytest.mark.skipif(sys.platform != "linux", reason="locks of open files are Linux's")
PATHS = os.pathsep.join([str(Path(ph.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])


def start(code: str, *args: Any) -> subprocess.Popen:
    """A process of its own that runs `code`."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
    )


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write(path: Path, content: bytes) -> None:
    with new_file(path) as file:
        file.write(content)


WRITER = """
    import sys
    from phi_hybrid.data.files import new_file
    with new_file(sys.argv[1]) as file:
        file.write(b"half")
        file.flush()
        print("writing", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.smoke
def test_new_files_take_the_place_of_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "data.bin"
    for content in (b"first", b"second"):
        write(path, content)
        assert path.read_bytes() == content and names(path.parent) == ["data.bin"]


def test_file_and_folders_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before it takes its name, every folder with a new entry after that."""
    happened, flush, replace = [], files._flush, os.replace
    monkeypatch.setattr(files, "_flush", lambda path, flags: (happened.append(str(path)), flush(path, flags)))
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append("replace"), replace(a, b)))
    write(tmp_path / "a" / "b" / "data.bin", b"content")
    file, *rest = happened
    assert file.endswith(".part")
    assert rest == ["replace", str(tmp_path / "a" / "b"), str(tmp_path / "a"), str(tmp_path)]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_folders_that_cannot_be_flushed(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems do not offer it; other errors are told."""
    flush = os.fsync
    calls = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(code, os.strerror(code))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    if code == errno.EINVAL:
        write(tmp_path / "data.bin", b"content")
    else:
        with pytest.raises(ph.DataError, match="data.bin could not be written.*output"):
            write(tmp_path / "data.bin", b"content")
    assert (tmp_path / "data.bin").read_bytes() == b"content"


# --- failures ---


def no_space(*args: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", ["open", "write", "fsync", "replace"])
def test_errors_keep_the_old_file(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.bin"
    write(path, b"old")
    if moment == "open":
        monkeypatch.setattr(files, "open", no_space, raising=False)
    elif moment != "write":
        monkeypatch.setattr(os, moment, no_space)
    with pytest.raises(ph.DataError, match="data.bin could not be written.*No space left"), new_file(path) as file:
        file.write(b"new")
        if moment == "write":
            no_space()
    assert path.read_bytes() == b"old" and names(tmp_path) == ["data.bin"]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error), new_file(tmp_path / "data.bin"):
            raise error
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "data.bin"):
        raise FileNotFoundError
    assert names(tmp_path) == []


def test_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "data.bin").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "data.bin", tmp_path / "file" / "data.bin"):
        with pytest.raises(ph.DataError, match="could not be written"):
            write(path, b"content")
    assert names(tmp_path) == ["data.bin", "file"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_files_that_grow_too_large(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    write(path, b"old")
    code = """
        import resource, sys
        from phi_hybrid.errors import DataError
        from phi_hybrid.data.files import new_file
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with new_file(sys.argv[1]) as file:
                file.write(bytes(200_000))
        except DataError as error:
            print(error)
    """
    process = start(code, path)
    assert "could not be written" in process.communicate(timeout=120)[0] and process.returncode == 0
    assert path.read_bytes() == b"old" and names(tmp_path) == ["data.bin"]


# --- what killed writers leave ---


def started_writer(path: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
    environment = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert writer.stdout.readline() == "writing\n"
    return writer


@linux
def test_parts_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    killed, alive = started_writer(path), started_writer(path)
    assert len(names(tmp_path)) == 2
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    write(path, b"content")
    assert len(names(tmp_path)) == 2 and path.read_bytes() == b"content"
    alive.communicate("go on\n", timeout=60)
    assert alive.returncode == 0 and names(tmp_path) == ["data.bin"] and path.read_bytes() == b"half"


@linux
@pytest.mark.parametrize(
    "name, age, goes",
    [
        ("data.bin.{}-01234567.part", 0, True),
        ("data.bin.00000000-01234567.part", 0, False),  # another host, which may still write
        ("data.bin.00000000-01234567.part", 2, True),
        ("data.bin.01234567.part", 2, True),  # of version 0.1
        ("data.bin.01234567.part", 0, False),
        ("other.bin.{}-01234567.part", 2, False),
        ("data.bin.mine.part", 2, False),
        ("dataxbin.{}-01234567.part", 2, False),
    ],
)
def test_which_parts_are_abandoned(name: str, age: float, goes: bool, tmp_path: Path) -> None:
    part = tmp_path / name.format(files._HOST)
    part.write_bytes(b"half")
    then = time.time() - age * files.FOREIGN_AGE
    os.utime(part, (then, then))
    write(tmp_path / "data.bin", b"content")
    assert part.exists() != goes


@pytest.mark.slow
def test_nested_and_simultaneous_writers_of_one_file(tmp_path: Path) -> None:
    """Whoever is last wins; nobody removes what another writes."""
    path = tmp_path / "data.bin"
    with new_file(path) as outer:
        outer.write(b"outer")
        write(path, b"inner")
        assert path.read_bytes() == b"inner"
    assert path.read_bytes() == b"outer"
    code = """
        import sys
        from phi_hybrid.data.files import new_file
        for n in range(40):
            with new_file(sys.argv[1]) as file:
                file.write(sys.argv[2].encode() * 1000)
    """
    processes = [start(code, path, letter) for letter in "ab"]
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert path.read_bytes() in (b"a" * 1000, b"b" * 1000) and names(tmp_path) == ["data.bin"]


@linux
def test_libraries_that_lock_files_may_write_the_part(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")

    def by_h5py(name: str) -> None:
        with h5py.File(name, "w") as file:
            file["x"] = [1.0]

    writers: list[Callable] = [by_h5py, lambda name: Path(name).write_bytes(b"content")]
    for writer in writers:
        with replacing(tmp_path / "data.bin") as temporary:
            writer(temporary)
            write(tmp_path / "data.bin", b"inner")  # which looks for abandoned parts
        assert names(tmp_path) == ["data.bin"] and (tmp_path / "data.bin").read_bytes() != b"inner"
