"""A step and its two faces: PhiFlow states outside, torch tensors inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from phi import math

from phi_hybrid.bridge.checks import require_count
from phi_hybrid.bridge.layout import (
    Layout,
    TreeLayout,
    batch_names,
    batch_sizes,
    describe_leaves,
    flatten,
    matches,
    repeat,
    tuple_of,
    unflatten,
    with_batch,
)
from phi_hybrid.errors import StateError
from phi_hybrid.linear_solve import checked_solves
from phi_hybrid.steps.arguments import check_tensors, promoted

Tensors = tuple[torch.Tensor, ...]
Call = tuple[Sequence[Any], Mapping[str, Any]]
"""Positional and keyword arguments as PhiFlow objects."""

MAX_KNOWN = 16
"""Signatures that a step keeps; the one met first makes room."""


class Signature(NamedTuple):
    """What fixes the native step of a layout: the tensors, and what torch does to operations around them."""

    tensors: tuple[tuple[torch.Size, torch.dtype, torch.device], ...]
    """Shape, precision and device of every tensor."""
    ambient: tuple
    """Precision of new tensors, and that of autocast on CPU and CUDA, `None` where it is off."""

    def on(self, device: torch.device) -> Signature:
        """The signature of the same tensors on another device."""
        return self._replace(tensors=tuple((shape, dtype, device) for shape, dtype, _ in self.tensors))


def signature_of(tensors: Sequence[torch.Tensor]) -> Signature:
    """The signature of these tensors, here and now."""
    try:
        return Signature(tuple([(t.shape, t.dtype, t.device) for t in tensors]), _ambient())
    except AttributeError:
        raise _not_native(tensors) from None


def _ambient() -> tuple:
    cpu = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    cuda = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    return torch.get_default_dtype(), cpu, cuda


def _not_native(values: Sequence[Any]) -> StateError:
    return StateError(
        f"a native step takes torch tensors, got {', '.join(type(v).__name__ for v in values)}: flatten the arguments first, "
        "bound.native(*bound.flatten(state, *inputs)), or call the step itself with PhiFlow states"
    )


class NativeStep(Protocol):
    """A step on torch tensors of one signature: `(*state, *inputs) -> state`."""

    layout: TreeLayout
    """Of the arguments, a tuple of state and inputs."""
    output_layout: Layout
    signature: Signature

    @property
    def together(self) -> int:
        """Steps that are best done together, by `several`; 1 where each is done by itself."""
        ...

    def __call__(self, *tensors: torch.Tensor) -> Tensors: ...

    def several(self, state: Tensors, inputs: Sequence[Tensors]) -> list[Tensors]:
        """The states after one step for each of the inputs; never called where `together` is 1."""
        ...

    def is_fresh(self) -> bool:
        """Tells if nothing has changed that the step was made of."""
        ...


def advance(step: NativeStep, state: Tensors, inputs: Sequence[Tensors]) -> list[Tensors]:
    """The states after one step for each of the inputs, as many at once as the step takes together."""
    states: list[Tensors] = []
    while (done := len(states)) < len(inputs):
        state, together = states[-1] if states else state, step.together
        if 1 < together <= len(inputs) - done:
            states += step.several(state, inputs[done : done + together])
        else:
            states.append(step(*state, *inputs[done]))
    return states


class Step(torch.nn.Module):
    """`state, *inputs -> state` as a torch module, called like the PhiFlow function behind it.

    Subclasses say how arguments are checked (`arguments`) and how one signature is computed (`make`). What they make is
    kept here and found again by layout, shapes, precision and device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: Sequence[NativeStep] = ()
        self._flattened: list[TreeLayout] = []

    @property
    def compiles(self) -> bool:
        """Whether native steps are compiled, and have a method `for_compiler` that gives them in a form for larger programs."""
        return False

    def settings(self) -> dict[str, Any]:
        """JSON values, beside weights and layouts, that tell this step from others of its kind in a file."""
        return {}

    def make(self, layout: TreeLayout, tensors: Tensors, call: Call | None = None) -> NativeStep:
        """The native step for arguments of this layout and signature.

        Args:
            layout: of the arguments.
            tensors: state and inputs.
            call: the PhiFlow arguments that the tensors come from, where they are known.
        """
        raise NotImplementedError

    def arguments(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call, by position where that is possible; the same for every way to write it.

        Raises:
            StateError: for missing, superfluous or unknown ones.
        """
        return tuple(args), dict(keywords)

    @property
    def argument_names(self) -> tuple[str, ...]:
        """Names of state and inputs that can be given by position; none where they are not known."""
        return ()

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """One step on PhiFlow states: `state, *inputs -> state`."""
        tensors, layout = self.flatten_call(args, keywords)
        native = self.native_for(layout, tensors, (args, keywords))
        with checked_solves():
            return unflatten(native.output_layout, native(*tensors))

    def bind(self, *args: Any, **keywords: Any) -> BoundStep:
        """This step for one layout: domain, boundaries, dims and Python numbers of these arguments, for good.

        Args:
            *args: state and inputs as in a call, e.g. fields of shape `(batch, x, y, vector)`.
            **keywords: inputs by name.

        Returns:
            `BoundStep` with `flatten`, `native` and `unflatten`, a module for `torch.func`, `torch.compile`, DDP.
        """
        tensors, layout = self.flatten_call(args, keywords)
        return BoundStep(self, self.native_for(layout, tensors, (args, keywords)))

    def flatten(self, *args: Any, **keywords: Any) -> Tensors:
        """State and inputs as torch tensors, in the order that `native` takes them."""
        tensors, layout = self.flatten_call(args, keywords)
        if layout not in (*self._flattened, *(native.layout for native in self.known)):
            self._flattened = [layout, *self._flattened][:MAX_KNOWN]
        return tensors

    def native(self, *tensors: torch.Tensor) -> Tensors:
        """One step on torch tensors, `(*state, *inputs) -> state`, for a step that knows a single layout.

        Raises:
            StateError: if it knows none or several; `bind` chooses one.
        """
        known = self.known
        if len(known) == 1 and not self._flattened and known[0].signature == signature_of(tensors):
            if known[0].is_fresh():
                return known[0](*tensors)
        return self.native_for(self._single_layout(), tensors)(*tensors)

    def unflatten(self, tensors: Sequence[torch.Tensor]) -> Any:
        """PhiFlow state from the tensors that `native` returned, likewise."""
        layout = self._single_layout()
        outputs = [native.output_layout for native in self.known if native.layout == layout]
        return unflatten_result(outputs[0] if outputs else tuple_of(), tensors)

    def flatten_call(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[Tensors, TreeLayout]:
        """Tensors and layout of the arguments of a call, checked."""
        args, keywords = self.arguments(args, keywords)
        tensors, layout = flatten((*args, *keywords.values()))
        if math.get_precision() == 64:
            tensors = promoted(tensors)
        layout = tuple_of(*layout.children, keywords=tuple(keywords))
        check_tensors(tensors, layout)
        return tensors, layout

    def native_for(self, layout: TreeLayout, tensors: Sequence[torch.Tensor], call: Call | None = None) -> NativeStep:
        """The native step for this layout and the signature of these tensors, made if need be, see `make`."""
        if (known := self.known_for(layout, tensors)) is not None:
            return known
        self.check_call(layout)
        if not matches(layout, tensors):
            raise StateError(
                f"tensors of shapes {[tuple(t.shape) for t in tensors]} do not fit the arguments that this step is bound "
                f"to, {describe_leaves(layout)}. Bind such arguments, or use torch.vmap for further batch axes"
            )
        check_tensors(tensors, layout)
        native = self.make(layout, tuple(tensors), call)
        self.remember([native, *self.known][:MAX_KNOWN])
        return native

    def known_for(self, layout: TreeLayout, tensors: Sequence[torch.Tensor]) -> NativeStep | None:
        """The native step for this layout and the signature of these tensors, `None` if none was made that still holds."""
        signature = signature_of(tensors)
        for native in self.known:
            if native.signature == signature and (native.layout is layout or native.layout == layout):
                if native.is_fresh():
                    return native
        return None

    def remember(self, known: Sequence[NativeStep]) -> None:
        """Keeps these native steps, the latest first, and no others."""
        self.known = tuple(known)

    def check_call(self, layout: TreeLayout) -> None:
        """Raises StateError unless arguments of this layout can be passed."""
        positional = len(layout.children) - len(layout.keywords)
        self.arguments(layout.children[:positional], dict(zip(layout.keywords, layout.children[positional:])))

    def _single_layout(self) -> TreeLayout:
        layouts = list(dict.fromkeys([*self._flattened, *(native.layout for native in self.known)]))
        if len(layouts) != 1:
            known = "; ".join(describe_leaves(layout) for layout in layouts) or "none"
            raise StateError(
                f"tensors do not tell their layout, and this step knows {len(layouts)} layouts ({known}). Bind one for "
                "good: bound = step.bind(state, *inputs); bound.native(*bound.flatten(state, *inputs))"
            )
        return layouts[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "known": ()}


class BoundStep(torch.nn.Module):
    """A step bound to one layout: `bound.unflatten(bound.native(*bound.flatten(state, *inputs)))` is one step.

    Made by `step.bind(state, *inputs)`. The module computes `native`, so that DDP, `torch.compile` and
    `torch.func.functional_call` can be put around it; its parameters are those of the step.

    Attributes:
        layout: of state and inputs.
        output_layout: of the state that is returned.
    """

    def __init__(self, step: Step, native: NativeStep) -> None:
        super().__init__()
        self.step = step
        self.layout, self.output_layout = native.layout, native.output_layout
        bound = [torch.empty(shape, device="meta") for shape, _, _ in native.signature.tensors]
        self._batch_sizes = batch_sizes(bound, native.layout)
        self._latest = [native]  # in a list, or torch would take a graph for a part of this module, too

    def flatten(self, *args: Any, **keywords: Any) -> Tensors:
        """State and inputs as torch tensors; those that lack batch dims of this layout are repeated along them.

        Args:
            *args: as in a call of the step, or the state alone, whose tensors come first.
            **keywords: inputs by name.

        Raises:
            StateError: for arguments of another layout: domain, boundary, dims, or numbers.
        """
        if len(args) == 1 and not keywords:
            (tensors, layout), expected = flatten(args), tuple_of(self.layout.children[0])
        else:
            (tensors, layout), expected = self.step.flatten_call(args, keywords), self.layout
        if layout == expected:
            return tensors
        widened = [
            with_batch(given, *batch_names(wanted)) if batch_names(given) != batch_names(wanted) else given
            for given, wanted in zip(layout.children, expected.children)
        ]
        if tuple_of(*widened, keywords=layout.keywords) != expected:
            raise StateError(
                f"these arguments are not those that the step is bound to: {layout.difference(expected)}. Bind the step "
                "to them: step.bind(state, *inputs)"
            )
        return repeat(tensors, layout, expected, self._batch_sizes | batch_sizes(tensors, layout))

    def native(self, *tensors: torch.Tensor) -> Tensors:
        """One step on torch tensors, `(*state, *inputs) -> state`, differentiable.

        Args:
            *tensors: as `flatten` returns them; batch sizes, precision and device may be others.

        Raises:
            StateError: if their number or shapes do not fit the layout.
        """
        return self._native_for(tensors)(*tensors)

    def _native_for(self, tensors: Sequence[torch.Tensor]) -> NativeStep:
        latest = self._latest
        if not latest or latest[0].signature != signature_of(tensors) or not latest[0].is_fresh():
            self._latest = latest = [self.step.native_for(self.layout, tensors)]
        return latest[0]

    def unroll(self, steps: int, *tensors: torch.Tensor) -> list[Tensors]:
        """States after 1, …, `steps` steps with the same inputs, differentiable; of four steps `compile=True` makes one program.

        Args:
            steps: number of steps, at least 0.
            *tensors: the first state and the inputs, as `flatten` returns them, e.g. `(batch, x, y, vector)` for a centred field.

        Returns:
            The tensors of each state.

        Raises:
            StateError: for negative `steps`, if the step returns another kind of state than it takes, or if the tensors do
                not fit the layout.
            SolveError: where a linear solve in a step fails.
        """
        require_count("steps", steps, 0)
        state = self.layout.children[0]
        if self.output_layout != state:
            raise StateError(
                f"the step cannot be repeated, since what it takes and what it returns differ: "
                f"{state.difference(self.output_layout)}. Start from a state as the step returns it"
            )
        count = len(state.leaves)
        return advance(self._native_for(tensors), tuple(tensors[:count]), [tuple(tensors[count:])] * steps)

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        """The same as `native`."""
        return self.native(*tensors)

    def unflatten(self, tensors: Sequence[torch.Tensor]) -> Any:
        """PhiFlow state from the tensors that `native` returned."""
        return unflatten_result(self.output_layout, tensors)

    def __repr__(self) -> str:
        return f"BoundStep({self.step!r}, {describe_leaves(self.layout)})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": []}


def unflatten_result(layout: Layout, tensors: Sequence[torch.Tensor]) -> Any:
    """State from the tensors that a native step returned, checked."""
    if not matches(layout, tensors):
        raise StateError(
            f"tensors of shapes {[tuple(t.shape) for t in tensors]} are no result of this step, whose results are "
            f"{describe_leaves(layout)}; pass what native() returned"
        )
    return unflatten(layout, tensors)
