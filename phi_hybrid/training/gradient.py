"""How the gradient of an unrolled loss runs back through the steps.

A mode says how the steps are chained, and how the loss is differentiated. None of them changes a value, only what flows
back.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from phi_hybrid.bridge.checks import require_count, require_instance, require_number
from phi_hybrid.hybrid import Gate

Tensors = tuple[torch.Tensor, ...]


class Record(NamedTuple):
    """One step of an unrolled window: its state, and tensors that losses look at."""

    state: Tensors
    """Where the next step starts."""
    others: Tensors = ()
    """What losses look at besides."""


Step = Callable[[int, Tensors], Record]
"""`(number, state) -> record`."""


class GradientMode:
    """Base class of gradient modes."""

    gate: Gate | None = None
    """Put before the state that the network sees."""

    def chain(self, step: Step, state: Tensors, steps: int) -> list[Record]:
        """Records of `steps` steps, each from the state before."""
        raise NotImplementedError

    def backward(self, loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter], again: bool = False) -> None:
        """Adds to `parameters[i].grad`; `again` keeps the graph for another loss of the same states."""
        loss.backward(retain_graph=again)

    @property
    def overrides_backward(self) -> bool:
        """True for a mode whose gradient takes another `backward` than one through the graph."""
        return type(self).backward is not GradientMode.backward


@dataclass(frozen=True)
class Full(GradientMode):
    """The gradient runs through all steps (backpropagation through time; "with gradient", List et al. 2024)."""

    def chain(self, step: Step, state: Tensors, steps: int) -> list[Record]:
        records = []
        for n in range(steps):
            records.append(step(n, state))
            state = records[-1].state
        return records


@dataclass(frozen=True)
class Truncated(GradientMode):
    """The state is detached after every `every` steps, so that the gradient of a loss runs through at most that many.

    Args:
        every: number of steps between two detached states.

    Raises:
        StateError: if `every` is less than 1.
    """

    every: int

    def __post_init__(self) -> None:
        require_count("every", self.every)

    def chain(self, step: Step, state: Tensors, steps: int) -> list[Record]:
        records = []
        for n in range(steps):
            if n and n % self.every == 0:
                state = tuple(t.detach() for t in state)
            records.append(step(n, state))
            state = records[-1].state
        return records


@dataclass(frozen=True)
class Detached(GradientMode):
    """The state is detached after every step: the network meets its own states, but is not told how it caused them
    ("no gradient", NOG, List et al. 2024)."""

    def chain(self, step: Step, state: Tensors, steps: int) -> list[Record]:
        return Truncated(1).chain(step, state, steps)


@dataclass(frozen=True)
class Checkpointed(GradientMode):
    """The full gradient with less memory: states within a segment are computed again when the gradient passes.

    Memory is that of `steps / segment` states and one segment; time that of one more forward pass.

    Args:
        segment: steps between two kept states; √steps by default.

    Raises:
        StateError: if `segment` is less than 1.
    """

    segment: int | None = None

    def __post_init__(self) -> None:
        if self.segment is not None:
            require_count("segment", self.segment)

    def chain(self, step: Step, state: Tensors, steps: int) -> list[Record]:
        segment = self.segment or math.ceil(math.sqrt(steps))
        records: list[Record] = []
        buffers = running_buffers(_unrolled.get())
        for start in range(0, steps, segment):
            count = min(segment, steps - start)
            contexts = {"context_fn": lambda: (contextlib.nullcontext(), unchanged(buffers))} if buffers else {}
            records += checkpoint(self._segment, step, start, count, state, use_reentrant=False, **contexts)
            state = records[-1].state
        return records

    @staticmethod
    def _segment(step: Step, start: int, count: int, state: Tensors) -> list[Record]:
        return Full().chain(lambda n, s: step(start + n, s), state, count)


@dataclass(frozen=True)
class Paths(GradientMode):
    """Weighs the two ways in which an error flows back from one step to the one before.

    A state depends on the one before through the physics and through what the network sees of it. With `network=0` the
    gradient runs along the physics alone, which is better balanced (Schnell & Thuerey 2024, arXiv 2405.02041);
    `Paths(1, 1)` is `Full()`, `Paths(step=0)` is `Detached()`. Factors between damp a gradient that explodes.

    Args:
        network: factor on what flows back into the state that the network sees.
        step: factor on all that flows back from one step to the one before.
        chaining: how the steps are chained otherwise.

    Raises:
        StateError: if a factor is negative or not finite.
    """

    network: float = 1.0
    step: float = 1.0
    chaining: GradientMode = Full()

    def __post_init__(self) -> None:
        for name, factor in (("network", self.network), ("step", self.step)):
            require_number(name, factor, least=0, way_out="1 leaves the gradient alone")
        require_mode("chaining", self.chaining)

    def chain(self, step: Step, state: Tensors, steps: int) -> list[Record]:
        def damped(n: int, state: Tensors) -> Record:
            return step(n, tuple(scale_gradient(t, self.step) for t in state) if n else state)

        return self.chaining.chain(step if self.step == 1 else damped, state, steps)

    def backward(self, loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter], again: bool = False) -> None:
        self.chaining.backward(loss, parameters, again)

    @property
    def overrides_backward(self) -> bool:
        return self.chaining.overrides_backward

    @property
    def gate(self) -> Gate | None:
        inner, factor = self.chaining.gate, self.network
        if factor == 1:
            return inner
        return lambda tensor: scale_gradient(tensor if inner is None else inner(tensor), factor)


@dataclass(frozen=True)
class SignConsistent(GradientMode):
    """The gradient along the physics where its sign agrees with that of the full gradient, and zero elsewhere.

    g = g_P · [sign g_P = sign g], component by component of the weights, with g_P that of `Paths(network=0)`; the
    comparison takes out the rotation that stopping the network's feedback brings in (StableBPTT, Schnell & Thuerey 2024,
    arXiv 2405.02041). Costs one forward and two backward passes.

    Args:
        chaining: how the steps are chained otherwise.
    """

    chaining: GradientMode = Full()

    def __post_init__(self) -> None:
        require_mode("chaining", self.chaining)

    def chain(self, step: Step, state: Tensors, steps: int) -> list[Record]:
        return self.chaining.chain(step, state, steps)

    @property
    def gate(self) -> Gate:
        inner = self.chaining.gate
        return lambda tensor: _Gate.apply(tensor if inner is None else inner(tensor))

    def backward(self, loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter], again: bool = False) -> None:
        wanted = [p for p in parameters if p.requires_grad]
        full = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
        with _closed_gates():
            physics = torch.autograd.grad(loss, wanted, retain_graph=again, allow_unused=True)
        for parameter, g, p in zip(wanted, full, physics):
            if g is None or p is None:
                continue
            kept = torch.where(torch.sign(g) == torch.sign(p), p, torch.zeros_like(p))
            parameter.grad = kept if parameter.grad is None else parameter.grad + kept


# --- statistics that a network keeps of what it has seen ---

_unrolled: ContextVar[torch.nn.Module | None] = ContextVar("unrolled", default=None)


@contextlib.contextmanager
def unrolling(solver: torch.nn.Module) -> Iterator[None]:
    """Inside, modes that compute steps twice know whose running statistics must change once only."""
    token = _unrolled.set(solver)
    try:
        yield
    finally:
        _unrolled.reset(token)


def running_buffers(solver: torch.nn.Module | None) -> list[torch.Tensor]:
    """Buffers that a forward pass may write to, such as those of batch normalisation."""
    live = () if solver is None else solver.state_dict(keep_vars=True).values()
    return [t for t in live if isinstance(t, torch.Tensor) and not isinstance(t, torch.nn.Parameter)]


class unchanged:
    """Context in which writes into buffers are taken back at the end; may be entered again and again."""

    def __init__(self, buffers: Sequence[torch.Tensor]) -> None:
        self._buffers = buffers

    def __enter__(self) -> None:
        self._kept = [(b, b.detach().clone()) for b in self._buffers]

    def __exit__(self, *error: object) -> None:
        with torch.no_grad():
            for buffer, value in self._kept:
                if not torch.equal(buffer, value):  # others may be wanted by a backward pass, untouched
                    buffer.copy_(value)


def scale_gradient(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    """The same values; what flows back is multiplied by a factor."""
    if factor == 0:
        return tensor.detach()
    return tensor if factor == 1 else _Scaled.apply(tensor, factor)


class _Scaled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: torch.Tensor, factor: float) -> torch.Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.factor * gradient, None


class _Gate(torch.autograd.Function):
    """Lets the gradient through, but not within `_closed_gates`."""

    closed = False

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor | None:
        return torch.zeros_like(gradient) if _Gate.closed else gradient


class _closed_gates:
    def __enter__(self) -> None:
        _Gate.closed = True

    def __exit__(self, *error: object) -> None:
        _Gate.closed = False


def require_mode(name: str, value: Any) -> None:
    """Raises StateError for what is no gradient mode."""
    require_instance(name, value, GradientMode, "a mode of phi_hybrid.gradient, e.g. Truncated(4)")
