"""Who wins where: verdicts on the runs of rules_map.py, and their figure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

Found = dict[str, dict[str, Any]]
"""Problem → `{'methods': {method: [run of every seed, ...]}, ...}`."""

COLOURS = {
    "adam": "#c7c7c7",
    "physical": "#8fd18f",
    "half_physics": "#d9f0a3",
    "hig": "#9ecae1",
    "gauss_newton": "#fdae6b",
}


@dataclass(frozen=True)
class Verdict:
    """The best method by the median over seeds, and its lead."""

    best: str
    error: float
    second: str
    ratio: float
    """Median of the second over that of the best."""
    clear: bool
    """The worst seed of the best is better than the best seed of the second."""

    def __str__(self) -> str:
        lead = "clear" if self.clear else "within the spread"
        return f"{self.best:13}{self.error:9.2e}  {self.second:13}{self.ratio:7.2f} ×  {lead}"


def verdicts(found: Found, error: str) -> dict[str, Verdict]:
    """Verdict on every problem; a run that failed has an infinite error."""
    return {
        name: verdict({m: [run[error] for run in runs] for m, runs in row["methods"].items()})
        for name, row in found.items()
    }


def verdict(errors: dict[str, list[float]]) -> Verdict:
    """Verdict on one problem, method → error of every seed."""
    best, second, *_ = sorted(errors, key=lambda method: median(errors[method]))
    least, next_least = median(errors[best]), median(errors[second])
    ratio = next_least / least if math.isfinite(least) else math.nan
    return Verdict(best, least, second, ratio, max(errors[best]) < min(errors[second]))


def draw(found: Found) -> Figure:
    """Two maps, of errors of y and of x: conditions from left to right, sizes from top to bottom, methods as colours."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 6), layout="constrained", sharey=True)
    for ax, error, title in zip(axes, ("y", "x"), ("‖P(x) − y*‖, what is trained", "‖x − x*‖, what is looked for")):
        _map(
            ax, {_place(name, row): v for (name, row), v in zip(found.items(), verdicts(found, error).values())}, title
        )
    handles = [Rectangle((0, 0), 1, 1, color=colour, label=name.replace("_", " ")) for name, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _place(name: str, row: dict[str, Any]) -> tuple[str, str]:
    """Row and column of a problem."""
    family, condition, *size = name.split()
    return f"{family}, {', '.join(size).replace('=', ' ')}", condition.removeprefix("condition=")


def _map(ax: plt.Axes, squares: dict[tuple[str, str], Verdict], title: str) -> None:
    lines, columns = (list(dict.fromkeys(place[i] for place in squares)) for i in (0, 1))
    lines.sort(key=lambda line: (line.split(",")[0], *map(int, re.findall(r"\d+", line))))
    columns.sort(key=float)
    for (line, column), v in squares.items():
        corner = columns.index(column), lines.index(line)
        ax.add_patch(Rectangle(corner, 1, 1, facecolor=COLOURS[v.best], edgecolor="white"))
        text = f"{v.error:.1e}\n{v.ratio:.2f} ×" if math.isfinite(v.ratio) else "none"
        ax.text(
            corner[0] + 0.5,
            corner[1] + 0.5,
            text,
            ha="center",
            va="center",
            size=8,
            weight="bold" if v.clear else "normal",
        )
    ax.set(xlim=(0, len(columns)), ylim=(len(lines), 0), title=title, xlabel="condition number")
    ax.set_xticks([i + 0.5 for i in range(len(columns))], [f"{float(c):g}" for c in columns])
    ax.set_yticks([i + 0.5 for i in range(len(lines))], lines)
