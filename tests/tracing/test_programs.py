"""Random steps: captured, each gives what plain PhiFlow gives on other values, or is refused with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from cases import verdicts
from cases.programs import Program, programs
from cases.small import same
from cases.verdicts import Verdict, judge
from hypothesis import HealthCheck, Phase, given, seed, settings
from phi.torch.flow import Field, math

import phi_hybrid as ph

BATCH = 10
"""Programs of one seed: only the first ten are drawn afresh, later ones are variations of earlier ones."""
REASONS = {
    "depends on the step's inputs": "value taken out",
    "shape of its result depends on values": "shape by value",
    "custom gradient": "custom gradient",
    "tensor of non-uniform shape": "non-uniform state",
}
"""Words in messages → reasons for which a step of public operators may be refused."""
FEW = 0.02
"""Share of programs that may be refused."""


def judged(count: int) -> list[tuple[Program, Verdict]]:
    """Programs of fixed seeds with their verdicts."""
    found: list[tuple[Program, Verdict]] = []
    for number in range(count // BATCH):

        @seed(number)
        @settings(
            max_examples=BATCH,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(programs())
        def keep(program: Program) -> None:
            found.append((program, judge(program)))

        keep()
    return found


def reason_of(verdict: Verdict) -> str | None:
    return next((reason for words, reason in REASONS.items() if words in verdict.detail), None)


def is_fault(verdict: Verdict) -> bool:
    """Neither equal, nor refused with a reason, nor beyond plain PhiFlow."""
    return verdict.kind not in ("equal", "invalid") and (verdict.kind != "refused" or reason_of(verdict) is None)


def check(count: int) -> None:
    found = judged(count)
    kinds = Counter(verdict.kind for _, verdict in found)
    reasons = Counter(reason_of(verdict) for _, verdict in found if verdict.kind == "refused")
    lines, left_out = (sum(n) for n in zip(*((len(p.lines), p.refused) for p, _ in found)))
    summary = f"{dict(kinds)}, refused: {dict(reasons)}; {lines} lines, {left_out} more that plain PhiFlow refuses"
    print(summary)
    faults = [f"{v.kind}: {v.detail}\n{p}" for p, v in found if is_fault(v)]
    assert not faults, "\n".join([f"{len(faults)} of {count} programs", *faults[:5]])
    assert len({program for program, _ in found}) > 0.8 * count, summary
    assert kinds["invalid"] <= 0.1 * len(found), summary
    assert kinds["refused"] <= FEW * len(found), summary


@pytest.mark.ci
def test_twenty_programs() -> None:
    check(20)


@pytest.mark.slow
def test_two_thousand_programs() -> None:
    check(2000)


# --- what would be found ---

LINE = Program(32, (("u", "centred(PERIODIC, Box(x=1), x=5, dims=batch(b=2), vector=False)"),), ("a0 = 2 * u",), "a0")


def one_rounding_more(step: Callable, *example: Field) -> Callable:
    return lambda u: step(u) * (1 + 2**-23)


def frozen(step: Callable, *example: Field) -> Callable:
    result = step(*example)
    return lambda u: result + 0 * u


def without_gradient(step: Callable, *example: Field) -> Callable:
    return lambda u: math.stop_gradient(step(u))


def other_boundary(step: Callable, *example: Field) -> Callable:
    return lambda u: step(u).with_boundary(0)


def raising(step: Callable, *example: Field) -> Callable:
    raise KeyError("u")


@pytest.mark.parametrize(
    "capture, kind",
    [
        (one_rounding_more, "wrong values, within rounding"),
        (frozen, "wrong values"),
        (without_gradient, "wrong gradients"),
        (other_boundary, "wrong structure"),
        (raising, "bare KeyError of capture"),
        (ph.capture, "equal"),
    ],
)
def test_wrong_blocks_are_noticed(capture: Callable, kind: str) -> None:
    assert judge(LINE, capture).kind == kind


def test_results_that_share_memory_are_noticed() -> None:
    def sharing(step: Callable, *example: Field) -> Callable:
        kept = step(*example)

        def call(u: Field) -> Field:
            native = kept.values.native("b,x")
            native.copy_(step(u).values.native("b,x")) if native[0, 0] != 7 else None
            return kept

        return call

    assert "wrong" in judge(LINE, sharing).kind


def test_programs_print_as_scripts_that_can_be_run() -> None:
    assert "a0 = 2 * u" in repr(LINE) and "Box(x=1)" in repr(LINE)
    (u,), _ = LINE.prepare(LINE.make_step(), seed=3)
    assert same(LINE.make_step()(u), 2 * u)


def test_rounding_that_a_step_amplifies_is_allowed_only_behind_solves() -> None:
    values = [torch.tensor([1.0, -0.0]), torch.tensor([1.0, 0.0])]
    exact, other = (verdicts.Outcome([], [v], []) for v in values)
    assert verdicts.compare(other, exact, lambda: exact, rounds=False).kind.startswith("wrong values")
    assert verdicts.compare(other, exact, lambda: exact, rounds=True).kind == "equal"
