"""How a network's output and a physics step make one hybrid step.

A combination is any differentiable function of the state before, the state after the physics, and the output. What the
network sees and what its output changes is said around it: `Parallel(Additive())`, `Before(Multiplicative())`.
Written for a state u, inputs f, physics P and scaled output C:

    Additive()               u⁺ = P(u, f) + C(P(u, f))
    Parallel(Additive())     u⁺ = P(u, f) + C(u)
    Before(Additive())       u⁺ = P(u + C(u), f)
    Forcing(0)               u⁺ = P(u, f + C(u))
    Parameter(0, link)       u⁺ = P(u, link(f, C(u)))
    Replacement()            u⁺ = u + C(u)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from phi_hybrid.bridge.checks import require_arguments, require_callable, require_count, require_number

Tensors = Sequence[torch.Tensor]

Combination = Callable[[Tensors, Tensors, Tensors], tuple[torch.Tensor, ...]]
"""`(state before, state after the physics, output) -> new state`, each as native tensors of one layout. Outputs live on
the faces of the state and are scaled so that an output of 1 changes the state by about the error of one step."""

_COMBINATION = "e.g. Additive(), or a function (state before, state after, output) -> state"

ParameterLink = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`(value of the input, output) -> value that the physics gets`, differentiable, tensor by tensor."""


class Coupling:
    """Base class of couplings: what the output changes, before and after the physics.

    A step with arguments a = (u, f, …) and outputs C is u⁺ = finish(u, P(prepare(a, C)), C). Of the state, `prepare` and
    `finish` get the parts that are corrected.
    """

    changes: tuple[int, ...] = (0,)
    """Arguments of the step that the network has outputs for, in this order: 0 the state, 1 the first input, …"""
    sees_result: bool = False
    """Whether the network sees the state after the physics rather than the one before."""
    calls_physics: bool = True
    """Whether the physics has a part in the new state."""

    def prepare(self, arguments: Sequence[Tensors], outputs: Sequence[Tensors]) -> Sequence[Tensors]:
        """State and inputs that the physics gets; never called where the network sees the result."""
        return arguments

    def finish(self, before: Tensors, after: Tensors, outputs: Sequence[Tensors]) -> Tensors:
        """The new state, from the state before, what the physics returned (empty without), and the outputs."""
        return after


# --- combinations ---


@dataclass(frozen=True)
class Additive:
    """u⁺ = P(u) + strength · C, the correction of Um et al. 2020 (arXiv 2007.00016).

    Args:
        strength: factor on the correction, dimensionless; 0 leaves the physics alone.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        require_number("strength", self.strength)

    def __call__(self, before: Tensors, after: Tensors, correction: Tensors) -> tuple[torch.Tensor, ...]:
        if self.strength == 1.0:
            return tuple(a + c for a, c in zip(after, correction))
        return tuple(a + self.strength * c for a, c in zip(after, correction))


@dataclass(frozen=True)
class Multiplicative:
    """u⁺ = P(u) · (1 + C): zero stays zero, and a small relative change where the state is small.

    Args:
        strength: factor on the correction, dimensionless; 0 leaves the physics alone.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        require_number("strength", self.strength)

    def __call__(self, before: Tensors, after: Tensors, correction: Tensors) -> tuple[torch.Tensor, ...]:
        return tuple(a * (1 + self.strength * c) for a, c in zip(after, correction))


# --- placements ---


@dataclass(frozen=True)
class _Placement(Coupling):
    combine: Combination = Additive()

    def __post_init__(self) -> None:
        require_callable("combine", self.combine, _COMBINATION)


@dataclass(frozen=True)
class After(_Placement):
    """u⁺ = K(u, P(u), C(P(u))): network after physics, the usual order; what a bare combination stands for."""

    sees_result = True

    def finish(self, before: Tensors, after: Tensors, outputs: Sequence[Tensors]) -> Tensors:
        return self.combine(before, after, outputs[0])


@dataclass(frozen=True)
class Parallel(_Placement):
    """u⁺ = K(u, P(u), C(u)): network and physics see the same state."""

    def finish(self, before: Tensors, after: Tensors, outputs: Sequence[Tensors]) -> Tensors:
        return self.combine(before, after, outputs[0])


@dataclass(frozen=True)
class Before(_Placement):
    """u⁺ = P(K(u, u, C(u))): the network prepares the state that the physics gets, which has the last word."""

    def prepare(self, arguments: Sequence[Tensors], outputs: Sequence[Tensors]) -> Sequence[Tensors]:
        state, *inputs = arguments
        return [self.combine(state, state, outputs[0]), *inputs]


@dataclass(frozen=True)
class Parameter(Coupling):
    """u⁺ = K(u, P(u, link(f, C₁)), C₂): the network sets a parameter of the PDE, such as a viscosity field.

    Args:
        input: which input of the step it sets, 0 for the first after the state; it must have the grid of the state.
        link: `(value in the data, output) -> value for the physics`, tensor by tensor; e.g. `lambda nu, c: nu *
            torch.exp(c)` keeps a viscosity positive. By default the output is added.
        combine: how further output channels change the state besides, e.g. `Additive()`; none by default.
    """

    input: int = 0
    link: ParameterLink = torch.add
    combine: Combination | None = None
    changes: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_count("input", self.input, 0, "0 for the first after the state")
        require_callable("link", self.link, "a function (value, output) -> value, e.g. torch.add")
        if self.combine is not None:
            require_callable("combine", self.combine, _COMBINATION)
        object.__setattr__(self, "changes", (self.input + 1,) if self.combine is None else (self.input + 1, 0))

    def prepare(self, arguments: Sequence[Tensors], outputs: Sequence[Tensors]) -> Sequence[Tensors]:
        arguments = list(arguments)
        arguments[self.input + 1] = tuple(map(self.link, arguments[self.input + 1], outputs[0]))
        return arguments

    def finish(self, before: Tensors, after: Tensors, outputs: Sequence[Tensors]) -> Tensors:
        return after if self.combine is None else self.combine(before, after, outputs[1])


def Forcing(input: int = 0) -> Parameter:
    """u⁺ = P(u, f + C(u)): the output enters the right-hand side (indirect neural correction, INC), where errors of
    the network are smoothed by the physics and grow more slowly.

    Args:
        input: which input of the step is the force, 0 for the first after the state; a field on the grid of the state.
            Let the step take a force that is zero in the data if it has none.
    """
    return Parameter(input)


@dataclass(frozen=True)
class Replacement(Coupling):
    """u⁺ = u + C(u), or C(u): pure prediction without physics, a baseline.

    Args:
        residual: whether the network predicts the change over a step instead of the next state.
    """

    residual: bool = True
    calls_physics = False

    def finish(self, before: Tensors, after: Tensors, outputs: Sequence[Tensors]) -> Tensors:
        return tuple(u + c for u, c in zip(before, outputs[0])) if self.residual else outputs[0]


def as_coupling(coupling: Coupling | Combination) -> Coupling:
    """A bare combination is placed after the physics."""
    if isinstance(coupling, Coupling):
        return coupling
    require_callable("coupling", coupling, _COMBINATION)
    require_arguments("coupling", coupling, "before", "after", "output")
    return After(coupling)
