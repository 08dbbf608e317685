"""Summaries, tables, groups and times of evaluations whose numbers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import phi_hybrid as ph
from phi_hybrid.evaluation import Evaluation

TRAJECTORIES, STEPS, INF = 3, 5, float("inf")
ERRORS = torch.arange(15.0, dtype=torch.float64).reshape(TRAJECTORIES, STEPS)
CURVES = torch.tensor([[0.99, 0.9, 0.7, 0.9, 0.9], [1.0] * 5, [0.5, 0.9, 0.9, 0.9, 0.9]], dtype=torch.float64)
FOUND = Evaluation(
    {
        "mae": {"worse": ERRORS, "a longer name": 2 * ERRORS},
        "correlation": {"worse": CURVES, "a longer name": CURVES - 0.5},
    },
    {"worse": torch.tensor([5, 5, 5]), "a longer name": torch.tensor([5, 1, 3])},
)


def test_summary_and_horizons() -> None:
    summary = FOUND.summary((1, 3))
    assert list(summary) == ["worse", "a longer name"]
    assert summary["a longer name"] == pytest.approx(
        {
            "mae": 14.0,
            "mae_1": 10.0,
            "mae_3": 12.0,
            "correlation": float(CURVES.mean()) - 0.5,
            "correlation_1": 2.49 / 3 - 0.5,
            "correlation_3": float(CURVES[:, :3].mean()) - 0.5,
            "blow_up": 2 / 3,
            "blow_up_1": 0.0,
            "blow_up_3": 1 / 3,
        }
    )
    assert FOUND.steps == STEPS and FOUND.mae is FOUND["mae"]


def test_table() -> None:
    head, *rows = str(FOUND.table((2,))).splitlines()
    assert head.split() == [n + end for n in ("mae", "correlation", "blow_up") for end in ("", "_2")]
    assert len({len(r) for r in [head, *rows]}) == 1
    for row, (name, metrics) in zip(rows, FOUND.summary((2,)).items()):
        assert row.startswith(name + " ")
        assert [float(x) for x in row[len(name) :].split()] == pytest.approx(list(metrics.values()), rel=1e-3)


def test_time_to_a_threshold() -> None:
    assert FOUND.time_to(0.8, dt=0.5)["worse"].tolist() == [1.0, 2.5, 0.0]
    assert FOUND.time_to(0.95)["worse"].tolist() == [1, 5, 0]
    row = FOUND.summary((), (0.8, 0.95), dt=0.5)["worse"]
    assert row["time_to_0.8"] == pytest.approx(3.5 / 3) and row["time_to_0.95"] == 1.0
    assert FOUND.until(2).time_to(0.8)["worse"].tolist() == [2, 2, 0]


def test_failed_rollouts_have_decorrelated() -> None:
    """At the step in which they fail, whatever the threshold; and means over them are infinite."""
    lifetime = torch.tensor([5, 1, 3])
    failed = torch.arange(STEPS) >= lifetime[:, None]
    values = {"mae": {"u": ERRORS.masked_fill(failed, INF)}, "c": {"u": CURVES.masked_fill(failed, -INF)}}
    found = Evaluation(values, {"u": lifetime})
    for metric in values:
        assert found.time_to(-2.0, metric, dt=0.1)["u"].tolist() == pytest.approx([0.5, 0.1, 0.3])
    summary = found.summary((1, 5), (0.3,), correlation="c")["u"]
    assert summary["mae"] == summary["mae_5"] == INF == -summary["c"]
    assert summary["mae_1"] == 5 and summary["c_1"] == pytest.approx(2.49 / 3) and summary["time_to_0.3"] == 3
    assert "inf" in str(found.table())


@pytest.mark.parametrize("inside", [[0, 2], torch.tensor([True, False, True]), np.array([0, 2]), slice(0, 3, 2)])
def test_groups_of_trajectories(inside: Any) -> None:
    grouped = FOUND.grouped({"inside": inside, "outside": [1]})
    names = [f"{s}, {g}" for s in FOUND.lifetime for g in ("inside", "outside")]
    assert list(grouped.summary()) == list(grouped.table().rows) == list(grouped.curves()) == names
    assert torch.equal(grouped.mae["worse, inside"], ERRORS[[0, 2]])
    assert torch.equal(FOUND.select(inside)["correlation"]["worse"], CURVES[[0, 2]])
    assert grouped.lifetime["a longer name, inside"].tolist() == [5, 3]
    expected = FOUND.select([1]).summary((2,), (0.9,))["worse"]
    assert grouped.summary((2,), (0.9,))["worse, outside"] == pytest.approx(expected)


def test_horizons_are_evaluations_of_fewer_steps() -> None:
    short = FOUND.until(2)
    assert torch.equal(short.mae["worse"], ERRORS[:, :2]) and short.lifetime["a longer name"].tolist() == [2, 1, 2]
    assert FOUND.summary((2,))["worse"]["mae_2"] == short.summary()["worse"]["mae"]


def test_numbers_over_time() -> None:
    table = FOUND.over_time("correlation")
    assert table.columns == ["worse", "a longer name"] and list(table.rows) == ["1", "2", "3", "4", "5"]
    assert [row["worse"] for row in table.rows.values()] == CURVES.mean(0).tolist()
    curves = FOUND.curves("correlation", start=1.0)["worse"]
    assert torch.equal(curves[:, 0], torch.ones(TRAJECTORIES).double()) and torch.equal(curves[:, 1:], CURVES)
    assert torch.equal(FOUND.curves()["worse"], torch.nn.functional.pad(ERRORS, (1, 0)))


def ambiguous(name: str) -> Evaluation:
    return Evaluation({**FOUND.values, name: FOUND.mae}, FOUND.lifetime)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FOUND.summary((2, 0)), r"horizon = 0"),
        (lambda: FOUND.table((2, 6)), r"horizons \[6\]: the evaluation has 5 steps; use 1 … 5"),
        (lambda: FOUND.until(6), r"horizons \[6\]: the evaluation has 5 steps"),
        (lambda: FOUND["spectrum"], r"metric 'spectrum' was not measured, only \['mae', 'correlation'\]; add it"),
        (lambda: FOUND.time_to(0.8, "vorticity"), "metric 'vorticity' was not measured"),
        (lambda: FOUND.summary((3, 3)), r"\['blow_up_3', .* would stand for two numbers each"),
        (lambda: ambiguous("mae_2").summary((2,)), r"\['mae_2'\] would stand for two numbers each: rename the metric"),
        (lambda: FOUND.grouped({}), "groups = "),
        (lambda: FOUND.grouped({"all": [0, 1, 2], "none": [False] * 3}), "selects none of 3 trajectories"),
        *[
            (lambda wrong=wrong: FOUND.select(wrong), "no trajectories of 3: give indices 0 … 2|selects none of 3")
            for wrong in ([3], [True, False], [], [0.5], "ab", slice(3, 9))
        ],
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ph.StateError, match=message):
        make()
