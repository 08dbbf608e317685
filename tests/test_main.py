"""`python -m phi_hybrid`."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from phi_hybrid import __main__ as report


@pytest.mark.smoke
def test_it_prints_versions_and_that_capture_works() -> None:
    run = subprocess.run([sys.executable, "-m", "phi_hybrid"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert f"torch {torch.__version__}" in run.stdout and "devices: cpu" in run.stdout
    assert re.search(r"capture: works, .* difference 0e\+00", run.stdout)
    assert re.search(r"compile=True: (works|fails)", run.stdout)


def test_it_says_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no compiler here")

    monkeypatch.setattr("phi_hybrid.capture", broken)
    assert report.capture_report().count("fails, OSError: no compiler here") == 2
