"""PhiFlow code as it is, behind the same face as captured code."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from phi import math

from phi_hybrid import _compat
from phi_hybrid.bridge.checks import require, require_callable
from phi_hybrid.bridge.layout import Layout, TreeLayout, flatten, precision_of, unflatten
from phi_hybrid.errors import StateError
from phi_hybrid.linear_solve import Solves, checked_solves
from phi_hybrid.steps.arguments import argument_names_of, arguments_of
from phi_hybrid.steps.face import Call, Signature, Step, Tensors, signature_of


def run(step: Callable, layout: TreeLayout, tensors: Sequence[torch.Tensor]) -> tuple[Tensors, Layout]:
    """Unflattens the arguments, calls the step, flattens the result.

    Raises:
        StateError: if nothing comes back.
    """
    values = unflatten(layout, tensors)
    positional = len(values) - len(layout.keywords)
    return flat_result(step, (values[:positional], dict(zip(layout.keywords, values[positional:]))))


def flat_result(step: Callable, call: Call) -> tuple[Tensors, Layout]:
    """Tensors and layout of what a step returns.

    Raises:
        StateError: if nothing comes back.
    """
    result = step(*call[0], **call[1])
    if result is None:
        raise StateError(f"the step {name_of(step)} returns None; let it return the new state")
    return flatten(result)


def run_eager(step: Callable, layout: TreeLayout, tensors: Tensors, solves: Solves) -> tuple[Tensors, Layout]:
    """Plain PhiFlow, but for its linear solves."""
    with computing_like(tensors), solves.active():
        return run(step, layout, tensors)


@contextlib.contextmanager
def computing_like(tensors: tuple[torch.Tensor, ...]) -> Iterator[None]:
    """PhiFlow computes in the precision and on the device of these tensors, with torch; others are taken there."""
    device = tensors[0].device if tensors else torch.device("cpu")
    previous = _compat.TORCH.get_default_device()
    on_device = contextlib.nullcontext() if device.type == "cpu" else _compat.tensors_on(device)
    with math.precision(precision_of(tensors)), _compat.TORCH, _compat.distinct_boundary_values(), on_device:
        if device.type != "cpu" or previous.ref != "cpu":
            ref = f"cuda:{device.index or 0}" if device.type == "cuda" else device.type
            _compat.TORCH.set_default_device(_compat.TORCH.get_device_by_ref(ref))
        try:
            yield
        finally:
            _compat.TORCH.set_default_device(previous)


def _any_recorded(tensors: Tensors) -> bool:
    return any(t.requires_grad for t in tensors)


@dataclass(frozen=True)
class _PlainNativeStep:
    step: Callable
    layout: TreeLayout
    output_layout: Layout
    signature: Signature
    solves: Solves

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        result, layout = run_eager(self.step, self.layout, tensors, self.solves)
        if layout != self.output_layout:
            raise StateError(
                f"the step {name_of(self.step)} returns another kind of state than before: "
                f"{self.output_layout.difference(layout)}. Let what changes with the values be a tensor: phi.math.wrap(number)"
            )
        if torch.is_grad_enabled() and _any_recorded(tensors) and not _any_recorded(result):
            warnings.warn(
                f"no gradient passes the step {name_of(self.step)}, which computes outside of torch (NumPy, another library) or "
                "detaches its state. Training through it, e.g. by Unrolled(4), does not see how errors grow from step to "
                "step: take Unrolled(1), noise or training.Pushforward, or write the step in torch",
                stacklevel=2,
            )
        return result

    together: ClassVar[int] = 1

    def is_fresh(self) -> bool:
        return True


class PlainStep(Step):
    """Plain PhiFlow code as a module: slow, but able to do all that PhiFlow can."""

    def __init__(self, step: Callable[..., Any], name: str = "step") -> None:
        super().__init__()
        require_step(name, step)
        self.step = step
        self.solves = Solves()

    def arguments(self, args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return arguments_of(self.step, args, keywords)

    @property
    def argument_names(self) -> tuple[str, ...]:
        return argument_names_of(self.step)

    def make(self, layout: TreeLayout, tensors: Tensors, call: Call | None = None) -> _PlainNativeStep:
        with torch.no_grad(), checked_solves():
            output_layout = run_eager(self.step, layout, tensors, self.solves)[1]
        return _PlainNativeStep(self.step, layout, output_layout, signature_of(tensors), self.solves)


def as_step(step: Callable[..., Any], name: str = "step") -> Step:
    """Blocks and hybrid solvers as they are, plain PhiFlow code behind the same face.

    Args:
        step: `state, *inputs -> state`.
        name: what it is called, for messages.
    """
    return step if isinstance(step, Step) else PlainStep(step, name)


known_step: Callable[[Callable], Step] = lru_cache(maxsize=64)(as_step)
"""Like `as_step`, but plain functions keep what they were bound to before."""


def require_step(name: str, step: Any) -> None:
    """Raises StateError for what cannot be a step."""
    require_callable(name, step, "a function state, *inputs -> state, a block or a solver")
    require(not _is_network(step), name, step, "a step on states, not a network, see HybridSolver(physics, network)")


def _is_network(step: Callable) -> bool:
    """Whether this is made of torch's layers alone, which know no states."""
    if not isinstance(step, torch.nn.Module) or not any(True for _ in step.parameters()):
        return False
    return all(type(module).__module__.startswith("torch.nn.") for module in step.modules())


def name_of(step: Callable) -> str:
    """What the step is called, for messages."""
    inner = _compat.undecorated(getattr(step, "func", step))  # of functools.partial
    return getattr(inner, "__qualname__", None) or repr(step)
