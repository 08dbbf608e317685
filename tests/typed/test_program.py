"""Public types, as a strict checker of a user's program sees them in the installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.ci
def test_a_strict_checker_finds_no_mistake_but_those_that_are_there(tmp_path: Path) -> None:
    settings = ["--strict", "--follow-imports=silent", "--ignore-missing-imports", "--config-file="]
    root = PROGRAM.parents[2]
    settings.append(f"--cache-dir={root / '.mypy_cache'}")  # reads PhiFlow's and torch's sources once, not in every run
    search = {"MYPYPATH": str(root)}  # mypy does not follow an editable install
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, PROGRAM],
        cwd=tmp_path, env={**os.environ, **search}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
