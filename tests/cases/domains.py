"""Random boxes, boundaries and states, drawn as Python text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

Text = st.SearchStrategy[str]

BATCHES = ("b", "Re", "time", "ν")
"""Names of batch dims."""
NAMES = ("x", "y", "z", *("xy", "yx", "zx") * 3, "xyz", "zyx")
"""Dims in the order in which they are declared; flows in 3D take their time."""
PLACEMENTS = ("faces", "vector", "scalar")
"""Kinds of fields."""
PRIMITIVE = ("0", "ZERO_GRADIENT") * 3 + ("1.5", "extrapolation.SYMMETRIC", "extrapolation.ANTISYMMETRIC")
"""Boundaries of a side; those that PhiFlow's projection and sampling support come more often."""


@dataclass(frozen=True)
class Domain:
    """A box with named dims in an order of the user's own.

    Attributes:
        sides: name, lower end and length of each dim.
        cells: number of cells of each dim.
    """

    sides: tuple[tuple[str, float, float], ...]
    cells: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(n for n, _, _ in self.sides)

    @property
    def box(self) -> str:
        return f"Box({', '.join(f'{n}=({low:g}, {low + size:g})' for n, low, size in self.sides)})"

    @property
    def resolution(self) -> str:
        return ", ".join(f"{n}={cells}" for n, cells in zip(self.names, self.cells))

    @property
    def text(self) -> str:
        """Arguments of a grid."""
        return f"{self.box}, {self.resolution}"

    @property
    def radius(self) -> float:
        """Of a ball that fits into the box."""
        return 0.3 * min(size for _, _, size in self.sides)

    def others(self) -> Text:
        """Arguments of grids on the same box, of other resolutions, or beside it."""
        finer = Domain(self.sides, tuple(c + 1 for c in self.cells))
        twice = Domain(self.sides, tuple(2 * c if c < 6 else c - 2 for c in self.cells))
        part = Domain(tuple((n, low + size / 4, size / 2) for n, low, size in self.sides), self.cells)
        return st.sampled_from([self.text, finer.text, twice.text, part.text])


@st.composite
def domains(draw: st.DrawFn) -> Domain:
    """One to three dims, three to eight cells, of unlike sizes."""
    names = draw(st.sampled_from(NAMES))
    sides = [(n, draw(st.sampled_from([0.0, -1.0])), draw(st.sampled_from([1.0, 2.0, 0.5, 4.0]))) for n in names]
    most = 4 if len(names) == 3 else 8
    return Domain(tuple(sides), tuple(draw(st.integers(3, most)) for _ in names))


@st.composite
def boundaries(draw: st.DrawFn, names: tuple[str, ...], vector: bool, values: Sequence[str] = ()) -> str:
    """One for all sides, per dim, or per side; constants, flows and `values` among them."""
    flow = [*values]
    flow += [f"vec({', '.join(f'{n}={i + 1.0}' for i, n in enumerate(names))})"] if vector else []
    form = draw(st.sampled_from(["one", "one", "dims", "sides"]))
    if form == "one":
        return draw(st.sampled_from(["PERIODIC", "PERIODIC", "PERIODIC", *PRIMITIVE, *flow]))
    sides: dict[str, str] = {}
    for name in names:
        kind = draw(st.sampled_from(["PERIODIC", *PRIMITIVE]))
        if form == "dims" or kind == "PERIODIC":
            sides[name] = kind
        else:
            sides[name + "-"], sides[name + "+"] = (
                draw(st.sampled_from([kind, *flow])),
                draw(st.sampled_from(PRIMITIVE)),
            )
    return "{" + ", ".join(f"'{side}': {kind}" for side, kind in sides.items()) + "}"


@st.composite
def batches(draw: st.DrawFn) -> str:
    """No, one or two batch dims, as a shape, perhaps of another size in the next call."""
    names = draw(st.lists(st.sampled_from(BATCHES), max_size=2, unique=True))
    sizes = st.sampled_from(["1", "2", "3", "number(2, 3)"])
    return f"batch({', '.join(f'{n}={draw(sizes)}' for n in names)})"


@st.composite
def tensors(draw: st.DrawFn, domain: Domain) -> str:
    """A tensor of some of the dims of the grid, or of kinds of its own."""
    size = draw(st.integers(2, 4))
    own = [
        f"instance(pts={size})",
        f"channel(c={size})",
        f"batch(b={size}) & channel(vector='{','.join(domain.names)}')",
    ]
    own += [f"spatial({domain.resolution})", f"spatial({domain.resolution}) & channel(c={size})", f"dual(d={size})"]
    own += [f"spatial(q={size + 2})", f"instance(pts={size}) & spatial(q=3)"]
    kind = draw(st.sampled_from(["float", "float", "float", "int", "bool"]))
    return f"tensor({draw(st.sampled_from(own))}, {kind})"


@st.composite
def fields(draw: st.DrawFn, domain: Domain, kind: str, batch: str) -> str:
    """A field on the grid, as a call of the makers of `programs`."""
    boundary = draw(boundaries(domain.names, vector=kind != "scalar"))
    if draw(st.integers(0, 9)) == 9:  # constant values
        return f"{'StaggeredGrid' if kind == 'faces' else 'CenteredGrid'}(1.5, {boundary}, {domain.text})"
    maker, vector = ("faces", "") if kind == "faces" else ("centred", f", vector={kind == 'vector'}")
    return f"{maker}({boundary}, {domain.text}, dims={batch}{vector})"


@st.composite
def argument_lists(draw: st.DrawFn, domain: Domain) -> tuple[tuple[str, str], ...]:
    """Names and makers: a field u; perhaps another one v, a tensor t, a positive parameter k, a number c, a body o."""
    dims = draw(batches())
    arguments = {"u": draw(fields(domain, draw(st.sampled_from(PLACEMENTS)), dims))}
    if draw(st.booleans()):
        others = draw(st.sampled_from([dims, "batch()"]))
        arguments["v"] = draw(fields(domain, draw(st.sampled_from(PLACEMENTS)), others))
    if draw(st.booleans()):
        arguments["t"] = draw(tensors(domain))
    if draw(st.booleans()):
        arguments["k"] = draw(
            st.sampled_from(["positive()", "positive()", f"positive({dims})", "positive(batch(k=2))"])
        )
    if draw(st.booleans()):
        arguments["c"] = draw(st.sampled_from(["number(0.2)", "number(1)", "number(0.2, 0.3)"]))
    if draw(st.integers(0, 3)) == 3:
        middle = ", ".join(f"{n}={low + 0.45 * size:.3g}" for n, low, size in domain.sides)
        arguments["o"] = f"ball({middle}, radius={domain.radius:.3g})"
    return tuple(arguments.items())
