"""The script in docs/evaluation.md runs and shows what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import phi_hybrid as ph
from phi_hybrid.evaluation.table import Table

PAGE = Path(ph.__file__).parent.parent / "docs" / "evaluation.md"


def test_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    if not PAGE.exists():
        pytest.skip("installed without docs")
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert ".fit(150)" in script
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(script.replace(".fit(150)", ".fit(2)"), PAGE.name, "exec"), names)
    table = names["table"]
    assert isinstance(table, Table) and str(table) in capsys.readouterr().out
    assert list(table.rows) == [f"{s}, ν {g}" for s in ("source", "hybrid") for g in ("inside", "outside")]
    assert {p.name for p in tmp_path.iterdir()} == {"burgers.h5", "comparison.png", "errors.png"}
