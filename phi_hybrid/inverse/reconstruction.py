"""Inverse problems: the state from which physics leads to what has been observed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from phi_hybrid.bridge.checks import (
    require,
    require_arguments,
    require_callable,
    require_count,
    require_instance,
    require_number,
)
from phi_hybrid.bridge.dims import ITERATION, TIME
from phi_hybrid.bridge.layout import (
    Layout,
    batch_names,
    batch_sizes,
    flatten,
    repeat,
    stack,
    tuple_of,
    unflatten,
    with_batch,
)
from phi_hybrid.errors import NonFiniteError, SolveError, StateError
from phi_hybrid.linear_solve import checked_solves
from phi_hybrid.optim import Chain, Distance, Gradient, Link, Rule, as_tuple, half_square, pack
from phi_hybrid.steps import (
    Inputs,
    Repeatable,
    Step,
    as_step,
    bind,
    evaluation_mode,
    flatten_arguments,
    require_finite,
    unroll,
)

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Reconstruction:
    """Result of `reconstruct`."""

    state: Any
    """x after the last iteration."""
    losses: tuple[float, ...]
    """Before the first iteration and after each, means over the samples."""
    path: Any = None
    """x before the first iteration and after each, with a batch dim `iteration`, if it was to be kept."""


def reconstruct(
    physics: Callable[..., Any],
    observation: Any,
    x0: Any,
    *inputs: Any,
    times: Sequence[int] = (1,),
    rule: Rule = Gradient(),
    loss: Distance = half_square,
    lr: float = 1.0,
    iterations: int = 100,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    keep_path: bool = False,
) -> Reconstruction:
    """Searches the initial state x with P(x) = observation: x ← x + η·Δx, with Δx from a rule for P.

    With the defaults, gradient descent on Σₜ ½‖Pᵗ(x) − y*ₜ‖², Pᵗ being t steps of P. The rule is that of the function that
    gives Pᵗ(x) for all observed times, one after the other. Samples, the entries of batch dims, are reconstructed side by
    side.

    Args:
        physics: P, `state, *inputs -> state`: `PhysicsBlock`, `HybridSolver` or PhiFlow code. For a single step, it may
            return another kind of state than it takes; dense rules want it captured.
        observation: y*, a state like P returns, in any precision; for several times, with a batch dim `time` of their
            number.
        x0: where the search begins, a state such as P takes, in the precision to compute in; repeated along batch dims
            that only the observation has.
        *inputs: further arguments of P; those with a batch dim `time` are sliced, entry n for step n.
        times: numbers of steps after which there are observations, ascending.
        rule: how a wanted update of what is observed becomes one of x: see `phi_hybrid.optim.rules`.
        loss: of the errors P(x) − y* at all times together, `(sample, entry)`: `half_square`, `mean_square`, `absolute`
            of `phi_hybrid.optim`. Rules that use an inverse want `half_square`, whose update is y* − P(x).
        lr: η, learning rate of the optimizer.
        iterations: number of steps of the optimizer.
        optimizer: made by `optimizer([x], lr=lr)`, e.g. `torch.optim.Adam`, or `functools.partial(torch.optim.LBFGS,
            line_search_fn="strong_wolfe")`; its gradient is −Δx, and a line search wants the rule `Gradient()`.
        keep_path: whether to return the iterates, too.

    Raises:
        StateError: if observation and prediction differ in kind, arguments in batch sizes or precision, or for settings
            out of range.
        NonFiniteError, SolveError: with the iteration in `error.step` and the `Reconstruction` up to it in
            `error.trajectory`; step 0 if x0 or the observation is not finite.
    """
    require_count("iterations", iterations, 0)
    require_number("lr", lr, least=0)
    require_callable("rule", rule, "a rule of phi_hybrid.optim.rules, e.g. Gradient()")
    require_callable("loss", loss, "a distance (sample, entry) -> (sample,), e.g. optim.half_square")
    require_arguments("loss", loss, "errors")
    require(callable(optimizer), "optimizer", optimizer, "what makes one, optimizer([x], lr=lr), e.g. torch.optim.Adam")
    step = as_step(physics, "physics")
    with evaluation_mode(step):
        problem = _Problem(step, *flatten_arguments(step, x0, inputs, {}), Inputs(*flatten(observation)), times)
        chain = Chain(Link(problem.predicted, rule), Link(lambda *y: loss(problem.error(*y)), Gradient()))
        x = [t.clone().requires_grad_() for t in problem.start]
        search = _made(optimizer, x, lr)
        frames, losses = [_copies(x)], []
        for n in range(iterations):
            try:
                with checked_solves():
                    losses.append(_iterate(search, chain, x))
            except NonFiniteError as error:
                so_far = problem.result(frames, losses, keep_path)
                raise NonFiniteError(
                    f"iteration {n + 1} of {iterations}: {error}; or a smaller lr", n + 1, so_far
                ) from error
            except SolveError as error:
                so_far = problem.result(frames, losses, keep_path)
                raise error.at(n + 1, f"iteration {n + 1} of {iterations}", so_far) from error
            frames = [*frames, _copies(x)] if keep_path else [_copies(x)]
        with torch.no_grad(), checked_solves():
            losses.append(float(loss(problem.error(*problem.predicted(*x))).mean()))
    if not math.isfinite(losses[-1]):
        so_far = problem.result(frames, losses, keep_path)
        raise NonFiniteError(f"the loss is {losses[-1]} in the end; take a smaller lr", iterations, so_far)
    if losses[-1] > losses[0]:
        warnings.warn(
            f"the loss rose from {losses[0]:.3g} to {losses[-1]:.3g}: the search diverges; take a smaller lr, or a rule with damping",
            RuntimeWarning,
            stacklevel=2,
        )
    return problem.result(frames, losses, keep_path)


def _made(optimizer: Callable, x: list[torch.Tensor], lr: float) -> torch.optim.Optimizer:
    try:
        search = optimizer(x, lr=lr)
    except TypeError as error:
        raise StateError(f"optimizer([x], lr={lr}) fails: {error}; give e.g. torch.optim.Adam") from error
    require_instance("optimizer([x], lr=lr)", search, torch.optim.Optimizer, "a torch optimizer")
    return search


def _iterate(search: torch.optim.Optimizer, chain: Chain, x: list[torch.Tensor]) -> float:
    """One step of the optimizer; the loss before it."""

    def closure() -> torch.Tensor:
        step = chain.update(tuple(x))
        for tensor, update in zip(x, as_tuple(step.update)):
            tensor.grad = -update
        return step.loss.sum()

    return float(search.step(closure)) / len(x[0])


class _Problem:
    """Physics and observation, as functions of torch tensors `(sample, …)`."""

    def __init__(
        self,
        step: Step,
        state: Tensors,
        layout: Layout,
        inputs: Inputs,
        observed: Inputs,
        times: Sequence[int],
    ) -> None:
        self.times, self.inputs = _ascending(times), inputs
        self._require_entries(observed)
        frame = tuple_of(layout, observed.frame_layout, inputs.frame_layout)
        sizes = batch_sizes((*state, *observed.at(0), *inputs.at(0)), frame)
        if empty := [name for name, size in sizes.items() if size == 0]:
            raise StateError(f"batch dim '{empty[0]}' is empty: expected at least one sample")
        _require_start(state)
        require_finite(observed.tensors, 0, "the observation")
        self.bound = self._bound(
            step, repeat(state, layout, with_batch(layout, *sizes), sizes), with_batch(layout, *sizes)
        )
        names = batch_names(self.bound.layout)
        self._batch = self.bound.state[0].shape[: len(names)]
        frame = with_batch(observed.frame_layout, *names)
        predicted = with_batch(self.bound.step.output_layout, *names)
        if frame != predicted:
            raise StateError(
                f"the observation is of another kind than what the physics returns: {frame.difference(predicted)}. Take it "
                "from a state that the physics returned, e.g. with u.with_values(…)"
            )
        self._frame = frame
        goals = [repeat(observed.at(n), observed.frame_layout, frame) for n in range(len(self.times))]
        self._goals = [goal for frame in goals for goal in self._as_samples(frame)]

    @property
    def start(self) -> Tensors:
        """x₀, `(sample, …)`."""
        return self._as_samples(self.bound.state)

    def predicted(self, *x: torch.Tensor) -> Tensors:
        """Pᵗ(x), one time after the other, `(sample, …)`."""
        states = unroll(Repeatable(self.bound.step, self._as_batch(x), self.bound.layout), self.inputs, self.times[-1])
        found = [repeat(states[t - 1], self.bound.step.output_layout, self._frame) for t in self.times]
        return tuple(y for frame in found for y in self._as_samples(frame))

    def error(self, *y: torch.Tensor) -> torch.Tensor:
        """Pᵗ(x) − y*ₜ of all times, `(sample, entry)`."""
        return pack([found - goal.to(found.dtype) for found, goal in zip(y, self._goals)])

    def result(self, frames: list[Tensors], losses: list[float], keep_path: bool) -> Reconstruction:
        layout = self.bound.layout
        frames = [self._as_batch(frame) for frame in frames]
        path = None
        if keep_path:
            stacked, path_layout = stack(frames, layout, ITERATION)
            path = unflatten(path_layout, stacked)
        return Reconstruction(unflatten(layout, frames[-1]), tuple(losses), path)

    def _as_samples(self, tensors: Tensors) -> Tensors:
        """`(*batch, …)` to `(sample, …)`: one axis for all batch dims, also for none."""
        axes, count = len(self._batch), math.prod(self._batch)
        return tuple(t.expand((*self._batch, *t.shape[axes:])).reshape(count, *t.shape[axes:]) for t in tensors)

    def _as_batch(self, tensors: Sequence[torch.Tensor]) -> Tensors:
        """Inverse of `_as_samples`."""
        return tuple(t.reshape((*self._batch, *t.shape[1:])) for t in tensors)

    def _bound(self, step: Step, state: Tensors, layout: Layout) -> Repeatable:
        if self.times[-1] > 1:
            return bind(step, state, layout, self.inputs)
        arguments = self.inputs.call_layout(layout)
        return Repeatable(step.native_for(arguments, (*state, *self.inputs.at(0))), state, layout)

    def _require_entries(self, observed: Inputs) -> None:
        """Along `time`."""
        times = self.times
        self.inputs.check_length(times[-1])
        if len(times) > 1 and TIME not in batch_names(observed.layout):
            raise StateError(f"an observation at times {times} needs a batch dim '{TIME}' of size {len(times)}")
        for tensor, axes in zip(observed.tensors, observed.layout.leaves):
            for axis, size in zip(axes, tensor.shape):
                if axis.name == TIME and size != len(times):
                    raise StateError(
                        f"the observation has {size} entries along '{TIME}' but there are {len(times)} times, {times}; pick "
                        "those observed, e.g. trajectory.time[[8, 16]]"
                    )


def _ascending(times: Any) -> tuple[int, ...]:
    steps = tuple(times) if isinstance(times, Iterable) else ()
    counts = all(isinstance(t, Integral) and not isinstance(t, bool) and t >= 1 for t in steps)
    valid = steps and counts and list(steps) == sorted(set(steps))
    require(valid, "times", times, "ascending numbers of steps, each ≥ 1, e.g. (8, 16)")
    return steps


def _require_start(state: Tensors) -> None:
    if not all(t.is_floating_point() or t.is_complex() for t in state):
        raise StateError(
            f"x0 has values in {', '.join(sorted({str(t.dtype) for t in state}))}: expected real or complex numbers, e.g. "
            "phi.math.to_float(x0)"
        )
    require_finite(state, 0, "x0")


def _copies(tensors: Sequence[torch.Tensor]) -> Tensors:
    return tuple(t.detach().clone() for t in tensors)
