"""Losses of an unrolled window: terms that compare states with references, the steps that count, and weighted sums.

A term is called with states after 1 … n steps, native tensors `(trajectory, time, …)`, and the batch with the
references, and returns a scalar. `Losses` adds terms up by name; each is a differentiable function of the states alone.
Means are over all values of a state: where it has several parts, such as velocity and smoke, `Part` gives each a term
of its own. Squares of complex numbers are those of their moduli.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

import torch

from phi_hybrid.bridge.checks import require, require_arguments, require_callable, require_instance, require_number
from phi_hybrid.bridge.dims import TIME, TRAJECTORY
from phi_hybrid.bridge.layout import describe_leaves, repeat, tuple_of, with_batch
from phi_hybrid.bridge.numbers import square
from phi_hybrid.bridge.parts import part_of
from phi_hybrid.data import Batch
from phi_hybrid.data.batch import DataLayout
from phi_hybrid.errors import StateError
from phi_hybrid.steps.plain import known_step, name_of, require_step
from phi_hybrid.training.step_weights import At, EveryStep, Geometric, LastStep, Steps

__all__ = [
    "At",
    "BeforeCorrection",
    "Conserved",
    "EveryStep",
    "Geometric",
    "L1",
    "L2",
    "LastStep",
    "Losses",
    "Part",
    "Residual",
    "Spectral",
    "Steps",
    "Term",
    "Vanishing",
]

Tensors = Sequence[torch.Tensor]


class Term:
    """Base class of loss terms: `(states, batch) -> scalar`; plain functions of this signature are terms, too."""

    needs_uncorrected: bool = False
    """True for a term of what the physics returned, before it was corrected."""
    needs_start: bool = False
    """True for a term that needs the state from which the first step starts."""

    def __call__(self, states: Tensors, batch: Batch) -> torch.Tensor:
        """The loss of states after 1 … n steps, `(trajectory, time, …)`."""
        raise NotImplementedError

    def before_correction(self, uncorrected: Tensors, states: Tensors, batch: Batch) -> torch.Tensor:
        """The loss of what the physics returned; `states` are those after the corrections, from which it went on."""
        return self(uncorrected, batch)


@dataclass(frozen=True)
class _Function(Term):
    function: Callable[[Tensors, Batch], torch.Tensor]

    def __call__(self, states: Tensors, batch: Batch) -> torch.Tensor:
        try:
            return self.function(states, batch)
        except (TypeError, AttributeError) as error:
            raise StateError(
                f"loss {name_of(self.function)} failed: {error}. `states` is a tuple of torch tensors, (trajectory, time, *spatial, …), "
                "one for each component or part of the state, `batch.targets` the same of the reference; PhiFlow functions of a "
                "state become losses by Vanishing(f) and Conserved(f)"
            ) from error


def _as_term(term: Any, name: str, expected: str) -> Term:
    """Terms as they are, plain functions as terms."""
    require(callable(term) and not isinstance(term, type), name, term, expected)
    if isinstance(term, Term):
        return term
    require_arguments(name, term, "states", "batch")
    return _Function(term)


class _Placed(Term):
    """Base class of terms that count at chosen steps."""

    at: At

    def __post_init__(self) -> None:
        require_instance("at", self.at, At, "EveryStep(), LastStep(), Steps(1, 4) or Geometric(0.9)")


# --- comparison with the reference ---


@dataclass(frozen=True)
class L2(_Placed):
    """Mean squared error Σₙ wₙ ⟨((uₙ − u*ₙ)/σ)²⟩ / Σₙ wₙ, σ the standard deviation of the data per state tensor.

    Args:
        at: steps that count, all by default.
    """

    at: At = EveryStep()

    def __call__(self, states: Tensors, batch: Batch) -> torch.Tensor:
        return _mean([square((y - t) / s) for y, t, s in zip(states, batch.targets, batch.scale)], self.at)


@dataclass(frozen=True)
class L1(_Placed):
    """Mean absolute error Σₙ wₙ ⟨|uₙ − u*ₙ|/σ⟩ / Σₙ wₙ; arguments as for `L2`."""

    at: At = EveryStep()

    def __call__(self, states: Tensors, batch: Batch) -> torch.Tensor:
        return _mean([((y - t) / s).abs() for y, t, s in zip(states, batch.targets, batch.scale)], self.at)


@dataclass(frozen=True)
class Spectral(_Placed):
    """Squared error over wavenumbers, Σₙ wₙ ⟨|k̂|^(2·power)·|ûₙ − û*ₙ|²/σ²⟩ / Σₙ wₙ.

    k̂ = k·dx/π along each dim, so that 1 is a wave of two cells. With `power=0` it is `L2` (Parseval); with `power=1`
    small scales count as much as their gradients do. Meant for periodic states; others are transformed as they stand.

    Args:
        power: exponent of the wavenumber, ≥ 0, 1 by default.
        at: steps that count, all by default.
    """

    power: float = 1.0
    at: At = EveryStep()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("power", self.power, least=0)

    def __call__(self, states: Tensors, batch: Batch) -> torch.Tensor:
        errors = []
        for y, t, s, axes in zip(states, batch.targets, batch.scale, batch.state_layout.leaves):
            positions = [n + 2 for n, a in enumerate(axes) if a.kind == "spatial"]
            if positions:
                modes = torch.fft.fftn((y - t) / s, dim=positions, norm="ortho")
                errors.append(_wavenumbers(modes, positions) ** (2 * self.power) * modes.abs() ** 2)
            else:
                errors.append(square((y - t) / s))
        return _mean(errors, self.at)


# --- physics ---


class _InUnits(_Placed):
    """Base class of terms of a quantity with a unit."""

    quantity: Callable
    scale: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_callable("quantity", self.quantity, "a function of a state, e.g. field.divergence")
        require_number("scale", self.scale, above=0)


@dataclass(frozen=True)
class Vanishing(_InUnits):
    """Square of a quantity that should be zero, such as a divergence: Σₙ wₙ ⟨q(uₙ)²⟩/scale² / Σₙ wₙ.

    Args:
        quantity: q, PhiFlow function or captured block `state -> Field or Tensor`, e.g. `field.divergence`.
        scale: unit of the quantity, 1 by default.
        at: steps that count, all by default.
    """

    quantity: Callable[..., Any]
    scale: float = 1.0
    at: At = EveryStep()

    def __call__(self, states: Tensors, batch: Batch) -> torch.Tensor:
        return _mean([square(q / self.scale) for q in _quantities(self.quantity, states, batch)], self.at)


@dataclass(frozen=True)
class Conserved(_InUnits):
    """Squared error of a quantity such as the energy, Σₙ wₙ ⟨(q(uₙ) − q(u*ₙ))²⟩/scale² / Σₙ wₙ.

    Args:
        quantity: q, PhiFlow function or captured block `state -> Tensor`, e.g. `ph.quantities.energy`.
        scale: unit of the quantity, 1 by default.
        at: steps that count, all by default.
    """

    quantity: Callable[..., Any]
    scale: float = 1.0
    at: At = EveryStep()

    def __call__(self, states: Tensors, batch: Batch) -> torch.Tensor:
        own, true = (_quantities(self.quantity, s, batch) for s in (states, batch.targets))
        return _mean([square((a - b) / self.scale) for a, b in zip(own, true)], self.at)


@dataclass(frozen=True)
class Residual(_Placed):
    """PDE residual in discrete form, Σₙ wₙ ⟨((uₙ − R(uₙ₋₁))/σ)²⟩ / Σₙ wₙ, of another step R.

    The first state must be known, so that no steps can go before those that count (`warm_up`, `Pushforward`).

    Args:
        step: R, PhiFlow function or captured block `state, *inputs -> state` with the inputs of the solver's step.
        at: steps that count, all by default.
    """

    step: Callable[..., Any]
    at: At = EveryStep()
    needs_start = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_step("step", self.step)

    def __call__(self, states: Tensors, batch: Batch) -> torch.Tensor:
        return self.before_correction(states, states, batch)

    def before_correction(self, uncorrected: Tensors, states: Tensors, batch: Batch) -> torch.Tensor:
        inputs = batch.step_inputs
        previous = [torch.cat([u[:, None], y[:, :-1]], 1) for u, y in zip(batch.initial, states)]
        bound, expected = batch.bind(known_step(self.step)), []
        for n in range(states[0].shape[1]):
            expected.append(bound.step(*(p[:, n] for p in previous), *inputs.at(n)))
        stacked = [torch.stack(leaf, 1) for leaf in zip(*expected)]
        return _mean([square((y - e) / s) for y, e, s in zip(uncorrected, stacked, batch.scale)], self.at)


# --- combinations ---


class _Around(Term):
    """Base class of terms that give another term something else to see."""

    term: Term

    def __post_init__(self) -> None:
        object.__setattr__(self, "term", _as_term(self.term, "term", "a term, e.g. L2()"))

    @property
    def needs_uncorrected(self) -> bool:
        return self.term.needs_uncorrected

    @property
    def needs_start(self) -> bool:
        return self.term.needs_start


@dataclass(frozen=True)
class BeforeCorrection(_Around):
    """A term of the states that the physics returned, before they were corrected: P(uₙ₋₁) instead of uₙ.

    Around a `Residual` it compares them with R(uₙ₋₁), the other step from the same corrected state.

    Args:
        term: what to measure of them, `L2()` by default.
    """

    term: Term = L2()
    needs_uncorrected = True

    def __repr__(self) -> str:  # of a function as it was given, which checkpoints of older versions hold
        return f"BeforeCorrection(term={self.term.function if isinstance(self.term, _Function) else self.term!r})"

    def __call__(self, states: Tensors, batch: Batch) -> torch.Tensor:
        return self.term(states, batch)

    def before_correction(self, uncorrected: Tensors, states: Tensors, batch: Batch) -> torch.Tensor:
        return self.term.before_correction(uncorrected, states, batch)


@dataclass(frozen=True)
class Part(_Around):
    """A term of one part of the states, e.g. `Part("smoke", L2())` of `{"velocity": …, "smoke": …}`.

    The term sees states and references that are this part alone: quantities get its field, means are over its values.
    In a term of the whole state, a part on a finer grid counts more.

    Args:
        name: key of a dict, index of a tuple.
        term: any term, a residual with a step of this part alone.
    """

    name: str | int
    term: Term

    def __call__(self, states: Tensors, batch: Batch) -> torch.Tensor:
        place, part = self._of(batch)
        return self.term(states[place], part)

    def before_correction(self, uncorrected: Tensors, states: Tensors, batch: Batch) -> torch.Tensor:
        place, part = self._of(batch)
        return self.term.before_correction(uncorrected[place], states[place], part)

    def _of(self, batch: Batch) -> tuple[slice, Batch]:
        """Place of the part among the tensors of a state, and the batch of this part alone."""
        place, layout = part_of(batch.state_layout, self.name)
        layouts, scale = DataLayout(layout, batch.layouts.inputs), batch.scale[place]
        return place, replace(batch, states=batch.states[place], layouts=layouts, scale=scale)


@dataclass(frozen=True)
class Losses:
    """Weighted sum of terms, L = Σ weight · term, each logged by its name.

    Args:
        terms: name → term, or name → (weight, term), e.g. `{"state": L2(), "divergence": (0.01, Vanishing(…))}`.

    Raises:
        StateError: if there is none, or a weight is no finite number.
    """

    terms: Mapping[str, Term | tuple[float, Term]]

    def __post_init__(self) -> None:
        weighted = {}
        given = isinstance(self.terms, Mapping) and bool(self.terms)
        require(given, "terms", self.terms, "a mapping from names to terms, e.g. {'state': L2()}")
        for name, entry in self.terms.items():
            weight, term = entry if isinstance(entry, tuple) and len(entry) == 2 else (1.0, entry)
            expected = "a term or (weight, term) with a finite number as weight, e.g. (0.1, L1())"
            finite = isinstance(weight, Real) and not isinstance(weight, bool) and math.isfinite(weight)
            require(finite, f"terms[{name!r}]", entry, expected)
            weighted[name] = (float(weight), _as_term(term, f"terms[{name!r}]", expected))
        object.__setattr__(self, "terms", weighted)

    def require_known_start(self, steps_before: int) -> None:
        """Raises StateError if a term needs the state that the first step starts from, and it is not in the data."""
        for name, (_, term) in self.terms.items():
            if steps_before and term.needs_start:
                raise StateError(
                    f"terms[{name!r}] = {term!r}: a residual needs the state before the first step that counts, which "
                    "is not kept after steps without gradient; use it in Unrolled without warm_up"
                )

    @cached_property
    def needs_uncorrected(self) -> bool:
        """True if a term looks at what the physics returned."""
        return any(term.needs_uncorrected for _, term in self.terms.values())

    def contributions(self, states: Tensors, uncorrected: Tensors, batch: Batch) -> dict[str, torch.Tensor]:
        """Name → weight · term."""
        values = {}
        for name, (weight, term) in self.terms.items():
            before = term.needs_uncorrected
            value = term.before_correction(uncorrected, states, batch) if before else term(states, batch)
            scalar = isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex()
            require(scalar, f"value of terms[{name!r}]", value, "a torch tensor of one real number, e.g. errors.mean()")
            values[name] = weight * value
        return values


def _mean(entries: list[torch.Tensor], at: At) -> torch.Tensor:
    """Mean over all entries of all tensors `(trajectory, time, …)`, weighted over time."""
    steps = entries[0].shape[1]
    weights = at.weights(steps)
    count = sum(e.numel() for e in entries)
    if all(w == weights[0] for w in weights):
        return sum(e.sum() for e in entries) / count
    weighted = [e.sum([0, *range(2, e.ndim)]) for e in entries]
    factor = torch.tensor(weights, dtype=entries[0].dtype).to(entries[0].device, non_blocking=True)
    return (sum(weighted) * factor).sum() * (steps / (sum(weights) * count))


def _wavenumbers(modes: torch.Tensor, positions: list[int]) -> torch.Tensor:
    """√Σᵢ (kᵢ·dxᵢ/π)², shaped to multiply `modes`."""
    total = torch.zeros((), dtype=modes.real.dtype, device=modes.device)
    for position in positions:
        k = torch.fft.fftfreq(modes.shape[position], dtype=modes.real.dtype, device=modes.device) * 2
        total = total + k.view(-1, *[1] * (modes.ndim - 1 - position)) ** 2
    return total.sqrt()


def _quantities(quantity: Callable, states: Tensors, batch: Batch) -> tuple[torch.Tensor, ...]:
    """A function of single states, for all times and trajectories: native tensors `(trajectory, time, …)`."""
    layout = with_batch(batch.state_layout, TIME, TRAJECTORY)
    tensors = [s.transpose(0, 1).contiguous() for s in states]  # canonical: 'time' stands before 'trajectory'
    step = known_step(quantity).native_for(tuple_of(layout), tensors)
    for axes in step.output_layout.leaves:
        if not {TIME, TRAJECTORY} <= {a.name for a in axes}:
            raise StateError(
                f"{name_of(quantity)} of states with the batch dims '{TIME}' and '{TRAJECTORY}' returned "
                f"{describe_leaves(step.output_layout)}: keep both, e.g. math.sum(u.values, 'x,y') and not "
                "math.sum(u.values, u.values.shape)"
            )
    result = repeat(step(*tensors), step.output_layout, with_batch(step.output_layout, TIME, TRAJECTORY))
    return tuple(r.transpose(0, 1) for r in result)
