"""Results of studies: numbers of every method and seed, tables, figures, files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from phi_hybrid.bridge.checks import require
from phi_hybrid.data import new_file
from phi_hybrid.errors import StateError
from phi_hybrid.evaluation import Evaluation, Spread, Table
from phi_hybrid.steps import Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Mapping[str, Mapping[str, float]]
"""Method → metric → number."""


@dataclass(frozen=True)
class Run:
    """Findings of a study with one seed."""

    rows: Rows
    evaluation: Evaluation
    """Of all; a solver whose training has failed fails in its first step."""
    histories: Mapping[str, Sequence[Mapping[str, Any]]]
    """Method → history of each stage of its training that was completed."""
    failures: Mapping[str, str]
    """Method → error that has ended its training."""


@dataclass(frozen=True)
class StudyResult:
    """Findings of a study, seed by seed."""

    runs: Mapping[int, Run]
    """By seed."""
    load: Callable[[str, int], Step]
    """`(method, seed) -> solver`."""

    def solver(self, method: str, seed: int | None = None) -> Step:
        """A solver as it was evaluated, with its trained weights.

        Args:
            method: row of the table.
            seed: the first one by default.

        Raises:
            StateError: for a method or a seed that the study has not run, or a training that has failed.
        """
        seed = next(iter(self.runs)) if seed is None else seed
        rows = list(self._run(seed).rows)
        require(method in rows, "method", method, f"one of {rows}")
        if method in self.runs[seed].failures:
            raise StateError(
                f"{method!r} has no solver of seed {seed}, its training has failed: {self.runs[seed].failures[method]}"
            )
        return self.load(method, seed)

    def table(self, columns: Sequence[str] | None = None) -> Table:
        """One row per method: numbers, or their median and spread over several seeds.

        Args:
            columns: names of metrics, all by default.

        Raises:
            StateError: for a metric that was not measured.
        """
        table = Table.over_seeds([run.rows for run in self.runs.values()], columns)
        if len(self.runs) > 1:
            return table
        return Table({row: {c: cell.values[0] for c, cell in cells.items()} for row, cells in table.rows.items()})

    def curves(self, metric: str = "mae", start: float = 0.0) -> dict[str, torch.Tensor]:
        """A metric over time of all trajectories and seeds, method → `(trajectory, time)`, for `plot.errors`.

        Args:
            metric: its name, `mae` by default.
            start: value of the first states, 0 for errors, 1 for correlations.
        """
        curves = [run.evaluation.curves(metric, start) for run in self.runs.values()]
        return {name: torch.cat([c[name] for c in curves]) for name in next(iter(self.runs.values())).rows}

    def figures(self, dt: float = 1.0) -> dict[str, Figure]:
        """Errors over time, of all trajectories and seeds, and the losses of the first seed, by name.

        Args:
            dt: time of one step, 1 by default.
        """
        from phi_hybrid import plot

        run = next(iter(self.runs.values()))
        order = list(run.rows)  # the colour of a method is the same in both
        found = {"errors": plot.errors(self.curves(), dt=dt, order=order)}
        if run.histories:
            found["training"] = plot.history(run.histories, order=order)
        return found

    def save(self, folder: Path, dt: float = 1.0) -> None:
        """Writes metrics.json, table.md and the figures.

        metrics.json has `methods` (method → metric → median), `seeds` (the rows of each) and `failures` (method and seed →
        message). Infinities, and NaN of single seeds, are `null`: JSON has no word for them.

        Args:
            folder: made if it is missing.
            dt: time of one step, 1 by default.
        """
        folder.mkdir(parents=True, exist_ok=True)
        table = self.table()
        medians = {
            row: {c: v.median if isinstance(v, Spread) else v for c, v in found.items()}
            for row, found in table.rows.items()
        }
        cells = {row: {c: v for c, v in found.items() if not math.isnan(v)} for row, found in medians.items()}
        seeds = {str(seed): run.rows for seed, run in self.runs.items()}
        failures = {
            f"{row}, seed {seed}": text for seed, run in self.runs.items() for row, text in run.failures.items()
        }
        content = {"methods": cells, "seeds": seeds, "failures": failures}
        with new_file(folder / "metrics.json") as file:
            file.write(strict_json(content).encode())
        (folder / "table.md").write_text(table.markdown() + "\n", encoding="utf-8")
        for name, figure in self.figures(dt).items():
            figure.savefig(folder / f"{name}.png", dpi=90)

    def evaluation(self, seed: int) -> Evaluation:
        """Of one seed.

        Raises:
            StateError: for a seed that the study has not run.
        """
        return self._run(seed).evaluation

    def _run(self, seed: int) -> Run:
        require(seed in self.runs, "seed", seed, f"one of {list(self.runs)}")
        return self.runs[seed]


def strict_json(content: Mapping[str, Any]) -> str:
    """Text of a JSON file that every program can read: `null` for infinities and NaN, which Python alone writes."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
