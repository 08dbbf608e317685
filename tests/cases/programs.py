"""Random PhiFlow steps: their arguments and lines are text, so that a failure prints a script."""

from __future__ import annotations

import contextlib
import linecache
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from string import Formatter
from typing import Any
from zlib import crc32

import phi.torch.flow as flow
import torch
from hypothesis import strategies as st
from phi.torch.flow import Box, CenteredGrid, Field, Shape, StaggeredGrid, Tensor, channel, math

from cases.domains import Domain, argument_lists, domains
from cases.holes import KINDS, fillings
from cases.operators import FEWER, OPERATORS
from phi_hybrid.linear_solve import linear_solves

LARGEST = 4000
"""Numbers in a value."""
LINES = 4
"""Lines of a step at most."""


@dataclass(frozen=True)
class Program:
    """A step and its arguments.

    Attributes:
        precision: bits of all floats.
        arguments: name and maker of every argument.
        lines: body of the step.
        result: what it returns.
        nested: whether the arguments come in a dict of lists.
        closed: names that are no arguments: the step closes over them.
        refused: number of further lines that plain PhiFlow could not compute when the program was drawn.
    """

    precision: int
    arguments: tuple[tuple[str, str], ...]
    lines: tuple[str, ...]
    result: str
    nested: bool = False
    closed: tuple[str, ...] = ()
    refused: int = field(default=0, compare=False)

    @property
    def code(self) -> str:
        """Source of the step."""
        names = ", ".join(name for name, _ in self.arguments if name not in self.closed)
        head = ["def step(state):", f"    {names}, = state['all'][0]"] if self.nested else [f"def step({names}):"]
        return "\n".join([*head, *(f"    {line}" for line in self.lines), f"    return {self.result}", ""])

    def make_step(self) -> Callable:
        """The step, with globals of its own."""
        file, scope = f"program_{crc32(self.code.encode())}.py", {**vars(flow), "__name__": "program"}
        linecache.cache[file] = (len(self.code), None, self.code.splitlines(True), file)  # for messages that cite lines
        exec(compile(self.code, file, "exec"), scope)
        return scope["step"]

    @property
    def rounds(self) -> bool:
        """Whether rounding may differ: linear solves pass it on to every cell, and PhiFlow reduces fields of a constant
        before they are written out."""
        solving = any(
            word in line for line in self.lines for word in ("implicit(", "make_incompressible", "solve_linear")
        )
        return solving or any("Grid(1.5" in text for _, text in self.arguments)

    def prepare(
        self, step: Callable, seed: int, differentiable: bool = False, rounding: float = 0.0
    ) -> tuple[tuple, list[torch.Tensor]]:
        """Arguments of a call, and the float tensors in them; what the step closes over is set."""
        makers = Makers(seed, self.precision, differentiable, rounding)
        values = tuple(makers.make(text) for name, text in self.arguments if name not in self.closed)
        constants = Makers(seed + 1000, self.precision, False, rounding)
        step.__globals__.update({n: constants.make(text) for n, text in self.arguments if n in self.closed})
        return (({"all": [values]},) if self.nested else values), makers.leaves

    def __repr__(self) -> str:
        closed = "# the step closes over " + ", ".join(self.closed) + "\n" if self.closed else ""
        arguments = closed + "".join(f"{name} = {text}\n" for name, text in self.arguments)
        return f"\n# precision {self.precision}\n{arguments}\n{self.code}"


@contextlib.contextmanager
def plain_phiflow(precision: int) -> Iterator[None]:
    """Context in which PhiFlow computes in this precision, with exact solves, from one seed, without warnings."""
    with in_precision(precision), linear_solves():
        yield


@contextlib.contextmanager
def in_precision(precision: int) -> Iterator[None]:
    """Context of calls that are compared: precision, seed, no warnings."""
    with math.precision(precision), warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


class Makers:
    """Functions in the text of arguments: states from random numbers, each with leaves of its own.

    Args:
        seed: of the numbers.
        precision: bits.
        differentiable: whether gradients are wanted.
        rounding: moves floats by so many units in the last place.
    """

    def __init__(self, seed: int, precision: int, differentiable: bool = False, rounding: float = 0.0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.precision, self.differentiable, self.rounding = precision, differentiable, rounding
        self.leaves: list[torch.Tensor] = []

    def make(self, text: str) -> Any:
        names = ("centred", "faces", "tensor", "positive", "number", "ball")
        with math.precision(self.precision):
            return eval(text, {**vars(flow), **{name: getattr(self, name) for name in names}})

    def tensor(self, dims: Shape, kind: type = float) -> Tensor:
        native = torch.randn(dims.sizes, generator=self.generator, dtype=torch.float64)
        native = {float: native, int: (3 * native).long(), bool: native > 0}[kind]
        return math.wrap(self._leaf(native), dims)

    def positive(self, dims: Shape = math.EMPTY_SHAPE) -> Tensor:
        native = 0.05 + 0.2 * torch.rand(dims.sizes, generator=self.generator, dtype=torch.float64)
        return math.wrap(self._leaf(native), dims)

    def number(self, *choice: float) -> float:
        return choice[self.generator.initial_seed() % len(choice)]

    def ball(self, radius: float, **centre: float) -> flow.Sphere:
        middle = {n: x + radius * self.positive() for n, x in centre.items()}
        return flow.Sphere(flow.vec(**middle), radius=radius * (1 + self.positive()))

    def centred(self, boundary: Any, bounds: Box, dims: Shape, vector: bool, **cells: int) -> Field:
        components = channel(vector=",".join(cells)) if vector else math.EMPTY_SHAPE
        return CenteredGrid(self.tensor(dims & flow.spatial(**cells) & components), boundary, bounds)

    def faces(self, boundary: Any, bounds: Box, dims: Shape, **cells: int) -> Field:
        grid = StaggeredGrid(0, boundary, bounds, **cells)
        values = {n: self.tensor(dims & grid.values[{"~vector": n}].shape.spatial) for n in cells}
        return grid.with_values(math.stack(values, flow.dual("vector")))

    def _leaf(self, native: torch.Tensor) -> torch.Tensor:
        if not native.is_floating_point():
            return native
        native = native.to({32: torch.float32, 64: torch.float64}[self.precision])
        self.leaves.append(moved(native, self.rounding).requires_grad_(self.differentiable))
        return self.leaves[-1]


def moved(tensor: torch.Tensor, rounding: float) -> torch.Tensor:
    """Entries larger or smaller by so many units in the last place."""
    if not rounding or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    eps = torch.finfo(tensor.dtype).eps
    signs = torch.sign(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(9)))
    return tensor * (1 + rounding * eps * signs.to(tensor.real.dtype))


# --- drawing ---


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A step of a few lines, each of which plain PhiFlow computes for the arguments of seed 0."""
    domain, precision = draw(domains()), draw(st.sampled_from([32, 32, 64]))
    arguments = draw(argument_lists(domain))
    makers = Makers(0, precision)
    draft = Draft(draw, domain, precision, {name: makers.make(text) for name, text in arguments})
    lines = draw(st.integers(1, LINES))
    for _ in range(3 * lines):
        if len(draft.lines) < lines:
            draft.add_line()
    names = [line.split(" = ")[0] for line in draft.lines] or ["u"]
    rest = [name for name in ("o",) if name in dict(arguments)]
    closed = draw(st.sampled_from([(), (), (), tuple(name for name, _ in arguments[1:])]))
    return Program(
        precision,
        arguments,
        tuple(draft.lines),
        draw(results([*rest, *names])),
        draw(st.booleans()),
        closed,
        draft.refused,
    )


def results(names: list[str]) -> st.SearchStrategy[str]:
    """The last value alone, or with others in a tuple, list or dict, some of them twice."""
    last, rest = names[-1], ", ".join(names[:-1])
    nested = [f"({last}, [{rest}])", f"{{'last': {last}, 'rest': ({rest},)}}"] if rest else []
    return st.sampled_from([last, *nested, f"({last}, 2 * {last}, None, u, {last})"])


@dataclass
class Draft:
    """A program while it is drawn: plain PhiFlow computes each line at once, and what it refuses is left out."""

    draw: st.DrawFn
    domain: Domain
    precision: int
    scope: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    refused: int = 0

    def add_line(self) -> None:
        values = self._values()
        fitting = [text for text in _WEIGHTED if all(any(map(KINDS[k], values.values())) for k in _kinds(text))]
        line = self._fill(self.draw(st.sampled_from(fitting)), values)
        if line is None:
            return
        try:
            with plain_phiflow(self.precision), torch.no_grad():
                value = eval(line, {**vars(flow), **self.scope})
                usable = _usable(value)
        except Exception:
            self.refused += 1
            return
        if usable:
            name = f"a{len(self.lines)}"
            self.lines.append(f"{name} = {line}")
            self.scope[name] = value

    def _values(self) -> dict[str, Any]:
        """What holes can be filled with: fields, tensors, and the values of centred fields."""
        given = {n: v for n, v in self.scope.items() if isinstance(v, (Field, Tensor)) and n != "k"}
        inner = {f"{n}.values": v.values for n, v in given.items() if KINDS["C"](v)}
        return inner | given

    def _fill(self, text: str, values: dict[str, Any]) -> str | None:
        """The line; None if nothing fits into one of its holes. Later values are taken more often."""
        chosen: dict[str, str] = {}
        for hole in _holes(text):
            if _kind(hole) in KINDS:
                names = [n for n, v in values.items() if KINDS[_kind(hole)](v)][::-1]
                strategy = st.sampled_from(names + names[:1] * len(names))
            else:
                first = values[next(iter(chosen.values()))]
                strategy = fillings(_kind(hole), first, self.domain, self.scope)
            if strategy.is_empty:
                return None
            chosen[hole] = self.draw(strategy)
        return text.format(**chosen)


_WEIGHTED = [t for family, texts in OPERATORS.items() for t in texts * (1 if family in FEWER else 2)]


def _holes(text: str) -> list[str]:
    """Names in braces; those of values come first."""
    holes = dict.fromkeys(hole for _, hole, _, _ in Formatter().parse(text) if hole)
    return sorted(holes, key=lambda hole: _kind(hole) not in KINDS)


def _kind(hole: str) -> str:
    return hole.rstrip("0123456789")


def _kinds(text: str) -> list[str]:
    return [_kind(hole) for hole in _holes(text) if _kind(hole) in KINDS]


def _usable(value: Any) -> bool:
    """Whether a value is worth going on with: a finite state of moderate size."""
    if isinstance(value, (tuple, list)):
        return all(_usable(v) for v in value)
    tensor = value.values if isinstance(value, Field) else value
    if not isinstance(tensor, Tensor) or not 0 < tensor.shape.volume <= LARGEST:
        return False
    return bool(math.is_finite(tensor).all)
