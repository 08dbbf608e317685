"""Which parts of a state a network corrects, and which inputs it sees or changes, checked against their layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from phi_hybrid.bridge.channels import resolutions
from phi_hybrid.bridge.layout import Layout, TreeLayout
from phi_hybrid.errors import StateError


def chosen_parts(corrects: Sequence[str | int] | None, parts: dict[str | int, Layout]) -> list[str | int]:
    """Names of the parts that are corrected, in the order of the state."""
    if corrects is None:
        return list(parts)
    if unknown := [name for name in corrects if name not in parts]:
        raise StateError(
            f"corrects = {tuple(corrects)!r}: the state has no part {unknown[0]!r}; choose of {list(parts)}"
        )
    return [name for name in parts if name in corrects]


def input_names(layout: TreeLayout, names: Sequence[str]) -> list[str]:
    """Names of the inputs of a call, `""` where one has none; the step names the arguments that are given by position."""
    positional = len(layout.children) - len(layout.keywords)
    known = names[1:positional]
    return [*known, *[""] * (positional - 1 - len(known)), *layout.keywords]


def seen_inputs(sees: Sequence[int | str] | None, names: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the inputs that the network sees, all of them by default."""
    if sees is None:
        return tuple(range(len(names)))
    for one in sees:
        if one not in names if isinstance(one, str) else not 0 <= one < len(names):
            known = ", ".join(f"{n} {name!r}" if name else str(n) for n, name in enumerate(names)) or "none"
            raise StateError(f"sees = {sees!r}: the step has no input {one!r}, but {len(names)} inputs: {known}")
    return tuple(names.index(one) if isinstance(one, str) else int(one) for one in sees)


def changed_arguments(changes: Sequence[int], layout: TreeLayout) -> Sequence[int]:
    """Arguments that the network changes, checked to be there and to have a grid."""
    for number in changes:
        if number >= len(layout.children):
            raise StateError(
                f"the coupling changes input {number - 1} but the step has only {len(layout.children) - 1} inputs; count "
                "from 0"
            )
        leaves = layout.children[number].leaves
        if number and not (leaves and all(any(a.kind == "spatial" for a in axes) for axes in leaves)):
            raise StateError(
                f"the coupling changes input {number - 1}, which has no grid: a network returns fields. Pass it as a "
                "field or tensor on the grid of the state, e.g. CenteredGrid(nu, …) or math.expand(nu, state.resolution)"
            )
    return changes


def require_known_grids(seen: Mapping[str, Layout], state: Layout) -> None:
    """Raises StateError for an input or feature on a grid that no part of the state has."""
    known = resolutions(state)
    for name, layout in seen.items():
        if strange := resolutions(layout) - known:
            raise StateError(
                f"{name} is on a grid of {dict(strange.pop())} cells, but the state has {[dict(k) for k in known]}: a network "
                "sees one grid resolution. Resample it to the grid of the state first, or leave it out with sees=(…)"
            )


def require_real(name: str, tensors: Sequence[torch.Tensor]) -> None:
    """Raises StateError for complex numbers, whose imaginary part a network would not see."""
    if kinds := sorted({str(t.dtype) for t in tensors if t.is_complex()}):
        raise StateError(
            f"{name} holds {', '.join(kinds)}, but a network sees and corrects real numbers: make real and imaginary part two "
            "parts, {'real': field.real(u), 'imag': field.imag(u)}, and leave other complex inputs out with sees=(…)"
        )
