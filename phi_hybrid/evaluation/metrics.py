"""What a step of a solver is judged by: one number per trajectory from its state and that of the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from phi import field
from phi import math as phi_math
from phi.field import Field
from phi.geom import Geometry

from phi_hybrid.bridge.checks import require_callable, require_number
from phi_hybrid.bridge.dims import TRAJECTORY
from phi_hybrid.bridge.layout import (
    Axis,
    FieldLayout,
    Layout,
    describe_leaves,
    flatten,
    precision_of,
    tuple_of,
    unflatten,
)
from phi_hybrid.errors import StateError
from phi_hybrid.evaluation.quantities import energy_spectrum
from phi_hybrid.steps.bound import Tensors
from phi_hybrid.steps.face import Step
from phi_hybrid.tracing.block import capture

Quantity = Callable[[Any], Any]
"""PhiFlow function of a state, `(trajectory, …)` → `(trajectory, …)`; captured ones (`ph.capture`) are faster."""


@dataclass(frozen=True)
class Frame:
    """The states of a batch of trajectories after one step; all values are finite."""

    tensors: Tensors
    """Native, `(trajectory, …)`, in the order of `layout`."""
    layout: Layout

    @property
    def state(self) -> Any:
        """The PhiFlow state, `(trajectory, x, y, vector)`."""
        return unflatten(self.layout, self.tensors)

    @cached_property
    def rows(self) -> torch.Tensor:
        """All values in float64, `(trajectory, value)`."""
        return torch.cat([t.reshape(len(t), -1) for t in self.tensors], 1).double()

    @cached_property
    def deviations(self) -> torch.Tensor:
        """`rows` less the spatial mean of each component; less the mean of all values where there is no space."""
        return torch.cat(
            [_deviation(t.double(), a).reshape(len(t), -1) for t, a in zip(self.tensors, self.layout.leaves)], 1
        )

    def of(self, quantity: Quantity | None) -> Frame:
        """A PhiFlow function of the state; without one the frame itself.

        Raises:
            StateError: if the result is not one value or field per trajectory.
        """
        if quantity is None:
            return self
        if isinstance(quantity, Step):
            step = quantity.native_for(tuple_of(self.layout), self.tensors)
            result = Frame(step(*self.tensors), step.output_layout)
        else:
            with phi_math.precision(precision_of(self.tensors)):
                result = Frame(*flatten(quantity(self.state)))
        batches = [[a.name for a in axes if a.kind == "batch"] for axes in result.layout.leaves]
        if not batches or any(names != [TRAJECTORY] for names in batches):
            raise StateError(
                f"{_name(quantity)} of a state with the batch dim '{TRAJECTORY}' returned {describe_leaves(result.layout)}: "
                f"keep '{TRAJECTORY}' and no other batch dim, e.g. math.sum(u.values, 'x,y') and not math.sum(u.values)"
            )
        return result


Metric = Callable[[Frame, Frame], Any]
"""`(solver, reference) -> (trajectory,)`, a torch tensor or a PhiFlow tensor. An attribute `failure` is its value where a
rollout has failed or the result is not finite, +∞ without one."""


class _OfQuantity:
    of: Quantity | None

    def __post_init__(self) -> None:
        if self.of is not None:
            require_callable("of", self.of, "a function of a state, e.g. lambda state: state['velocity'], or None")


@dataclass(frozen=True)
class MAE(_OfQuantity):
    """⟨|u − u*|⟩ over space and components, in units of the state. `of`: of which quantity, the state by default."""

    of: Quantity | None = None

    def __call__(self, own: Frame, reference: Frame) -> torch.Tensor:
        return (own.of(self.of).rows - reference.of(self.of).rows).abs().mean(1)


@dataclass(frozen=True)
class NRMSE(_OfQuantity):
    """‖u − u*‖₂ / ‖u*‖₂ over space and components. `of`: of which quantity, the state by default."""

    of: Quantity | None = None

    def __call__(self, own: Frame, reference: Frame) -> torch.Tensor:
        true = reference.of(self.of).rows
        return (own.of(self.of).rows - true).norm(dim=1) / _positive(true.norm(dim=1))


@dataclass(frozen=True)
class Correlation(_OfQuantity):
    """Σ a·b / √(Σ a²·Σ b²) over space and components, between −1 and 1, and −∞ for failed rollouts.

    Pearson's correlation with a = u − ⟨u⟩, b = u* − ⟨u*⟩, the spatial mean of each component removed; with
    `centred=False` the cosine similarity, a = u and b = u*, which a common offset draws towards 1. Zero where a or b is
    zero everywhere.

    Args:
        centred: whether means are removed.
        of: of which quantity, e.g. the vorticity; the state by default.
    """

    centred: bool = True
    of: Quantity | None = None
    failure: ClassVar[float] = -math.inf

    def __call__(self, own: Frame, reference: Frame) -> torch.Tensor:
        own, reference = own.of(self.of), reference.of(self.of)
        a, b = (own.deviations, reference.deviations) if self.centred else (own.rows, reference.rows)
        return (a * b).sum(1) / _positive(a.norm(dim=1) * b.norm(dim=1))


@dataclass(frozen=True)
class SpectrumError(_OfQuantity):
    """Log-spectral distance √⟨(log₁₀ E(k)/E*(k))²⟩ₖ of the energy spectra, in decades; for periodic fields.

    E(k) as in `plot.energy_spectrum`: ½ Σ |û(κ)|² over the shell of wavenumbers |κ| ≈ k. All complete shells, i.e. up to
    the Nyquist wavenumber of the coarsest dim, count alike; the mean (k = 0) does not.

    Args:
        of: which field of the state, the whole state by default.
        floor: energies below this share of the reference's total energy count as this share: round-off is no structure.

    Raises:
        StateError: for what is not one periodic field on a grid.
    """

    of: Quantity | None = None
    floor: float = 1e-12

    def __call__(self, own: Frame, reference: Frame) -> torch.Tensor:
        frames = [frame.of(self.of) for frame in (own, reference)]
        energy, true = (energy_spectrum(f.tensors, _grid(f, "SpectrumError")) for f in frames)
        lowest = _positive(self.floor * true.sum(1, keepdim=True))
        ratio = (energy.maximum(lowest) / true.maximum(lowest))[:, 1:]
        return ratio.log10().square().mean(1).sqrt()


@dataclass(frozen=True)
class Divergence(_OfQuantity):
    """max |∇·u|·dx / max |u| of the solver's velocity: about 1 for random faces, 1e-6 for projected float32 ones.

    Args:
        of: which velocity of the state, the whole state by default.
        obstacle: cells that touch it do not count.
    """

    of: Quantity | None = None
    obstacle: Geometry | None = None

    @cached_property
    def _divergence(self) -> Quantity:
        def divergence(velocity: Field) -> Field:
            found = field.divergence(velocity)
            if self.obstacle is None:
                return found
            distance = self.obstacle.approximate_signed_distance(found.geometry.center)
            return found.with_values(phi_math.where(distance > phi_math.max(found.dx), found.values, 0))

        return capture(divergence)

    def __call__(self, own: Frame, reference: Frame) -> torch.Tensor:
        velocity = own.of(self.of)
        dx = float(phi_math.max(_grid(velocity, "Divergence").geometry.dx))
        largest = velocity.of(self._divergence).rows.abs().amax(1)
        return largest * dx / _positive(velocity.rows.abs().amax(1))


@dataclass(frozen=True)
class Drift:
    """|Q(u) − Q(u*)| / |Q(u*)| of a quantity that should be conserved, or follow that of the reference.

    Args:
        quantity: Q, PhiFlow function of a state, `(trajectory, x, y, vector)` → `(trajectory,)` or
            `(trajectory, vector)`: `quantities.energy`, `quantities.total`, or your own, captured if it is slow.
        scale: denominator in units of Q instead of |Q(u*)|, for quantities that may vanish, such as a momentum.
    """

    quantity: Quantity
    scale: float | None = None

    def __post_init__(self) -> None:
        require_callable("quantity", self.quantity, "a function of a state, e.g. ph.quantities.energy")
        if self.scale is not None:
            require_number("scale", self.scale, above=0)

    def __call__(self, own: Frame, reference: Frame) -> torch.Tensor:
        value, true = own.of(self.quantity).rows, reference.of(self.quantity).rows
        scale = _positive(true.norm(dim=1)) if self.scale is None else self.scale
        return (value - true).norm(dim=1) / scale


DEFAULT: Mapping[str, Metric] = MappingProxyType(
    {"mae": MAE(), "nrmse": NRMSE(), "correlation": Correlation(), "cosine": Correlation(centred=False)}
)
"""Measured in every evaluation: they cost little and suit any state."""


def _grid(frame: Frame, metric: str) -> FieldLayout:
    if not isinstance(frame.layout, FieldLayout):
        raise StateError(
            f"{metric} takes one field on a grid, got {type(frame.layout).__name__} of {describe_leaves(frame.layout)}; "
            f"pick a field of the state, e.g. {metric}(of=lambda state: state[0])"
        )
    return frame.layout


def _deviation(tensor: torch.Tensor, axes: tuple[Axis, ...]) -> torch.Tensor:
    space = [i for i, a in enumerate(axes) if a.kind in ("spatial", "instance")]
    over = space or [i for i, a in enumerate(axes) if a.kind != "batch"]
    return tensor - tensor.mean(over, keepdim=True) if over else torch.zeros_like(tensor)


def _positive(x: torch.Tensor) -> torch.Tensor:
    """Keeps denominators away from zero."""
    return x.clamp_min(torch.finfo(torch.float32).tiny)


def _name(quantity: Quantity) -> str:
    return getattr(quantity, "__name__", type(quantity).__name__)
