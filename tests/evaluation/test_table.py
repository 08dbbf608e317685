"""Tables against text written by hand, and read back as CSV."""

from __future__ import annotations

import copy
import csv
import io
import math
import pickle
from typing import Any

import pytest

import phi_hybrid as ph
from phi_hybrid.evaluation import Spread, Table

INF = math.inf
PLAIN = Table({"source": {"mae": 0.25, "nrmse": 1 / 3}, "a longer name": {"mae": INF, "nrmse": -INF}})
SUMMARIES = [
    {"source": {"mae": 0.3, "nrmse": 1.0}, "hybrid": {"mae": 0.02, "nrmse": 3.0}},
    {"source": {"mae": 0.5, "nrmse": 2.0}, "hybrid": {"mae": INF, "nrmse": 1.0}},
    {"source": {"mae": 0.4, "nrmse": 9.0}, "hybrid": {"mae": 0.04, "nrmse": math.nan}},
]
SEEDS = Table.over_seeds(SUMMARIES)


def test_text() -> None:
    expected = [
        "                mae   nrmse",
        "source         0.25  0.3333",
        "a longer name   inf    -inf",
    ]
    assert PLAIN.text().splitlines() == expected and str(PLAIN) == f"{PLAIN}" == PLAIN.text()


def test_markdown() -> None:
    assert Table({"a|b": {"mae": 0.25, "x": Spread((1.0, 3.0, 2.0))}}).markdown().splitlines() == [
        "|  | mae | x |",
        "| --- | ---: | ---: |",
        r"| a\|b | 0.25 | 2 [1, 3] |",
    ]


def test_csv_is_read_back_to_the_last_digit() -> None:
    table = Table({'solver, "inside"': {"mae": 1 / 3, "nrmse": INF}, "b": {"mae": 2.0, "nrmse": -INF}})
    head, *rows = csv.reader(io.StringIO(table.csv()))
    assert head == ["", "mae", "nrmse"]
    found = {name: dict(zip(head[1:], map(float, cells))) for name, *cells in rows}
    assert found == table.rows


def test_csv_of_spreads() -> None:
    head, source, hybrid = csv.reader(io.StringIO(SEEDS.csv()))
    parts = ("median", "lowest", "highest")
    assert head == ["", *(f"{m}_{p}" for m in ("mae", "nrmse") for p in parts)]
    assert list(map(float, source[1:])) == [0.4, 0.3, 0.5, 2.0, 1.0, 9.0]
    assert list(map(float, hybrid[1:])) == [0.04, 0.02, INF, 3.0, 1.0, INF]
    mixed = Table({"one": {"mae": 0.5}, "many": {"mae": Spread((1.0, 2.0))}})
    assert mixed.csv().splitlines() == [",mae_median,mae_lowest,mae_highest", "one,0.5,0.5,0.5", "many,1.5,1.0,2.0"]


def test_spread_over_seeds() -> None:
    cell = SEEDS.rows["source"]["mae"]
    assert isinstance(cell, Spread) and cell.values == (0.3, 0.5, 0.4)
    assert (cell.median, cell.lowest, cell.highest) == (0.4, 0.3, 0.5) and str(cell) == "0.4 [0.3, 0.5]"
    assert Spread((1.0, 2.0, 4.0, 8.0)).median == 3.0


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_failures_stay_in_the_median(order: tuple[int, ...]) -> None:
    """Two failures out of three: the median has failed; NaN is no exception, wherever it stands."""
    values = [INF, math.nan, 0.1]
    assert Spread(tuple(values[n] for n in order)).median == INF
    assert Spread(tuple([0.1, math.nan, 0.3][n] for n in order)).median == 0.3
    assert Spread(tuple([-INF, 0.9, -INF][n] for n in order)).median == -INF


def test_seeds_of_some_columns() -> None:
    runs = [{"a": {"mae": 1.0, "mae_Re": {"300": 2.0}}}, {"a": {"mae": 3.0, "mae_Re": {"300": 2.0}}}]
    assert Table.over_seeds(runs, ["mae"]).rows["a"] == {"mae": Spread((1.0, 3.0))}


PARTLY = [
    {"source": {"mae": 2.0}, "hybrid": {"mae": 1.0, "drag": 0.5}, "other": {"mae": 1.0, "lift": 0.25, "drag": 1.0}},
    {"source": {"mae": 4.0}, "hybrid": {"mae": 3.0, "drag": math.nan}, "other": {"mae": 1.0, "lift": 0.75}},
]


def test_columns_that_only_some_rows_have() -> None:
    """In the order in which they appear. Where no seed has a number, there is none; one that fails to have it has failed."""
    table = Table.over_seeds(PARTLY)
    assert table.text().splitlines() == [
        "             mae            drag              lift",
        "source  3 [2, 4]               –                 –",
        "hybrid  2 [1, 3]  inf [0.5, inf]                 –",
        "other   1 [1, 1]    inf [1, inf]  0.5 [0.25, 0.75]",
    ]
    assert table.markdown().splitlines()[2:4] == [
        "| source | 3 [2, 4] | – | – |",
        "| hybrid | 2 [1, 3] | inf [0.5, inf] | – |",
    ]
    assert table.csv().splitlines()[1:] == [
        "source,3.0,2.0,4.0,–,–,–,–,–,–",
        "hybrid,2.0,1.0,3.0,inf,0.5,inf,–,–,–",
        "other,1.0,1.0,1.0,inf,1.0,inf,0.5,0.25,0.75",
    ]
    assert Table.over_seeds(PARTLY, ["lift", "mae"]).rows["source"] == table.select(["lift", "mae"]).rows["source"]
    assert str(pickle.loads(pickle.dumps(table))) == str(copy.deepcopy(table)) == str(table)


def test_single_numbers_that_are_none() -> None:
    table = Table({"a": {"x": math.nan, "y": 1 / 3}, "b": {"x": 2.0, "y": INF}})
    assert table.text().splitlines() == ["   x       y", "a  –  0.3333", "b  2     inf"]
    assert table.markdown().splitlines()[2] == "| a | – | 0.3333 |"
    assert table.csv().splitlines()[1:] == [f"a,–,{1 / 3}", "b,2.0,inf"]


def test_select_and_stack() -> None:
    assert PLAIN.select(["nrmse"]).rows == {"source": {"nrmse": 1 / 3}, "a longer name": {"nrmse": -INF}}
    assert PLAIN.select(["nrmse", "mae"]).columns == ["nrmse", "mae"]
    stacked = Table.stack({"inside": PLAIN, "outside": PLAIN})
    assert list(stacked.rows) == [f"{r}, {t}" for t in ("inside", "outside") for r in PLAIN.rows]
    assert stacked.rows["source, outside"] == PLAIN.rows["source"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Table({"a": {"x": 1.0}, "b": {"y": 1.0}}),
            r"row 'b' has the columns \['y'\], .* has \['x'\]: .*select",
        ),
        (lambda: Table({"a": {"x": "1"}}), "row 'a', column 'x' is '1': expected a number or a Spread"),
        (lambda: Table({"a": {"x": {"300": 1.0}}}), "row 'a', column 'x' is .*expected a number"),
        (lambda: PLAIN.select(["mea"]), r"columns \['mea'\] are not in the table; it has \['mae', 'nrmse'\]"),
        (lambda: Table.over_seeds([]), "no summaries: pass one per seed"),
        (lambda: Table.over_seeds([SUMMARIES[0], {"source": {}}]), "summary 1 has the methods .* not left out"),
        (lambda: Table.over_seeds(SUMMARIES, ["mse"]), r"summary 0 has no \['mse'\] for 'source'; it has"),
        (lambda: Table.stack({"a": PLAIN, "b": PLAIN.select(["mae"])}), "row 'source, b' has the columns"),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ph.StateError, match=message):
        make()
