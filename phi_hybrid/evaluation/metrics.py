"""Metrics: one number per trajectory from the state of a solver and that of the reference.

Means are over all values of a state: where it has several parts, such as velocity and smoke, `Part` measures one of
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import torch
from phi import math as phi_math
from phi.geom import Geometry
from phi.physics.fluid import Obstacle

from phi_hybrid.bridge.checks import require_arguments, require_callable, require_number
from phi_hybrid.bridge.dims import TRAJECTORY
from phi_hybrid.bridge.layout import (
    Axis,
    FieldLayout,
    Layout,
    describe_leaves,
    tuple_of,
    unflatten,
)
from phi_hybrid.bridge.numbers import in_double
from phi_hybrid.bridge.parts import part_of, parts_of
from phi_hybrid.errors import StateError
from phi_hybrid.evaluation.quantities import divergence, energy_spectrum
from phi_hybrid.steps.bound import Tensors
from phi_hybrid.steps.plain import known_step, name_of
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
        """All values in float64, complex ones in complex128, `(trajectory, value)`."""
        return in_double(torch.cat([t.reshape(len(t), -1) for t in self.tensors], 1))

    @cached_property
    def deviations(self) -> torch.Tensor:
        """`rows` less the spatial mean of each component; less the mean of all values where there is no space."""
        return torch.cat(
            [_deviation(in_double(t), a).reshape(len(t), -1) for t, a in zip(self.tensors, self.layout.leaves)], 1
        )

    def part(self, name: str | int) -> Frame:
        """One part of states that are dicts (by key) or tuples (by index).

        Raises:
            StateError: for a part that the states do not have.
        """
        place, layout = part_of(self.layout, name)
        return Frame(self.tensors[place], layout)

    def of(self, quantity: Quantity | None) -> Frame:
        """A PhiFlow function of the state; without one the frame itself.

        Raises:
            StateError: if the result is not one value or field per trajectory.
        """
        if quantity is None:
            return self
        step = known_step(quantity).native_for(tuple_of(self.layout), self.tensors)
        result = Frame(step(*self.tensors), step.output_layout)
        batches = [[a.name for a in axes if a.kind == "batch"] for axes in result.layout.leaves]
        if not batches or any(names != [TRAJECTORY] for names in batches):
            raise StateError(
                f"{name_of(quantity)} of a state with the batch dim '{TRAJECTORY}' returned "
                f"{describe_leaves(result.layout)}: keep '{TRAJECTORY}' and no other batch dim, e.g. "
                "math.sum(u.values, 'x,y') and not math.sum(u.values, u.values.shape)"
            )
        return result


class Metric:
    """Base class of metrics, `(solver, reference) -> (trajectory,)`; plain functions like this are metrics, too."""

    failure: float = math.inf
    """Value where a rollout has failed or the result is not finite."""

    def __call__(self, own: Frame, reference: Frame) -> Any:
        """One number per trajectory, a torch tensor or a PhiFlow tensor."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Function(Metric):
    function: Callable[[Frame, Frame], Any]

    def __call__(self, own: Frame, reference: Frame) -> Any:
        try:
            return self.function(own, reference)
        except (TypeError, AttributeError) as error:
            raise StateError(
                f"metric {name_of(self.function)} failed: {error}. It takes two frames: `frame.state` is the PhiFlow state, "
                "`frame.tensors` its torch tensors, `frame.rows` all values, (trajectory, value)"
            ) from error


def as_metric(metric: Any, name: str) -> Metric:
    """Metrics as they are, plain functions as metrics.

    Raises:
        StateError: for what is neither; it is called `name` there.
    """
    require_callable(name, metric, "a metric, e.g. MAE(), or a function (solver, reference) -> numbers")
    if isinstance(metric, Metric):
        return metric
    require_arguments(name, metric, "solver", "reference")
    return _Function(metric)


# --- errors and correlations ---


class _OfQuantity(Metric):
    of: Quantity | None

    def __post_init__(self) -> None:
        if self.of is not None:
            require_callable("of", self.of, "a function of a state, e.g. lambda state: state['velocity'], or None")


@dataclass(frozen=True)
class MAE(_OfQuantity):
    """Mean absolute error ⟨|u − u*|⟩ over space and components, in units of the state; moduli of complex errors.

    Args:
        of: quantity to compare, e.g. `ph.quantities.vorticity`; the state by default.
    """

    of: Quantity | None = None

    def __call__(self, own: Frame, reference: Frame) -> torch.Tensor:
        return (own.of(self.of).rows - reference.of(self.of).rows).abs().mean(1)


@dataclass(frozen=True)
class NRMSE(_OfQuantity):
    """Relative error ‖u − u*‖₂ / ‖u*‖₂ over space and components; arguments as for `MAE`."""

    of: Quantity | None = None

    def __call__(self, own: Frame, reference: Frame) -> torch.Tensor:
        true = reference.of(self.of).rows
        return (own.of(self.of).rows - true).norm(dim=1) / _positive(true.norm(dim=1))


@dataclass(frozen=True)
class Correlation(_OfQuantity):
    """Correlation Σ a·b / √(Σ a²·Σ b²) over space and components, between −1 and 1, and −∞ for failed rollouts.

    Real and imaginary parts of complex states count like two components.

    Pearson's correlation with a = u − ⟨u⟩, b = u* − ⟨u*⟩, the spatial mean of each component removed; with
    `centred=False` the cosine similarity, a = u and b = u*, which a common offset draws towards 1. Zero where a or b is
    zero everywhere.

    Args:
        centred: `False` to keep the means.
        of: quantity to compare, e.g. `ph.quantities.vorticity`; the state by default.
    """

    centred: bool = True
    of: Quantity | None = None
    failure = -math.inf

    def __call__(self, own: Frame, reference: Frame) -> torch.Tensor:
        own, reference = own.of(self.of), reference.of(self.of)
        a, b = (own.deviations, reference.deviations) if self.centred else (own.rows, reference.rows)
        return (a * b.conj()).real.sum(1) / _positive(a.norm(dim=1) * b.norm(dim=1))


# --- spectra, divergence, conserved quantities ---


@dataclass(frozen=True)
class SpectrumError(_OfQuantity):
    """Log-spectral distance √⟨(log₁₀ E(k)/E*(k))²⟩ₖ of the energy spectra, in decades; for periodic fields.

    E(k) = ½ Σ |û(κ)|² over the shell of wavenumbers |κ| ≈ k, as in `quantities.energy_spectrum`. All complete shells,
    i.e. up to the Nyquist wavenumber of the coarsest dim, count alike; the mean (k = 0) does not.

    Args:
        of: field to compare, the state by default.
        floor: share of the reference's total energy that smaller energies count as, 1e-12 by default: round-off is no
            structure.

    Raises:
        StateError: for what is not one periodic field on a grid.
    """

    of: Quantity | None = None
    floor: float = 1e-12

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("floor", self.floor, least=0)

    def __call__(self, own: Frame, reference: Frame) -> torch.Tensor:
        frames = [frame.of(self.of) for frame in (own, reference)]
        energy, true = (energy_spectrum(f.tensors, _grid(f, "SpectrumError")) for f in frames)
        lowest = _positive(self.floor * true.sum(1, keepdim=True))
        ratio = (energy.maximum(lowest) / true.maximum(lowest))[:, 1:]
        return ratio.log10().square().mean(1).sqrt()


@dataclass(frozen=True)
class Divergence(_OfQuantity):
    """Largest divergence max |∇·u|·dx / max |u| of the solver: 1 for random faces, 1e-6 for projected float32 ones.

    Args:
        of: velocity of the state, the state itself by default.
        obstacle: obstacle or geometry; cells that touch it do not count.
    """

    of: Quantity | None = None
    obstacle: Obstacle | Geometry | None = None

    @cached_property
    def _divergence(self) -> Quantity:
        return capture(partial(divergence, obstacle=self.obstacle))

    def __call__(self, own: Frame, reference: Frame) -> torch.Tensor:
        velocity = own.of(self.of)
        dx = float(phi_math.max(_grid(velocity, "Divergence").geometry.dx))
        largest = velocity.of(self._divergence).rows.abs().amax(1)
        return largest * dx / _positive(velocity.rows.abs().amax(1))


@dataclass(frozen=True)
class Drift(Metric):
    """Relative drift |Q(u) − Q(u*)| / |Q(u*)| of a quantity that should be conserved, or follow that of the reference.

    Args:
        quantity: Q, PhiFlow function of a state, `(trajectory, x, y, vector)` → `(trajectory,)` or
            `(trajectory, vector)`: `ph.quantities.energy`, `ph.quantities.total`, or your own, captured if it is slow.
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


# --- parts ---


@dataclass(frozen=True)
class Part(Metric):
    """A metric of one part of the states, e.g. `Part("smoke", MAE())` of `{"velocity": …, "smoke": …}`.

    The metric sees states that are this part alone: quantities get its field, means are over its values.

    Args:
        name: key of a dict, index of a tuple.
        metric: any metric.
    """

    name: str | int
    metric: Metric

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", as_metric(self.metric, "metric"))

    @property
    def failure(self) -> float:
        return self.metric.failure

    def __call__(self, own: Frame, reference: Frame) -> Any:
        return self.metric(own.part(self.name), reference.part(self.name))


DEFAULT: Mapping[str, Metric] = MappingProxyType(
    {"mae": MAE(), "nrmse": NRMSE(), "correlation": Correlation(), "cosine": Correlation(centred=False)}
)
"""Metrics of every evaluation: they cost little and suit any state."""


def defaults(state: Layout) -> dict[str, Metric]:
    """`DEFAULT`, and `mae` and `nrmse` of every part where a state has several, e.g. `mae smoke`, `nrmse 0`."""
    parts = [name for name, part in parts_of(state).items() if part.leaves]
    if len(parts) < 2:
        return dict(DEFAULT)
    return {**DEFAULT, **{f"{name} {part}": Part(part, DEFAULT[name]) for name in ("mae", "nrmse") for part in parts}}


def _grid(frame: Frame, metric: str) -> FieldLayout:
    if not isinstance(frame.layout, FieldLayout):
        raise StateError(
            f"{metric} takes one field on a grid, got "
            f"{describe_leaves(frame.layout)}: measure one part of the state, e.g. Part('velocity', {metric}())"
        )
    return frame.layout


def _deviation(tensor: torch.Tensor, axes: tuple[Axis, ...]) -> torch.Tensor:
    space = [i for i, a in enumerate(axes) if a.kind in ("spatial", "instance")]
    over = space or [i for i, a in enumerate(axes) if a.kind != "batch"]
    return tensor - tensor.mean(over, keepdim=True) if over else torch.zeros_like(tensor)


def _positive(x: torch.Tensor) -> torch.Tensor:
    """Keeps denominators away from zero."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)
