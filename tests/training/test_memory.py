"""Anonymous memory of lazily loaded trajectories and of their evaluation, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "cases" / "memory.py"


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_memory_grows_neither_with_the_data_nor_with_the_rollouts(tmp_path: Path) -> None:
    """Four times the rollouts are 32 MB more of reference data."""
    paths = [str(SCRIPT.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    # What is freed goes back to the system at once, so that the numbers do not depend on the history of the heap.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **settings, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["file"] > 40
    assert found["lazy"] < 8 and found["loaded"] > 0.9 * found["file"]  # or else this test would notice nothing
    assert found["32"] - found["8"] < 8 and found["32"] < 20
