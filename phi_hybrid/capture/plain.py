"""A PhiFlow step that is not captured, behind the same native face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from phi_hybrid.bridge.layout import Layout
from phi_hybrid.capture.face import NativeFace, check_signature
from phi_hybrid.capture.trace import run_eager
from phi_hybrid.linear_solve import Solves


@dataclass(frozen=True)
class _PlainNativeStep:
    step: Callable
    layout: Layout
    output_layout: Layout
    shapes: tuple[torch.Size, ...]
    solves: Solves

    def accepts(self, tensors: Sequence[torch.Tensor]) -> bool:
        return tuple(t.shape for t in tensors) == self.shapes

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return run_eager(self.step, self.layout, tensors, self.solves)[0]


class PlainStep(NativeFace):
    """Plain PhiFlow code as a module: slow, but able to do all that PhiFlow can."""

    def __init__(self, step: Callable) -> None:
        super().__init__()
        self.step = step
        self.solves = Solves()
        self._known: list[_PlainNativeStep] = []

    def known_steps(self) -> Sequence[_PlainNativeStep]:
        return self._known

    def check_arguments(self, args: tuple) -> None:
        check_signature(self.step, args)

    def bind(self, layout: Layout, tensors: Sequence[torch.Tensor]) -> _PlainNativeStep:
        shapes = tuple(t.shape for t in tensors)
        for known in self._known:
            if known.layout == layout and known.shapes == shapes:
                return known
        with torch.no_grad():
            output_layout = run_eager(self.step, layout, tuple(tensors), self.solves)[1]
        self._known = [_PlainNativeStep(self.step, layout, output_layout, shapes, self.solves), *self._known][:16]
        return self._known[0]
