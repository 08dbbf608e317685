"""Any batch dims ↔ the one batch dim of a program, first in every tensor that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from phi_hybrid.bridge.axes import Axis
from phi_hybrid.bridge.layout import Layout, TreeLayout, batch_names, batch_sizes, repeat, with_batch, without
from phi_hybrid.steps.face import Tensors


@dataclass(frozen=True)
class Batching:
    """How the arguments of a call are laid along one batch dim, and results taken apart again.

    Attributes:
        source: layout of the call.
        wide: layout with all batch dims in each of the arguments that have any.
        target: layout with the one batch dim in their place.
        axes: batch dims of the call.
    """

    source: TreeLayout
    wide: TreeLayout
    target: TreeLayout
    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, layout: TreeLayout, batch: str, batched: Sequence[bool]) -> Batching:
        """Batching of arguments of a layout.

        Args:
            layout: of state and inputs.
            batch: name of the one dim.
            batched: tells for each argument if it has this dim; those that lack batch dims are repeated.
        """
        names = batch_names(layout)
        found = {a.name: a for axes in layout.leaves for a in axes if a.kind == "batch"}
        children = [with_batch(c, *names) if b else c for c, b in zip(layout.children, batched)]
        merged = [with_batch(without(c, *names), batch) if b else c for c, b in zip(layout.children, batched)]
        wide, target = (replace(layout, children=tuple(c)) for c in (children, merged))
        return cls(layout, wide, target, tuple(found[n] for n in names))

    def merge(self, tensors: Sequence[torch.Tensor]) -> tuple[Tensors, dict[str, int]]:
        """Tensors of `target`, and the sizes of the batch dims."""
        sizes = batch_sizes(tensors, self.source)
        merged = []
        for tensor, axes, goal in zip(
            repeat(tensors, self.source, self.wide, sizes), self.wide.leaves, self.target.leaves
        ):
            count = sum(a.kind == "batch" for a in axes)
            merged.append(tensor.reshape(-1, *tensor.shape[count:]) if len(goal) > len(axes) - count else tensor)
        return tuple(merged), sizes

    def result_layout(self, layout: Layout, batch: str) -> Layout:
        """Layout of results with the batch dims of the call, from their layout with the one dim."""

        def restored(axes: tuple[Axis, ...]) -> list[Axis]:
            rest = [a for a in axes if a.name != batch]
            return [*self.axes, *rest] if len(rest) < len(axes) else rest

        return layout.map_axes(restored)

    def split(self, tensors: Sequence[torch.Tensor], layout: Layout, sizes: Mapping[str, int]) -> Tensors:
        """Results with the batch dims of the call; `layout` has the one dim."""
        return tuple(
            t.reshape(*sizes.values(), *t.shape[1:]) if any(a.kind == "batch" for a in axes) else t
            for t, axes in zip(tensors, layout.leaves)
        )


def example_batching(layout: TreeLayout) -> tuple[Batching, str]:
    """Batching of an example, and the name of its batch dim: its own if it has one, else `batch`.

    The state has it in any case, inputs where they have batch dims.
    """
    names = batch_names(layout)
    batch = names[0] if len(names) == 1 else "batch"
    batched = [number == 0 or bool(batch_names(child)) for number, child in enumerate(layout.children)]
    return Batching.of(layout, batch, batched), batch
