"""Random states, drawn as Python text for `programs.Makers`, and their structure and values by PhiFlow's own means."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cases.domains import PLACEMENTS, Domain, Text, boundaries, domains, tensors
from cases.programs import Makers
from cases.verdicts import same, take_apart

CONSTANTS = ("None", "3", "2.5", "True", "'name'")
"""What is part of a layout."""
CHANNELS = ("", " & channel(species='a,b')", " & channel(c=2)", " & channel(c=2, kind='u,v,w')")
"""Channel dims beside the vector of a field."""


def few(examples: int) -> settings:
    """So many examples, the same at every run; a thousand with `pytest --hypothesis-profile=thorough`."""
    thorough = settings.get_current_profile_name() == "thorough"
    return settings(
        max_examples=settings.default.max_examples if thorough else examples,
        derandomize=not thorough,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def batches(draw: st.DrawFn) -> str:
    """Up to three batch dims in any order, of any size, some with labels."""
    names = draw(st.lists(st.sampled_from(["b", "Re", "time", "ν"]), max_size=3, unique=True))
    sizes = st.sampled_from(["1", "2", "3", "'low,high'"])
    return f"batch({', '.join(f'{n}={draw(sizes)}' for n in names)})"


@st.composite
def fields(draw: st.DrawFn, domain: Domain, dims: Text | None = None) -> str:
    """A field on the grid, with these batch dims."""
    kind, dims = draw(st.sampled_from(PLACEMENTS)), draw(batches() if dims is None else dims)
    boundary = draw(boundaries(domain.names, vector=kind != "scalar"))
    if kind == "faces":
        return f"faces({boundary}, {domain.text}, dims={dims})"
    return (
        f"centred({boundary}, {domain.text}, dims={dims}{draw(st.sampled_from(CHANNELS))}, vector={kind == 'vector'})"
    )


def trees(leaves: Text) -> Text:
    """Leaves, and dicts, lists and tuples of them, one in another."""

    def nested(entries: Text) -> Text:
        lists = st.lists(entries, min_size=1, max_size=3)
        return st.one_of(
            lists.map(lambda texts: f"({', '.join(texts)},)"),
            lists.map(lambda texts: f"[{', '.join(texts)}]"),
            lists.map(lambda texts: "{" + ", ".join(f"'{'qpr'[n]}': {t}" for n, t in enumerate(texts)) + "}"),
        )

    return st.recursive(leaves, nested, max_leaves=4)


@st.composite
def states(draw: st.DrawFn) -> str:
    """Fields on one grid or on several, tensors, numbers, in trees."""
    domain = draw(domains())
    kinds = [fields(domain), fields(domain), domains().flatmap(fields), tensors(domain), st.sampled_from(CONSTANTS)]
    return draw(trees(st.one_of(kinds)))


def made(text: str, precision: int = 32, seed: int = 0) -> Any:
    """The state of a text, with random values."""
    return Makers(seed, precision).make(text)


def structure(state: Any) -> list[str]:
    """Dims and their order, labels, sizes, boundaries, bounds, kinds of numbers, in words."""
    return [words for words, _ in take_apart(state)]


def identical(a: Any, b: Any) -> bool:
    """Whether two states have one structure and the same values, to the last bit."""
    values = [[t for _, t in take_apart(state) if t is not None] for state in (a, b)]
    return structure(a) == structure(b) and all(map(same, *values))


def random_tensor(*shape: int, like: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Random values of the dtype of another tensor."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like.dtype)
