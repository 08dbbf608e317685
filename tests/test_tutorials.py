"""Tutorials: the blocks of a page, joined, are a program that runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {page.stem: page.read_text() for page in sorted((ROOT / "docs" / "tutorials").glob("*.md"))}
SETTING = re.compile(r"^(\w+ = ).*  # quick: (.*)$", re.MULTILINE)
"""A setting, and the value that the tests give it: `UPDATES = 300  # quick: 3`."""


def program_of(page: str) -> str:
    return "\n\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))


def figures_of(page: str) -> list[str]:
    return re.findall(r'savefig\("(.*?)"\)', page)


@pytest.mark.ci
@pytest.mark.parametrize("name", PAGES)
def test_a_tutorial_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    """With quick settings; the numbers on the page come from its own."""
    program = program_of(PAGES[name])
    quick, settings = SETTING.subn(r"\1\2", program)
    assert settings == program.count("# quick:") > 0
    (tmp_path / "program.py").write_text(quick)
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "program.py"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) >= 3
    for figure in figures_of(program):
        assert (tmp_path / figure).stat().st_size > 5000


@pytest.mark.parametrize("name", PAGES)
def test_a_tutorial_says_where_it_leads_and_shows_what_it_draws(name: str) -> None:
    page = PAGES[name]
    assert page.index("**At the end**") < page.index("```python") < page.index("## What to try next")
    shown = re.findall(r"\]\(\.\./(figures/.*?\.png)\)", page)
    assert len(figures_of(page)) == len(shown) == 1
    assert 5000 < (ROOT / "docs" / shown[0]).stat().st_size < 300 * 1024


def test_the_first_solver_takes_forty_lines() -> None:
    assert len([line for line in program_of(PAGES["first_solver"]).splitlines() if line.strip()]) <= 40


def test_all_tutorials_are_on_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    assert len(PAGES) == 6
    assert all(f"tutorials/{name}.md" in site for name in PAGES)
