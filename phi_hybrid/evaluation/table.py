"""Tables of numbers, alone or with their spread over seeds, as text, CSV or Markdown."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from phi_hybrid.bridge.checks import require, require_instance
from phi_hybrid.errors import StateError


@dataclass(frozen=True)
class Spread:
    """One number measured several times, e.g. once per seed. NaN counts as +∞: a failure, not a missing value.

    That suits errors; where larger is better, a failure is −∞, as in `evaluate`.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = isinstance(self.values, Sequence) and all(isinstance(v, Real) for v in self.values)
        require(numbers and len(self.values) > 0, "values", self.values, "at least one number, e.g. Spread((0.1, 0.2))")
        ranked = tuple(math.inf if math.isnan(v) else float(v) for v in self.values)
        object.__setattr__(self, "values", ranked)

    @property
    def median(self) -> float:
        """Middle value; the mean of the two middle ones of an even number."""
        return statistics.median(self.values)

    @property
    def lowest(self) -> float:
        """Smallest value."""
        return min(self.values)

    @property
    def highest(self) -> float:
        """Largest value."""
        return max(self.values)

    def __str__(self) -> str:
        return f"{self.median:.4g} [{self.lowest:.4g}, {self.highest:.4g}]"


@dataclass(frozen=True)
class _Missing(Spread):
    """No number, which is no failure: NaN stays NaN."""

    values: tuple[float, ...] = (math.nan,)

    def __post_init__(self) -> None:
        pass


Cell = float | Spread


@dataclass(frozen=True)
class Table:
    """Row → column → number or `Spread`, every row with the same columns. `str(table)` is its text.

    Infinite numbers are failures and are shown as `inf`; NaN is no number and is shown as `–`.

    Raises:
        StateError: for a table without rows, rows with different columns, or cells that are not numbers.
    """

    rows: Mapping[str, Mapping[str, Cell]]

    def __post_init__(self) -> None:
        named = isinstance(self.rows, Mapping) and all(isinstance(row, Mapping) for row in self.rows.values())
        require(named and len(self.rows) > 0, "rows", self.rows, "row → column → number, e.g. {'hybrid': {'mae': 0.1}}")
        for name, row in self.rows.items():
            if list(row) != self.columns:
                raise StateError(
                    f"row {name!r} has the columns {list(row)}, but the first row has {self.columns}: all rows take "
                    "the same; pick common ones with a table.select([…]) of each part"
                )
            for column, cell in row.items():
                if isinstance(cell, bool) or not isinstance(cell, (int, float, Spread)):
                    raise StateError(f"row {name!r}, column {column!r} is {cell!r}: expected a number or a Spread")

    @staticmethod
    def over_seeds(summaries: Sequence[Mapping[str, Mapping[str, Any]]], columns: Sequence[str] | None = None) -> Table:
        """Median and spread over seeds of the summaries of one experiment.

        Args:
            summaries: one per seed, method → metric → number, as `Evaluation.summary` returns.
            columns: names of metrics; by default all, in the order in which they appear.

        Returns:
            A table that shows `–` where a method has no such metric, e.g. a number of trained networks alone. Where only
            some seeds have it, it counts as +∞ in the others.

        Raises:
            StateError: if there is no summary, a method is missing in one of them, or no method has a metric.
        """
        require_instance("summaries", summaries, Sequence, "one per seed in a list")
        if not summaries:
            raise StateError("no summaries: pass one per seed, e.g. [evaluation.summary() for each seed]")
        known = dict.fromkeys(c for summary in summaries for row in summary.values() for c in row)
        columns = list(known) if columns is None else columns
        for seed, summary in enumerate(summaries):
            if list(summary) != list(summaries[0]):
                raise StateError(
                    f"summary {seed} has the methods {list(summary)}, the first {list(summaries[0])}: a failed method "
                    "is infinite, not left out"
                )
        unknown = [c for c in columns if c not in known]
        if unknown:
            method, row = next(iter(summaries[0].items()))
            raise StateError(
                f"summary 0 has no {unknown} for {method!r}; it has {list(row)}, all rows together have {list(known)}"
            )
        return Table({m: {c: _over_seeds([s[m] for s in summaries], c) for c in columns} for m in summaries[0]})

    @staticmethod
    def stack(tables: Mapping[str, Table]) -> Table:
        """Tables of the same columns below each other: rows are named `row, table`."""
        require_instance("tables", tables, Mapping, "name → table")
        rows: dict[str, Mapping[str, Cell]] = {}
        for name, table in tables.items():
            rows.update({f"{row}, {name}": cells for row, cells in table.rows.items()})
        return Table(rows)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(next(iter(self.rows.values())))

    def select(self, columns: Sequence[str]) -> Table:
        """Some of the columns, in this order.

        Raises:
            StateError: for a column that the table does not have.
        """
        unknown = [c for c in columns if c not in self.columns]
        if unknown:
            raise StateError(f"columns {unknown} are not in the table; it has {self.columns}")
        return Table({name: {c: row[c] for c in columns} for name, row in self.rows.items()})

    def text(self) -> str:
        """Text, aligned for reading, four digits; a spread as `median [lowest, highest]`."""
        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join(
            line[0].ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:]))
            for line in lines
        )

    def markdown(self) -> str:
        """Pipe table, four digits; a spread as `median [lowest, highest]`."""
        head, *body = [[cell.replace("|", r"\|") for cell in line] for line in self._lines()]
        ruler = ["---", *["---:"] * len(self.columns)]
        return "\n".join("| " + " | ".join(line) + " |" for line in (head, ruler, *body))

    def csv(self) -> str:
        """Comma-separated values, all digits; a spread takes three columns, `…_median`, `…_lowest` and `…_highest`."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        spread = {c for c in self.columns for row in self.rows.values() if isinstance(row[c], Spread)}
        heads = [
            [f"{c}_{part}" for part in ("median", "lowest", "highest")] if c in spread else [c] for c in self.columns
        ]
        writer.writerow(["", *sum(heads, [])])
        for name, row in self.rows.items():
            cells = [_three(row[c]) if c in spread else [_digits(row[c])] for c in row]
            writer.writerow([name, *sum(cells, [])])
        return out.getvalue()

    def _lines(self) -> list[list[str]]:
        return [["", *self.columns], *([name, *map(_shown, row.values())] for name, row in self.rows.items())]

    def __str__(self) -> str:
        return self.text()


_NO_NUMBER = "–"


def _over_seeds(rows: Sequence[Mapping[str, Any]], column: str) -> Spread:
    """One column of the rows of a method, one of each seed."""
    if not any(column in row for row in rows):
        return _Missing()
    return Spread(tuple(row.get(column, math.inf) for row in rows))


def _shown(cell: Cell) -> str:
    if _is_missing(cell):
        return _NO_NUMBER
    return str(cell) if isinstance(cell, Spread) else f"{cell:.4g}"


def _is_missing(cell: Cell) -> bool:
    """Whether there is no number: NaN, which a `Spread` of numbers never holds."""
    return math.isnan(cell.lowest if isinstance(cell, Spread) else cell)


def _digits(cell: Cell) -> Cell | str:
    return _NO_NUMBER if _is_missing(cell) else cell


def _three(cell: Cell) -> list[Cell | str]:
    if isinstance(cell, Spread) and not _is_missing(cell):
        return [cell.median, cell.lowest, cell.highest]
    return [_digits(cell)] * 3
