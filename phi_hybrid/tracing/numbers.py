"""Python floats that change from call to call: inputs of a graph, where each value would need a graph of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from phi_hybrid.bridge.kinds import ConstantLayout, TensorLayout
from phi_hybrid.bridge.layout import Layout, TreeLayout, precision_of
from phi_hybrid.steps.face import Tensors

Path = tuple[int, ...]
"""Where a number stands in the arguments: by position among them, then within a tuple, list or dict."""
_NUMBER = TensorLayout(((),))
CONSTANTS = 2
"""Values of a number that get graphs of their own, equal to eager PhiFlow to the last bit; the next one is an input."""


@dataclass(frozen=True)
class NumberInputs:
    """The arguments of a call with some of their numbers as tensors without dims.

    Attributes:
        layout: of the arguments, numbers at `positions` of its tensors.
        values: the numbers.
        positions: where they are among all tensors.
    """

    layout: TreeLayout
    values: tuple[float, ...]
    positions: tuple[int, ...]

    def insert(self, tensors: Sequence[torch.Tensor]) -> Tensors:
        """All tensors of the call."""
        double = precision_of(tensors) == 64
        like = {"dtype": torch.float64 if double else torch.float32, "device": tensors[0].device if tensors else "cpu"}
        result = list(tensors)
        for position, value in zip(self.positions, self.values):
            result.insert(position, torch.tensor(value, **like))
        return tuple(result)


def changed_numbers(layout: Layout, known: Iterable[Layout]) -> set[Path]:
    """Floats of `layout` that have other values in several known layouts, where these are all that differs."""
    found = Counter(path for other in known for path in _differences(other, layout, ()) or ())
    return {path for path, count in found.items() if count >= CONSTANTS}


def with_inputs(layout: TreeLayout, paths: Iterable[Path]) -> NumberInputs | None:
    """The arguments with their floats at these paths as tensors; `None` where there are none."""
    values: list[float] = []
    positions: list[int] = []

    def visit(part: Layout, path: Path, first: int) -> Layout:
        if path in wanted and _is_float(part):
            values.append(float(part.value))
            positions.append(first)
            return _NUMBER
        if not isinstance(part, TreeLayout):
            return part
        children = []
        for number, child in enumerate(part.children):
            children.append(visit(child, (*path, number), first))
            first += len(children[-1].leaves)
        return replace(part, children=tuple(children))

    wanted = set(paths)
    changed = visit(layout, (), 0)
    return NumberInputs(changed, tuple(values), tuple(positions)) if values else None


def _differences(old: Layout, new: Layout, path: Path) -> list[Path] | None:
    """Paths of numbers that differ, `None` if anything else does."""
    if old == new:
        return []
    if isinstance(old, ConstantLayout) and _is_float(new):
        return [path] if _is_number(old.value) else None
    if not (isinstance(old, TreeLayout) and isinstance(new, TreeLayout)) or replace(old, children=new.children) != new:
        return None
    parts = [_differences(a, b, (*path, i)) for i, (a, b) in enumerate(zip(old.children, new.children))]
    return None if None in parts or len(old.children) != len(new.children) else sum(parts, [])


def _is_float(layout: Layout) -> bool:
    return isinstance(layout, ConstantLayout) and isinstance(layout.value, (float, np.floating))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.floating)) and not isinstance(value, bool)
