"""Programs in the documentation run as pasted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PROGRAMS = re.findall(r"## (.*?)\n.*?```python\n(.*?)```", (DOCS / "several_parts.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize(("title", "program"), PROGRAMS, ids=[title.split(":")[0] for title, _ in PROGRAMS])
def test_programs_run_as_pasted(title: str, program: str, capsys: pytest.CaptureFixture) -> None:
    """They end with a table, or with an error that is smaller than the guess's."""
    assert len([line for line in program.splitlines() if line.strip()]) <= 25
    exec(compile(program, title, "exec"), {"__name__": "__main__"})
    last = capsys.readouterr().out
    if "largest error" in last:
        assert float(re.search(r"speed: ([\d.]+)", last).group(1)) < 0.05
    else:
        errors = {row.split()[0]: float(row.split()[1]) for row in last.splitlines()[-2:]}
        assert errors["hybrid"] < errors["source"]


def test_there_are_three_programs() -> None:
    assert len(PROGRAMS) == 3


def test_the_page_on_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (DOCS / "evaluation.md").read_text(), re.DOTALL)
    assert ".fit(150)" in program
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    shorter = program.replace(".fit(150)", ".fit(2)").replace("range(3)", "range(2)")
    exec(compile(shorter, "evaluation.md", "exec"), names)
    table = names["table"]
    assert str(table) in capsys.readouterr().out
    assert list(table.rows) == [f"{s}, ν {g}" for s in ("source", "hybrid") for g in ("inside", "outside")]
    assert {p.name for p in tmp_path.iterdir()} == {"burgers.h5", "comparison.png", "errors.png"}


DATA = re.findall(r"## (.*?)\n.*?```python\n(.*?)```", (DOCS / "data.md").read_text(), flags=re.DOTALL)
ERRORS = {
    "PhiFlow states": 1e-6,
    "Tensors and arrays": 0.25,
    "Irregular times": 0.15,
    "Several sets, several lengths": 0.15,
    "Computed while training": 0.05,
    "PDEBench": 0.02,
    "The Well": 0.001,
}
"""Largest nRMSE of the last solver in the table that a program ends with."""


@pytest.mark.parametrize(("title", "program"), DATA, ids=[title for title, _ in DATA])
def test_the_page_on_data(
    title: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(program, title, "exec"), {"__name__": "__main__"})
    lines = capsys.readouterr().out.splitlines()
    (header,) = (number for number, line in enumerate(lines) if "nrmse" in line)
    position = lines[header].split().index("nrmse")
    assert float(lines[-1].split()[1 + position]) <= ERRORS[title]


def test_there_is_a_program_for_every_kind_of_data() -> None:
    assert [title for title, _ in DATA] == list(ERRORS)
