"""Helpers that the demos share."""

from __future__ import annotations

import json
from pathlib import Path

import common
import pytest
import torch

RUNS = [
    {"source": {"mae": 0.3, "mae_50": 0.1}, "unrolled_16": {"mae": 0.02, "mae_50": 0.01}},
    {"source": {"mae": 0.5, "mae_50": 0.2}, "unrolled_16": {"mae": 0.04, "mae_50": 0.03}},
    {"source": {"mae": 0.4, "mae_50": 0.9}, "unrolled_16": {"mae": float("inf"), "mae_50": 0.02}},
]


def test_options_of_every_demo() -> None:
    parser = common.arguments("About this demo.", "some_demo")
    options = parser.parse_args([])
    assert vars(options) == {
        "quick": False, "full": False, "seed": 0, "seeds": 1, "device": "cpu", "out": Path("out") / "some_demo"
    }  # fmt: skip
    options = parser.parse_args("--quick --seed 3 --seeds 2 --device cuda --out there".split())
    assert options.quick and options.seed == 3 and options.seeds == 2 and options.device == "cuda"
    assert options.out == Path("there")
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", "abacus"])


def test_metrics_of_one_seed(tmp_path: Path) -> None:
    common.write_metrics(tmp_path / "new" / "folder", RUNS[:1], 12.5)
    metrics = json.loads((tmp_path / "new" / "folder" / "metrics.json").read_text())
    assert metrics == {**RUNS[0], "seconds": 12.5}


def test_metrics_of_several_seeds_are_medians(tmp_path: Path) -> None:
    common.write_metrics(tmp_path, RUNS, 3.0)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["source"] == {"mae": 0.4, "mae_50": 0.2}
    assert metrics["unrolled_16"] == {"mae": 0.04, "mae_50": 0.02}
    assert metrics["seeds"] == RUNS and metrics["seconds"] == 3.0


def test_table_of_seeds() -> None:
    head, source, unrolled = common.seed_table(RUNS, ["mae", "mae_50"]).splitlines()
    assert head.split() == ["mae", "mae_50"]
    assert source.split() == ["source", "0.4", "[0.3,", "0.5]", "0.2", "[0.1,", "0.9]"]
    assert unrolled.split() == ["unrolled_16", "0.04", "[0.02,", "inf]", "0.02", "[0.01,", "0.03]"]
    assert len(head) == len(source) == len(unrolled)


def test_missing_device_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    common.require_device("cpu")
    with pytest.raises(SystemExit, match="torch sees no CUDA device; use --device cpu"):
        common.require_device("cuda")


def test_figures_are_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    class Figure:
        def savefig(self, path: Path, dpi: int) -> None:
            Path(path).write_text(f"{dpi} dpi")

    common.save_figures(tmp_path / "out", {"errors": Figure(), "rollout": Figure()})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["errors.png", "rollout.png"]
    assert capsys.readouterr().out.count("wrote") == 2
