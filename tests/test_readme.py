"""README: its program runs as it stands, and it is short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from phi.torch.flow import PERIODIC, PI, Box, Noise, StaggeredGrid

import phi_hybrid as ph

README = (Path(__file__).parents[1] / "README.md").read_text()
(PROGRAM,) = re.findall(r"```python\n(.*?)```", README, re.S)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 120
    assert len([line for line in PROGRAM.splitlines() if line.strip()]) <= 25


@pytest.mark.smoke
def test_its_program_runs(tmp_path: Path) -> None:
    """With fewer steps and updates; CI runs it as it is."""
    short = PROGRAM.replace("20), 60,", "2), 6,").replace("fit(400)", "fit(2)")
    assert short.count("2), 6,") == short.count("fit(2)") == 1
    (tmp_path / "program.py").write_text(short)
    run = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "coarse solver" in run.stdout and (tmp_path / "errors.png").stat().st_size > 5000
    loaded = ph.load(tmp_path / "solver.ph")
    state = StaggeredGrid(Noise(vector="x,y"), PERIODIC, x=16, y=16, bounds=Box(x=2 * PI, y=2 * PI))
    assert ph.rollout(loaded, state, 2).resolution == state.resolution
