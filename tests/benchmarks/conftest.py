"""Collects the medians of the benchmarks and prints them side by side, as ratios to the first way of a case.

`--device cuda` runs them on a GPU; those that compare what runs on CPUs only are left out then.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import timed
from phiml.backend._numpy_backend import NumPyBackend
from phiml.backend.torch._torch_backend import TorchBackend

LONG = 10.0
"""Seconds that the rounds of one measurement should not exceed, and a warm-up call that is the last one."""

_medians: dict[str, dict[str, float]] = defaultdict(dict)
_peaks: dict[str, dict[str, float]] = defaultdict(dict)
"""MiB at most: measured on GPUs, or noted."""

CPU_ONLY = ("deployment", "gallery", "half_inverse", "peers")
"""Benchmarks of programs, packages and measures of memory that know CPUs only."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device that the benchmarks run on, e.g. cuda")


def pytest_configure(config: pytest.Config) -> None:
    timed.choose(config.getoption("--device"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if timed.device().type != "cpu":
        for item in items:
            if item.path.stem.removeprefix("test_bench_") in CPU_ONLY:
                item.add_marker(pytest.mark.skip(reason="for CPUs only"))


@pytest.fixture(autouse=True)
def two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., None]:
    """Times `work` as one side, `way`, of a comparison, `case`, after warm-up calls; slow work in 3 rounds or more."""

    def run(case: str, way: str, work: Callable[[], Any], rounds: int = 15) -> None:
        work = timed.finished(work)
        work()
        for _ in range(2):
            began = time.perf_counter()
            work()
            seconds = time.perf_counter() - began
            if seconds > LONG:
                break
        benchmark.group = case
        benchmark.pedantic(work, rounds=min(rounds, max(3, int(LONG / seconds))), iterations=1)
        _medians[case][way] = benchmark.stats.stats.median
        if (peak := timed.peak_memory(work)) is not None:
            _peaks[case][way] = benchmark.extra_info["peak memory, MiB"] = peak
        first = next(iter(_medians[case].values()))
        benchmark.extra_info["times faster than the first way"] = first / _medians[case][way]

    return run


@pytest.fixture
def by_turns(benchmark: Any) -> Callable[..., None]:
    """Times ways of a case by turns, in processor time of one thread: for differences that the noise of a machine hides.

    On a GPU in the time until it is done.
    """

    def run(case: str, ways: dict[str, Callable[[], Any]], rounds: int) -> None:
        torch.set_num_threads(1)
        ways = {way: timed.finished(work) for way, work in ways.items()}
        clock = time.process_time if timed.device().type == "cpu" else time.perf_counter
        times: dict[str, list[float]] = {way: [] for way in ways}

        def turn() -> None:
            for way, work in ways.items():
                began = clock()
                work()
                times[way].append(clock() - began)

        benchmark.pedantic(turn, rounds=rounds, iterations=1, warmup_rounds=2)
        _medians[case] |= {way: float(np.median(spent[2:])) for way, spent in times.items()}

    return run


@pytest.fixture
def note() -> Callable[[str, str, float], None]:
    """Puts seconds that were measured in another process beside those of other ways of a case."""

    def put(case: str, way: str, seconds: float) -> None:
        _medians[case][way] = seconds

    return put


@pytest.fixture
def note_memory() -> Callable[[str, str, float], None]:
    """Puts MiB that one way of a case takes beside those of others."""

    def put(case: str, way: str, mebibytes: float) -> None:
        _peaks[case][way] = mebibytes

    return put


@pytest.fixture
def ratio() -> Callable[[str, str, str], float]:
    """How many times faster one way of a case is than another, by the medians of this run."""

    def of(case: str, way: str, than: str) -> float:
        ways = _medians.get(case, {})
        if not {way, than} <= ways.keys():
            pytest.skip(f"{case}: {way} and {than} were not both measured in this run")
        return ways[than] / ways[way]

    return of


@pytest.fixture
def mended_phiml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mends two faults of PhiML 1.16.1, with which plain PhiFlow would fail in some cases.

    Entries of matrices are numbered in 32 bits, too few from 65536 cells on (256², 64³, 64×32×32); traced backward
    passes view cotangents that are not always contiguous.
    """
    narrow = NumPyBackend.ravel_multi_index
    monkeypatch.setattr(
        NumPyBackend, "ravel_multi_index", lambda self, index, *rest: narrow(self, index.astype(np.int64), *rest)
    )
    monkeypatch.setattr(TorchBackend, "reshape", lambda self, x, shape: self.as_tensor(x).reshape(tuple(shape)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _medians or _peaks:
        terminalreporter.section("medians and ratios to the first way")
    for case, ways in _medians.items():
        baseline = next(iter(ways.values()))
        cells = [f"{way} {seconds * 1e3:.2f} ms ({baseline / seconds:.2f}×)" for way, seconds in ways.items()]
        terminalreporter.write_line(f"{case}: " + ", ".join(cells))
    for case, ways in _peaks.items():
        terminalreporter.write_line(f"{case}, memory: " + ", ".join(f"{way} {p:.3g} MiB" for way, p in ways.items()))
