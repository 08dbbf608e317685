"""Random steps: captured, each gives what plain PhiFlow gives on other values, or is refused with a reason."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from cases.programs import Program, programs
from cases.verdicts import Verdict, judge
from hypothesis import HealthCheck, given, seed, settings

BATCH = 10
"""Programs of one seed: only the first ten are drawn afresh, later ones are variations of earlier ones."""
REASONS = {
    "condition": "a Python condition",
    "custom gradient": "custom gradient",
    "matrix": "a linear solve whose matrix",
    "non-uniform": "tensor of non-uniform shape",
}
"""Reasons for which a step of public operators may be refused."""
FEW = 0.02
"""Share of programs that may be refused."""


def judged(count: int) -> list[tuple[Program, Verdict]]:
    """Programs of fixed seeds with their verdicts; the first wrong one is made smaller and printed as a script."""
    found: list[tuple[Program, Verdict]] = []
    for number in range(count // BATCH):

        @seed(number)
        @settings(max_examples=BATCH, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(programs())
        def keep(program: Program) -> None:
            verdict = judge(program)
            found.append((program, verdict))
            assert verdict.kind in ("equal", "invalid", "refused"), f"{verdict.kind}: {verdict.detail}"
            assert verdict.kind != "refused" or reason_of(verdict), f"refused without a reason: {verdict.detail}"

        keep()
    return found


def reason_of(verdict: Verdict) -> str | None:
    return next((name for name, words in REASONS.items() if re.search(words, verdict.detail)), None)


def check(count: int) -> None:
    found = judged(count)
    kinds = Counter(verdict.kind for _, verdict in found)
    reasons = Counter(reason_of(verdict) for _, verdict in found if verdict.kind == "refused")
    lines, left_out = (sum(n) for n in zip(*((len(p.lines), p.refused) for p, _ in found)))
    summary = f"{dict(kinds)}, refused: {dict(reasons)}; of {lines + left_out} lines plain PhiFlow refused {left_out}"
    print(summary)
    assert len({program for program, _ in found}) > 0.9 * count, summary
    assert kinds["invalid"] <= 0.02 * len(found), summary
    assert kinds["refused"] <= FEW * len(found), summary


def test_fifty_programs() -> None:
    check(50)


@pytest.mark.slow
def test_two_thousand_programs() -> None:
    check(2000)
