"""`check_gradients`: is a simulator fit for training through it?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from phi.math import precision

from phi_hybrid.bridge.checks import require, require_count
from phi_hybrid.errors import StateError
from phi_hybrid.sensitivity.breaks import JUMP, Interval, breaks, missed
from phi_hybrid.sensitivity.coordinates import Tensors, is_real
from phi_hybrid.sensitivity.differences import Agreement, Function, agreement, has_forward_mode, noise
from phi_hybrid.sensitivity.growth import Growth, Probes, growth
from phi_hybrid.sensitivity.operations import (
    LOCAL_STEP,
    Operation,
    blocked,
    first_break,
    without_gradient,
    wrong_operations,
)
from phi_hybrid.sensitivity.result import ArgumentCheck, Break, GradientCheck
from phi_hybrid.sensitivity.simulation import Simulation, argument_names, doubled, own_copy
from phi_hybrid.steps import Inputs, Step, bind, evaluation_mode, flatten_arguments, require_step
from phi_hybrid.steps.plain import name_of
from phi_hybrid.tracing import graphs_in

_JITTER = 0.01
"""Points are drawn so far from the states of the trajectory, in their root mean square: flows at rest are full of kinks."""
_OVERFLOWING = 1e6
"""Times the size at the start: no points are drawn from there on, where differences are about to overflow."""
_UNSEEN = 1e-9
"""Jumps up to this size, relative to the result, are the tolerance of linear solves, 1e-11 in float64, and their condition."""


def check_gradients(
    step: Callable[..., Any],
    state: Any,
    *inputs: Any,
    steps: int = 50,
    directions: int = 4,
    points: int = 3,
    seed: int = 0,
    **keywords: Any,
) -> GradientCheck:
    """Finds out whether a step is fit for training through it, and if not, why and in which line.

    All in float64, on a copy of the step, which is captured where it is not yet:

    - derivatives f'(u)·d in reverse and forward mode beside central differences of eight step sizes, by the state and by
      every input, for random d; they are wrong if they differ by more than the error of the differences themselves;
    - jumps and kinks on random lines u + t·d of ±0.1 root mean squares, found by bisection;
    - growth of ‖∂uₙ/∂u₀ᵀ·w‖ and ‖∂uₙ/∂u₀·d‖ over n = 1 … `steps` steps: vanishing, steady or exploding;
    - operations whose gradient is missing, wrong or zero, and those that block it.

    Args:
        step: `state, *inputs -> state`: PhiFlow code, `PhysicsBlock`, `HybridSolver` (of its state, not of its weights).
        state: u₀, e.g. fields of shape `(batch, x, y, vector)`.
        *inputs: further arguments of the step; those with a batch dim `time` are sliced, entry n for step n.
        steps: number of steps to train through.
        directions: number of random directions at every point.
        points: number of points, near states along the trajectory.
        seed: of directions and points, and of random numbers that the step draws.
        **keywords: further arguments of the step by name.

    Returns:
        `GradientCheck`, to be printed.

    Raises:
        CaptureError: if the step cannot be captured; names line and way out.
        SolveError: if a linear solve fails, with the number of the step.
        StateError: for arguments that do not fit the step, and states without real numbers.
    """
    require_step("step", step)
    for name, count in {"steps": steps, "directions": directions, "points": points}.items():
        require_count(name, count)
    own = own_copy(step)
    with evaluation_mode(own), torch.no_grad(), precision(64):
        tensors, layout, arguments = flatten_arguments(own, state, inputs, keywords)
        tensors, arguments = doubled(tensors), Inputs(doubled(arguments.tensors), arguments.layout)
        real = any(map(is_real, tensors))
        require(real, "state", state, "real or complex numbers to differentiate by, e.g. a Field")
        finite = all(t.isfinite().all() for t in (*tensors, *arguments.tensors))
        require(finite, "state", state, "finite numbers, inputs too; this one holds NaN or infinity")
        arguments.check_length(steps)
        unrepeated = ""
        try:
            bound = bind(own, tensors, layout, arguments)
            native, tensors, layout = bound.step, bound.state, bound.layout
        except StateError as error:  # a loss, for example; other faults show again
            native, unrepeated = own.native_for(arguments.call_layout(layout), (*tensors, *arguments.at(0))), str(error)
        names = argument_names(step, len(arguments.layout.children))
        simulation = Simulation.started(native, tensors, layout, arguments, names, 0 if unrepeated else steps, seed)
        draws = _Draws(torch.Generator().manual_seed(seed), directions, points)
        return _checked(_name(step), steps, own, simulation, draws, unrepeated)


def _name(step: Callable) -> str:
    inner = getattr(step, "step", step)
    return type(step).__name__ if isinstance(inner, torch.nn.Module) else name_of(inner)


@dataclass(frozen=True)
class _Draws:
    """Random directions and points."""

    generator: torch.Generator
    directions: int
    points: int

    def like(self, vector: torch.Tensor) -> torch.Tensor:
        """Normal numbers, one for each entry."""
        return torch.randn(len(vector), generator=self.generator, dtype=vector.dtype).to(vector.device)

    def units(self, vector: torch.Tensor) -> torch.Tensor:
        """Directions of norm 1, `(direction, coordinate)`."""
        return torch.nn.functional.normalize(torch.stack([self.like(vector) for _ in range(self.directions)]), dim=1)

    def calls(self, simulation: Simulation) -> list[Tensors]:
        """Arguments near those of some steps of a trajectory: all coordinates moved, unless that gives no finite result."""
        sizes = [float(x.norm()) for x in simulation.states()]
        start = max(sizes[:2]) or 1.0
        last = sum(1 for _ in itertools.takewhile(lambda size: size <= _OVERFLOWING * start, sizes[:-1])) - 1
        calls = []
        for n in range(self.points):
            call = moved = simulation.calls[round(n * last / max(self.points - 1, 1))]
            near = simulation.near(call)
            for argument in near.arguments:
                x = near.coordinates(moved, argument)
                moved = near.moved(moved, argument, x + _JITTER * self.like(x))
            calls.append(moved if simulation.result(moved).isfinite().all() else call)
        return calls


def _checked(name: str, steps: int, own: Step, simulation: Simulation, draws: _Draws, unrepeated: str) -> GradientCheck:
    calls, state = draws.calls(simulation), simulation.arguments[0]
    forward = has_forward_mode(simulation.function(calls[0], state), simulation.coordinates(calls[0], state))
    checks: dict[str, list[Agreement]] = {}
    lines: list[_Line] = []
    for call in calls:
        near = simulation.near(call)
        for argument in near.arguments:
            x = near.coordinates(call, argument)
            if not len(x):
                continue
            fan = _Fan(own, near.function(call, argument), x, draws)
            checks.setdefault(argument.name, []).extend(fan.agreements(forward))
            lines += fan.lines()
    arguments = [ArgumentCheck(name, tuple(agreements)) for name, agreements in checks.items()]
    grown = None if unrepeated else _growth(simulation, draws, forward)
    wrong = [o for check in arguments if check.wrong for o in _wrong(own, simulation, calls[0], check.name, draws)]
    if not wrong and grown is not None and grown.finite_state and grown.not_finite is not None:
        wrong = _wrong(own, simulation, simulation.calls[grown.not_finite - 1], state.name, draws)
    seen = _watched(own, lambda: simulation.result(calls[0]))
    return GradientCheck(
        name=name,
        steps=steps,
        arguments=tuple(arguments),
        breaks=_grouped(lines),
        missed=_share(lines),
        growth=grown,
        unrepeated=unrepeated,
        wrong=tuple(dict.fromkeys(wrong)),
        blocked=tuple(o for graph, tensors in seen for o in blocked(graph, tensors)),
        without_gradient=tuple(dict.fromkeys(o for graph, _ in seen for o in without_gradient(graph))),
    )


class _Line(NamedTuple):
    """What was met on a line: breaks with the operations that make them; the change along it, and what gradients miss of it."""

    found: list[tuple[Interval, Operation | None]]
    missed: float
    change: float


@dataclass(frozen=True)
class _Fan:
    """Random lines through one point."""

    own: Step
    f: Function
    x: torch.Tensor
    draws: _Draws

    def agreements(self, forward: bool) -> Iterator[Agreement]:
        """Derivatives along each direction beside finite differences."""
        result = self.f(self.x)
        for _ in range(self.draws.directions):
            yield agreement(self.f, self.x, self.draws.like(self.x), self.draws.like(result), forward)

    def lines(self) -> Iterator[_Line]:
        """Jumps and kinks along each direction."""
        for _ in range(self.draws.directions):
            d = self.draws.like(self.x)
            result, sigma = self.f(self.x), noise(self.f, self.x, d)
            floor = max(_UNSEEN * float(result.abs().max()), 10 * float(sigma.max()))
            found = [(interval, self._place(interval)) for interval in breaks(self.f, self.x, d, floor)]
            jumps = any(interval.kind == JUMP for interval, _ in found)
            yield _Line(found, *missed(self.f, self.x, d, self.draws.like(result), jumps))

    def _place(self, interval: Interval) -> Operation | None:
        points = [interval.centre + s * interval.half for s in (-1, 0, 1)]
        runs = [_watched(self.own, lambda x=x: self.f(x)) for x in points]
        places = (first_break(run[0][0], *(tensors for _, tensors in run)) for run in zip(*runs))
        return next((place for place in places if place is not None), None)


def _watched(own: Step, run: Callable[[], Any]) -> list[tuple[torch.fx.GraphModule, Tensors]]:
    """Graphs of captured steps that take part in a run, with the tensors that each was last given."""
    seen: dict[torch.fx.GraphModule, Tensors] = {}
    hooks = [g.register_forward_pre_hook(lambda graph, tensors: seen.update({graph: tensors})) for g in graphs_in(own)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return list(seen.items())


def _wrong(own: Step, simulation: Simulation, call: Tensors, name: str, draws: _Draws) -> list[Operation]:
    """Operations that falsify the gradient by an argument."""
    near = simulation.near(call)
    argument = next(a for a in near.arguments if a.name == name)
    x, f = near.coordinates(call, argument), near.function(call, argument)
    d = draws.like(x)
    runs = [_watched(own, lambda s=s: f(x + s * LOCAL_STEP * d)) for s in (-1, 0, 1)]
    return [o for run in zip(*runs) for o in wrong_operations(run[0][0], *(tensors for _, tensors in run))]


def _grouped(lines: Sequence[_Line]) -> tuple[Break, ...]:
    """Breaks of one kind at one line of the user's together, under the operation met first; those met most often first."""
    groups: dict[tuple, list[tuple[Interval, Operation | None]]] = {}
    for interval, place in [found for line in lines for found in line.found]:
        groups.setdefault((interval.kind, place and (place.line or place.name)), []).append((interval, place))
    breaks = [
        Break(met[0][0].kind, met[0][1], len(met), len(lines), max(interval.size for interval, _ in met))
        for met in groups.values()
    ]
    return tuple(sorted(breaks, key=lambda b: (b.kind != JUMP, -b.met)))


def _share(lines: Sequence[_Line]) -> float:
    """Root mean square of what gradients miss, relative to that of all changes; the signs of both are random."""
    known = [line for line in lines if math.isfinite(line.missed) and math.isfinite(line.change)]
    whole = math.hypot(*(line.change for line in known))
    return math.hypot(*(line.missed for line in known)) / whole if whole else 0.0


def _growth(simulation: Simulation, draws: _Draws, forward: bool) -> Growth:
    states, argument = simulation.states(), simulation.arguments[0]
    last = states[-1] if states[-1].isfinite().all() else states[-2]
    cotangents, tangents = draws.units(last), draws.units(last)
    if last.any():
        cotangents[0] = torch.nn.functional.normalize(last / last.abs().max(), dim=0)
    return growth(
        lambda n: simulation.function(simulation.calls[n], argument), states, Probes(cotangents, tangents), forward
    )
