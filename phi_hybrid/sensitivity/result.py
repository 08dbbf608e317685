"""What a check of gradients has found, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from phi_hybrid.sensitivity.breaks import JUMP, KINK, REACH
from phi_hybrid.sensitivity.differences import Agreement
from phi_hybrid.sensitivity.growth import EXPLODING, STEADY, USEFUL, VANISHING, Curve, Growth
from phi_hybrid.sensitivity.operations import Operation
from phi_hybrid.tracing import Line

MOSTLY = 0.5
"""Share of a change beyond which gradients see less of it than they miss."""


@dataclass(frozen=True)
class ArgumentCheck:
    """Derivatives of one step by its state or one of its inputs.

    Attributes:
        name: of the argument.
        agreements: one for every point and direction.
    """

    name: str
    agreements: tuple[Agreement, ...]

    @property
    def reverse(self) -> float:
        """Largest relative difference of reverse mode from finite differences; kinks left out."""
        return max(a.reverse for a in self.agreements)

    @property
    def forward(self) -> float:
        """Largest relative difference of forward mode, NaN where torch has none."""
        return max(a.forward for a in self.agreements)

    @property
    def wrong(self) -> tuple[str, ...]:
        """Names of the modes that differ by more than the error of the differences, in most of the directions."""
        modes = {"reverse mode": "wrong_reverse", "forward mode": "wrong_forward"}
        return tuple(
            m for m, a in modes.items() if 2 * sum(getattr(x, a) for x in self.agreements) > len(self.agreements)
        )

    @property
    def unused(self) -> bool:
        """Tells if the result does not depend on the argument."""
        return all(a.zero for a in self.agreements)


@dataclass(frozen=True)
class Break:
    """Jumps of values or kinks that lines through state space met.

    Attributes:
        kind: `"jump"` or `"kink"`.
        operation: where it happens, `None` where that is not known.
        met: number of lines that met it.
        drawn: number of lines.
        size: the largest jump, in units of the root mean square of the result; of kinks the largest change of a slope.
    """

    kind: str
    operation: Operation | None
    met: int
    drawn: int
    size: float


@dataclass(frozen=True)
class GradientCheck:
    """Answer to whether a step is fit for training through it, from `check_gradients`; to be printed.

    Attributes:
        name: of the step.
        steps: number of steps that the check went through.
        arguments: derivatives by the state and by every input.
        breaks: jumps and kinks met on lines of ±0.1 root mean squares.
        missed: share of the change along these lines that jumps make and no gradient sees.
        growth: of gradients over the steps; `None` for a step that cannot be repeated.
        unrepeated: why it cannot be, `""` where it can.
        wrong: operations whose gradient is missing or wrong.
        blocked: limiters and branches, with the share of entries that get no gradient there.
        without_gradient: rounding, signs, comparisons, integers: operations whose gradient is zero.
    """

    name: str
    steps: int
    arguments: tuple[ArgumentCheck, ...]
    breaks: tuple[Break, ...]
    missed: float
    growth: Growth | None
    unrepeated: str
    wrong: tuple[Operation, ...]
    blocked: tuple[Operation, ...]
    without_gradient: tuple[Operation, ...]

    @property
    def fit(self) -> bool:
        """Tells if nothing speaks against training through this many steps; there may be `warnings`."""
        return not self.problems

    @property
    def grade(self) -> str:
        """In short: `"fit"`, `"fit with care"` where there are warnings, or `"not fit"`."""
        return "not fit" if not self.fit else "fit with care" if self.warnings else "fit"

    @property
    def verdict(self) -> str:
        """Growth of gradients, backwards: vanishing, steady, exploding or not finite."""
        return STEADY if self.growth is None else self.growth.reverse.verdict

    @property
    def problems(self) -> tuple[str, ...]:
        """What speaks against training through the step, in words."""
        jumps = self._jumps() if self.missed > MOSTLY else ()
        return tuple([*self._wrong_gradients(), *jumps, *self._growths()])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What gradients do not see, though they see most of what changes, in words."""
        return tuple(self._jumps()) if self.missed <= MOSTLY else ()

    @property
    def size_curves(self) -> dict[str, tuple[tuple[float, ...], ...]]:
        """Argument → relative difference of reverse mode from finite differences for every step size, per direction."""
        return {a.name: tuple(x.curve for x in a.agreements) for a in self.arguments if not a.unused}

    def _wrong_gradients(self) -> Iterator[str]:
        for argument in self.arguments:
            if argument.wrong:
                errors = {"reverse mode": argument.reverse, "forward mode": argument.forward}
                off = " and ".join(f"{mode} by {_percent(errors[mode])}" for mode in argument.wrong)
                yield f"the gradient by {argument.name} is wrong: off finite differences in {off}{_places(self.wrong)}"

    def _jumps(self) -> Iterator[str]:
        jumps = [b for b in self.breaks if b.kind == JUMP]
        if jumps:
            yield (
                f"values jump, by up to {max(b.size for b in jumps):.2g}: {_percent(self.missed)} of what changes along "
                f"random lines no gradient sees{_places([b.operation for b in jumps if b.operation])}"
            )

    def _growths(self) -> Iterator[str]:
        growth = self.growth
        if growth is None:
            return
        if not growth.finite_state:
            yield f"the state is not finite after step {growth.not_finite}"
            return
        if growth.not_finite is not None:
            yield f"the gradient of step {growth.not_finite} is not finite, though the state is{_places(self.wrong)}"
        curve = growth.reverse
        if curve.verdict in (EXPLODING, VANISHING):
            yield (
                f"gradients are {curve.verdict}, {_rate(curve)}: beyond {USEFUL[0]:g} … {USEFUL[1]:g} after "
                f"{_steps(curve.horizon)}{_digits(curve)}; train through fewer"
            )

    def __str__(self) -> str:
        through = f"training through {_steps(self.steps)}" if self.growth else "training through it"
        lines = [f"{self.name} is {self.grade} for {through}{'.' if self.grade == 'fit' else ':'}"]
        lines += [f"  ! {text}" for text in (*self.problems, *self.warnings)]
        rows = [*self._derivative_rows(), *self._break_rows(), *self._growth_rows(), *self._operation_rows()]
        width = max(len(head) for head, _ in rows)
        return "\n".join([*lines, *(f"  {head:<{width}}  {text}" for head, text in rows)])

    def _derivative_rows(self) -> Iterator[tuple[str, str]]:
        for argument in self.arguments:
            if argument.unused:
                text = "zero: neither differences nor derivatives see any dependence"
            else:
                forward = "none" if math.isnan(argument.forward) else f"{argument.forward:.0e}"
                verb = "disagree with" if argument.wrong else "agree with"
                text = f"differences {verb} derivatives: reverse mode {argument.reverse:.0e}, forward mode {forward}"
            yield f"gradient by {argument.name}", text

    def _break_rows(self) -> Iterator[tuple[str, str]]:
        kinks = [b for b in self.breaks if b.kind == KINK]
        if not self.breaks:
            yield "values", f"smooth along all lines of ±{REACH:g} of the state's size"
        elif len(kinks) == len(self.breaks):
            yield "values", "piecewise smooth: kinks, beside which gradients hold"
        else:
            yield "values", "they jump"
        for found in self.breaks:
            name = "jump" if found.kind == JUMP else "kink"
            yield "", f"{name}s along {found.met} of {found.drawn} lines{_place(found.operation)}"

    def _growth_rows(self) -> Iterator[tuple[str, str]]:
        if self.growth is None:
            yield "growth", f"not measured: {self.unrepeated}"
            return
        for name, curve in (("backwards", self.growth.reverse), ("forwards", self.growth.forward)):
            if curve is None:
                yield f"growth {name}", "torch has no forward mode for this step"
            else:
                last = curve.largest[-1]
                yield (
                    f"growth {name}",
                    f"{curve.verdict}, {_rate(curve)}, {last:.2g} after {_steps(len(curve.largest) - 1)}",
                )

    def _operation_rows(self) -> Iterator[tuple[str, str]]:
        for operation in self.wrong:
            yield "wrong gradient", f"{_percent(operation.share)} missing or wrong{_place(operation)}"
        for operation in self.blocked:
            yield "no gradient", f"for {_percent(operation.share)} of the entries{_place(operation)}"
        lines: dict[Line | None, list[str]] = {}
        for operation in self.without_gradient:
            lines.setdefault(operation.line, []).append(operation.name)
        for line, names in lines.items():
            yield "steps, gradient 0", str(Operation(", ".join(names), line))


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "more than any number" if share == math.inf else "something that is not finite"
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.2g} %"


def _steps(count: int | None) -> str:
    return f"{count} step{'' if count == 1 else 's'}"


def _rate(curve: Curve) -> str:
    return f"×{curve.rate:.3g} a step"


def _digits(curve: Curve) -> str:
    lost = curve.digits_lost_after
    return f", no digit of float32 left after {_steps(math.ceil(lost))}" if math.isfinite(lost) else ""


def _place(operation: Operation | None) -> str:
    return f", in {operation}" if operation else ""


def _places(operations: Sequence[Operation]) -> str:
    return "".join(f", in {o}" for o in operations[:3])
