"""Collects the medians of the benchmarks and prints them side by side, as ratios to the slowest way of a case."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch

_medians: dict[str, dict[str, float]] = defaultdict(dict)


@pytest.fixture(autouse=True)
def two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture
def measure(benchmark: Any) -> Callable[[str, str, Callable[[], Any]], None]:
    """Times `work` as one side, `way`, of a comparison, `case`; warm-up calls come first."""

    def run(case: str, way: str, work: Callable[[], Any], rounds: int = 15) -> None:
        for _ in range(3):
            work()
        benchmark.group = case
        benchmark.pedantic(work, rounds=rounds, iterations=1)
        _medians[case][way] = benchmark.stats.stats.median

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _medians:
        return
    terminalreporter.section("medians and ratios to the first way")
    for case, ways in _medians.items():
        baseline = next(iter(ways.values()))
        cells = [f"{way} {seconds * 1e3:.2f} ms ({baseline / seconds:.2f}×)" for way, seconds in ways.items()]
        terminalreporter.write_line(f"{case}: " + ", ".join(cells))
