"""The native face: what captured blocks, plain steps and hybrid solvers have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from phi_hybrid.bridge.layout import Layout, describe_leaves, flatten, matches, unflatten
from phi_hybrid.errors import StateError


class NativeStep(Protocol):
    """A step on torch tensors for one signature: `(*state, *inputs) -> state`."""

    layout: Layout
    """Of the arguments, a tuple of state and inputs."""
    output_layout: Layout

    def accepts(self, tensors: Sequence[torch.Tensor]) -> bool: ...

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]: ...


class NativeFace(torch.nn.Module):
    """A step with two faces: called with PhiFlow states, or `flatten`, `native`, `unflatten` on torch tensors.

    Calling the module is flatten, native, unflatten. `native` works with autograd, `torch.func` and `torch.compile`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._layouts: list[Layout] = []  # of arguments, most recently flattened first

    def bind(self, layout: Layout, tensors: Sequence[torch.Tensor]) -> NativeStep:
        """The native step for arguments of this layout and tensors of these shapes."""
        raise NotImplementedError

    def known_steps(self) -> Sequence[NativeStep]:
        """Native steps bound so far, most recent first."""
        raise NotImplementedError

    def check_arguments(self, args: tuple) -> None:
        """Raises StateError for missing or superfluous arguments."""

    def forward(self, *args: Any) -> Any:
        """One step on PhiFlow states: `state, *inputs -> state`."""
        tensors, layout = self.signature(args)
        step = self.bind(layout, tensors)
        return unflatten(step.output_layout, step(*tensors))

    def flatten(self, *args: Any) -> tuple[torch.Tensor, ...]:
        """State and inputs as torch tensors, in the order that `native` takes them."""
        tensors, layout = self.signature(args)
        same = [s.layout for s in self.known_steps() if s.layout == layout]
        self._layouts = [*(same or [layout])[:1], *(known for known in self._layouts if known != layout)][:16]
        return tensors

    def native(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One step on torch tensors, `(*state, *inputs) -> state`, differentiable.

        Boundaries and domain are those of the state that was flattened last, as far as the shapes fit it.

        Args:
            *tensors: as returned by `flatten`; batch sizes, precision and device may differ from those flattened.

        Raises:
            StateError: if no state seen so far has tensors of these shapes.
        """
        latest = self._layouts[0] if self._layouts else None
        for step in self.known_steps():
            if step.accepts(tensors) and (latest is None or step.layout is latest or not matches(latest, tensors)):
                return step(*tensors)
        return self.bind(self._layout_of(tensors), tensors)(*tensors)

    def unflatten(self, tensors: Sequence[torch.Tensor]) -> Any:
        """PhiFlow state from the tensors that `native` returned."""
        latest = self._layouts[0] if self._layouts else None
        for step in sorted(self.known_steps(), key=lambda s: s.layout is not latest):
            if matches(step.output_layout, tensors):
                return unflatten(step.output_layout, tensors)
        raise StateError(
            f"tensors of shapes {[tuple(t.shape) for t in tensors]} are no result of this step, whose results are "
            f"{[describe_leaves(s.output_layout) for s in self.known_steps()]}; pass what native() returned"
        )

    def signature(self, args: tuple) -> tuple[tuple[torch.Tensor, ...], Layout]:
        """Tensors and layout of PhiFlow arguments, checked."""
        self.check_arguments(args)
        tensors, layout = flatten(args)
        check_tensors(tensors, layout)
        return tensors, layout

    def _layout_of(self, tensors: Sequence[torch.Tensor]) -> Layout:
        known = [*self._layouts, *(s.layout for s in self.known_steps())]
        for layout in known:
            if matches(layout, tensors):
                check_tensors(tensors, layout)
                return layout
        raise StateError(
            f"no state with tensors of shapes {[tuple(t.shape) for t in tensors]} is known; known are "
            f"{sorted({describe_leaves(k) for k in known})}. Call flatten() with such a state first, or use torch.vmap "
            "for further batch axes"
        )


def check_signature(step: Callable, args: tuple) -> None:
    """Names missing and superfluous arguments of a Python function before any work is done."""
    try:
        signature = inspect.signature(step)
    except (TypeError, ValueError):
        return  # builtins have none
    try:
        signature.bind(*args)
    except TypeError as error:
        raise StateError(
            f"the step takes {signature} but got {len(args)} arguments: {error}; pass the state and then every input, "
            "in this order"
        ) from None


def check_tensors(tensors: Sequence[torch.Tensor], layout: Layout) -> None:
    """All arguments of a step have one precision and one device.

    Raises:
        StateError: naming the clash.
    """
    floats = sorted({str(t.dtype) for t in tensors if t.is_floating_point()})
    if len(floats) > 1:
        raise StateError(
            f"arguments of different precision: {', '.join(floats)} in {describe_leaves(layout)}. Convert them, e.g. "
            "phi.math.to_float within `with phi.math.precision(64):`"
        )
    devices = sorted({str(t.device) for t in tensors})
    if len(devices) > 1:
        raise StateError(f"arguments on different devices: {', '.join(devices)}. Move them with phi.math.to_device")
