"""Parts of a state that is a dict, tuple or list, such as velocity and smoke: named by key or index."""

from __future__ import annotations

from phi_hybrid.bridge.layout import Layout, TreeLayout
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
