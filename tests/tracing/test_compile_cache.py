"""Compiled graphs are found on disk by the next process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import compiled_step


def outcomes(folder: Path, *cells: int) -> dict[str, int]:
    """How often torch's caches had what a process with this grid asked for, see `compiled_step`."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder)}
    command = [sys.executable, compiled_step.__file__, *map(str, cells)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1200, env=environment)
    counts = (line.rsplit(" ", 1) for line in run.stdout.splitlines())
    return {name: int(count) for name, count in counts if int(count)}


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    """Values and gradient of a step with interpolation and a solve: its graphs hold nothing that belongs to one process."""
    first = outcomes(tmp_path, 8)
    assert first.keys() == {"fxgraph_cache miss", "autograd_cache miss"}
    second = outcomes(tmp_path, 8, 6, 7)  # after others
    assert second.keys() == {"fxgraph_cache hit", "autograd_cache hit"}
    assert sum(second.values()) == sum(first.values())
    assert "fxgraph_cache miss" in outcomes(tmp_path, 9)  # another grid is another graph
