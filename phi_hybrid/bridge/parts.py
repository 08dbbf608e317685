"""Parts of a state that is a dict, tuple or list, such as velocity and smoke: named by key or index; its vector fields."""

from __future__ import annotations

from collections.abc import Iterator

from phi_hybrid.bridge.layout import FieldLayout, Layout, Parent, TreeLayout
from phi_hybrid.errors import StateError


def parts_of(state: Layout) -> dict[str | int, Layout]:
    """Name (of a dict) or number (of a tuple) → layout of the parts of a state; `state` if it is a single one."""
    if not isinstance(state, TreeLayout):
        return {"state": state}
    return dict(zip(state.keys or range(len(state.children)), state.children))


def part_of(state: Layout, name: str | int) -> tuple[slice, Layout]:
    """Place of a part among the tensors of a state, and its layout.

    Args:
        state: layout of a dict, tuple or list of states.
        name: key or index of the part.

    Raises:
        StateError: for a part that the state does not have.
    """
    if not isinstance(state, TreeLayout):
        raise StateError(f"the state has no part {name!r}, for it is a single field or tensor: leave the part out")
    names = list(parts_of(state))
    if name not in names:
        raise StateError(f"the state has no part {name!r}, only {names}: name a key of a dict or an index of a tuple")
    before = [len(part.leaves) for part in state.children[: names.index(name)]]
    layout = state.children[names.index(name)]
    return slice(sum(before), sum(before) + len(layout.leaves)), layout


def vectors_of(layout: Layout, start: int = 0) -> Iterator[slice]:
    """Places of each vector field among the tensors of a layout; its components have one unit."""
    if isinstance(layout, Parent):
        for child in layout.children:
            yield from vectors_of(child, start)
            start += len(child.leaves)
    elif isinstance(layout, FieldLayout) and _is_vector(layout):
        yield slice(start, start + len(layout.leaves))


def _is_vector(layout: FieldLayout) -> bool:
    """Whether a field is staggered, or has a component for every dim."""
    space = {*layout.geometry.resolution.names}
    components = (axis.labels or () for axis in layout.leaves[0] if axis.kind == "channel")
    return len(layout.leaves) > 1 or any({*labels} == space for labels in components)
