"""C++ files of this folder as shared libraries, built once for each compiler and processor."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-std=c++17", "-shared", "-fPIC")


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The library made of `name.cpp`; `None`, with a warning, where it cannot be built.

    It is kept below `TORCHINDUCTOR_CACHE_DIR` or the user's cache folder. `CXX` names the compiler, as for torch.
    """
    source = Path(__file__).with_name(f"{name}.cpp")
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    try:
        target = _cache_folder() / f"{name}-{_fingerprint(compiler, source)}.so"
        if not target.exists():
            _build(compiler, source, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        warnings.warn(
            f"{name}.cpp could not be compiled with {compiler}, so compiled steps are slower: {detail}. Set CXX to a compiler "
            "of C++17 with OpenMP",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def _cache_folder() -> Path:
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(given) / "phi_hybrid"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fingerprint(compiler: str, source: Path) -> str:
    """Differs where the compiler, or the processor that `native` stands for, differs."""
    expanded = subprocess.run(
        [compiler, *FLAGS, "-###", "-x", "c++", os.devnull], capture_output=True, text=True, check=True, timeout=60
    )
    stable = [line for line in expanded.stderr.splitlines() if tempfile.gettempdir() not in line]
    return hashlib.blake2b(source.read_bytes() + "\n".join(stable).encode(), digest_size=12).hexdigest()


def _build(compiler: str, source: Path, target: Path) -> None:
    """Written beside the target and moved there: other processes may build the same."""
    handle, scratch = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        command = [compiler, *FLAGS, str(source), "-o", scratch]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        os.replace(scratch, target)
    finally:
        Path(scratch).unlink(missing_ok=True)
