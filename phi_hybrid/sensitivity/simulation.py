"""A step in float64 along a trajectory, as a function of the coordinates of its arguments."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from phi_hybrid import _compat
from phi_hybrid.bridge import Layout
from phi_hybrid.bridge.checks import require
from phi_hybrid.bridge.parts import parts_of
from phi_hybrid.deployment import LoadedStep
from phi_hybrid.errors import SolveError
from phi_hybrid.linear_solve import checked_solves
from phi_hybrid.sensitivity.coordinates import Coordinates, Tensors, is_real
from phi_hybrid.sensitivity.differences import Function
from phi_hybrid.steps import Inputs, NativeStep, PlainStep, Step
from phi_hybrid.tracing import PhysicsBlock


def own_copy(step: Callable) -> Step:
    """A copy of the step in float64, all of it captured where it is PhiFlow code."""
    if isinstance(step, PhysicsBlock):
        return PhysicsBlock(step.step, check=step.check, solver=step.solves.method)
    if not isinstance(step, Step):
        return PhysicsBlock(step)
    if isinstance(step, PlainStep):
        return PhysicsBlock(step.step)
    loaded = any(isinstance(part, LoadedStep) for part in step.modules())
    require(
        not loaded, "step", step, "a step made of its code: a loaded one has one precision, and the check needs float64"
    )
    own = copy.deepcopy(step).double().requires_grad_(False)
    for module in list(own.modules()):
        for name, part in module.named_children():
            if isinstance(part, PlainStep):
                setattr(module, name, PhysicsBlock(part.step))
    return own


def doubled(tensors: Tensors) -> tuple[torch.Tensor, ...]:
    kinds = {True: torch.complex128, False: torch.float64}
    return tuple(t.detach().to(kinds[t.is_complex()]) if is_real(t) else t.detach() for t in tensors)


def argument_names(step: Callable, inputs: int) -> list[str]:
    """Names of the arguments, as the step has them."""
    inner = getattr(step, "physics", step)
    try:
        parameters = inspect.signature(_compat.undecorated(getattr(inner, "step", inner))).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return known[: inputs + 1] if len(known) > inputs else ["state", *(f"input {n}" for n in range(1, inputs + 1))]


@dataclass(frozen=True)
class Argument:
    """State or input: its name, its place among the tensors of a call, and its coordinates."""

    name: str
    place: slice
    parts: tuple[int, ...]
    coordinates: Coordinates


@dataclass(frozen=True)
class Simulation:
    """A trajectory, and the step as a function of the coordinates of its arguments."""

    native: NativeStep
    arguments: tuple[Argument, ...]
    result_parts: tuple[int, ...]
    results: Coordinates
    calls: tuple[Tensors, ...]
    """Tensors of the arguments of every step."""
    last: Tensors
    """Result of the last step; it may be non-finite."""
    seed: int

    @classmethod
    def started(
        cls,
        native: NativeStep,
        tensors: Tensors,
        layout: Layout,
        inputs: Inputs,
        names: Sequence[str],
        steps: int,
        seed: int,
    ) -> Simulation:
        """Runs the steps, until one returns a non-finite state; a single one for 0."""
        calls, state = [], tensors
        for n in range(max(steps, 1)):
            calls.append((*state, *inputs.at(n)))
            try:
                with checked_solves():
                    state = _seeded(native, calls[-1], seed)
            except SolveError as error:
                raise error.at(n + 1, f"in step {n + 1} of {steps}") from None
            if not all(bool(t.isfinite().all()) for t in state):
                break
        arguments, start = [], 0
        layouts = [layout, *inputs.layout.children]
        for name, child in zip(names, layouts):
            place = slice(start, start + len(child.leaves))
            examples = [call[place] for call in calls]
            parts = _parts(child)
            arguments.append(Argument(name, place, parts, Coordinates.measured(examples, parts)))
            start = place.stop
        parts = _parts(native.output_layout)
        results = arguments[0].coordinates if steps else Coordinates.measured([state], parts)
        return cls(native, tuple(arguments), parts, results, tuple(calls), state, seed)

    def near(self, call: Tensors) -> Simulation:
        """The same simulation with the scales of one call, in place of those of the trajectory."""
        arguments = [
            replace(a, coordinates=Coordinates.measured([call[a.place]], a.parts, a.coordinates))
            for a in self.arguments
        ]
        result = self.results.tensors(self.result(call), self.last)
        results = Coordinates.measured([result], self.result_parts, self.results)
        return replace(self, arguments=tuple(arguments), results=results)

    def coordinates(self, call: Tensors, argument: Argument) -> torch.Tensor:
        """Coordinates of one argument of a call."""
        return argument.coordinates.vector(call[argument.place])

    def moved(self, call: Tensors, argument: Argument, x: torch.Tensor) -> Tensors:
        """The arguments of a call, one of them with other coordinates."""
        changed = argument.coordinates.tensors(x, call[argument.place])
        return (*call[: argument.place.start], *changed, *call[argument.place.stop :])

    def result(self, call: Tensors) -> torch.Tensor:
        """Coordinates of the result of a call, NaN where a linear solve fails."""
        try:
            with checked_solves():
                return self.results.vector(_seeded(self.native, call, self.seed))
        except SolveError:
            return torch.full_like(self.results.vector(self.last), torch.nan)

    def function(self, call: Tensors, argument: Argument) -> Function:
        """The step as a function of the coordinates of one argument."""
        return lambda x: self.result(self.moved(call, argument, x))

    def states(self) -> list[torch.Tensor]:
        """Coordinates of all states."""
        state = self.arguments[0]
        return [state.coordinates.vector(t[state.place]) for t in (*self.calls, self.last)]


def _parts(layout: Layout) -> tuple[int, ...]:
    """Number of the part of a state that each of its tensors belongs to."""
    return tuple(number for number, part in enumerate(parts_of(layout).values()) for _ in part.leaves)


def _seeded(native: NativeStep, tensors: Tensors, seed: int) -> Tensors:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return native(*tensors)
