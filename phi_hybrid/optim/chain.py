"""A learning task as a chain of pieces, each with its rule for passing a wanted update back.

The network's output x goes through physics to a loss, x → physics → … → loss. From the end to the beginning, every rule
turns the update wanted at the output of its piece into one at its input, and the network is trained towards x + Δx:

    descent = Chain(Link(physics, Gradient()), Link(loss, Gradient()))               # differentiable physics (DP)
    physical = Chain(Link(physics, Inverse(fn)), Link(loss, SeparableNewton()))      # physical gradients (PG)
    half = Chain(Link(physics, HalfInverse(0.5)), Link(loss, Gradient()))            # half-inverse, physics only

    chain.proxy(net(inputs)).backward()                                              # then any torch optimizer
    HIG(net).step(Closure(lambda: net(inputs), chain.proxy))                         # or half-inverse in the network
    HIG(net).step(Closure(lambda: physics(net(inputs)), Chain(Link(loss, Gradient())).proxy))  # or in both (HIG)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from phi_hybrid.errors import NonFiniteError, SolveError, StateError
from phi_hybrid.optim.rules import Function, Pullback, Rule
from phi_hybrid.optim.vectors import Tensors, as_tuple, pack, require_like

Distance = Callable[[torch.Tensor], torch.Tensor]
"""Errors `(sample, entry)` → `(sample,)`."""


def half_square(error: torch.Tensor) -> torch.Tensor:
    """½‖e‖² of every sample, `(sample, entry)` → `(sample,)`."""
    return (error**2).sum(1) / 2


def mean_square(error: torch.Tensor) -> torch.Tensor:
    """Mean of e² over the entries of every sample, `(sample, entry)` → `(sample,)`."""
    return (error**2).mean(1)


def absolute(error: torch.Tensor) -> torch.Tensor:
    """Σ|e| of every sample, `(sample, entry)` → `(sample,)`."""
    return error.abs().sum(1)


@dataclass(frozen=True)
class Link:
    """Piece of a chain: a function with the rule for its updates.

    Args:
        function: function `(*x) -> y` on torch tensors `(sample, …)`, e.g. `block.native` of captured physics, a network, or a loss
            `(sample,)`.
        rule: rule that turns an update at y into one at x, see `phi_hybrid.optim.rules`.
    """

    function: Function
    rule: Rule

    def __post_init__(self) -> None:
        for name in ("function", "rule"):
            value = getattr(self, name)
            if not callable(value) or name == "rule" and isinstance(value, type):
                raise StateError(
                    f"{name} = {value!r}: expected Link(function, rule), e.g. Link(block.native, Gradient())"
                )

    def __str__(self) -> str:
        name = getattr(self.function, "__qualname__", None) or type(self.function).__name__
        return f"{name} with {self.rule}"


@dataclass(frozen=True)
class ChainStep:
    """Updates that a chain wants at the input of every link."""

    loss: torch.Tensor
    """Loss of every sample, `(sample,)`."""
    inputs: tuple[Tensors, ...]
    """Input of every link, in the precision of the chain."""
    updates: tuple[Tensors, ...]
    """Update wanted at the input of every link."""
    update: torch.Tensor | Tensors
    """Δx, like the x that was given, in its precision."""
    distance: Distance = half_square

    def proxy(self, x: torch.Tensor | Tensors, link: int = 0) -> torch.Tensor:
        """Proxy loss d(x − stop_gradient(x₀ + Δx)), mean over samples, d = ½‖·‖² unless the chain has another distance.

        Computed as d((x − x₀) − Δx), so that a small Δx survives next to a large x₀.

        Args:
            x: input of a link as the network makes it, with its graph.
            link: number of that link; that of a network within the chain is trained towards the input of the next.

        Raises:
            StateError: if x is not like the one that the step was made for.
        """
        tensors = as_tuple(x)
        if [t.shape for t in tensors] != [t.shape for t in self.inputs[link]]:
            raise StateError(
                f"x of shapes {[tuple(t.shape) for t in tensors]}, but this step was made for "
                f"{[tuple(t.shape) for t in self.inputs[link]]}: use Chain.proxy(x), which makes one for x"
            )
        update = as_tuple(self.update) if link == 0 else self.updates[link]
        errors = [
            t - x0.to(t.dtype) - dx.to(t.dtype) for t, x0, dx in zip(tensors, self.inputs[link], update, strict=True)
        ]
        return self.distance(pack(errors)).mean()


class Chain:
    """Chain of pieces in the order in which they are computed; the last is a loss, `(sample,)`.

    With the rule `Gradient()` throughout, Δx = −∂Σ_samples ℓ/∂x.

    Args:
        *links: pieces `Link(function, rule)`.
        precision: torch dtype to compute in, e.g. `torch.float64` under a single-precision network; x is converted on entry
            and Δx on return. Complex x get the complex type of that precision. That of x by default.
        distance: distance that `proxy` measures, `half_square` (default), `mean_square` or `absolute`.
    """

    def __init__(self, *links: Link, precision: torch.dtype | None = None, distance: Distance = half_square) -> None:
        if not links or not all(isinstance(link, Link) for link in links):
            raise StateError(f"Chain{links!r}: expected Chain(Link(function, rule), …), the last one a loss")
        if precision is not None and not precision.is_floating_point:
            raise StateError(f"precision = {precision}: expected torch.float32 or torch.float64")
        self.links = links
        self.precision = precision
        self.distance = distance

    def update(self, x: torch.Tensor | Sequence[torch.Tensor]) -> ChainStep:
        """Pass forward through all pieces, then backward through their rules.

        Args:
            x: input of the first link, a tensor `(sample, …)` or a tuple of them; its graph is not used.

        Raises:
            StateError: if x is empty or holds integers, if tensors have different numbers of samples, if a rule returns
                something unlike x, or the last link is no loss per sample.
            NonFiniteError: naming the link whose output, or whose rule, is not finite.
            SolveError: naming the link whose rule did not converge.
        """
        given = tuple(t.detach() for t in as_tuple(x))
        if not all(t.numel() and (t.is_floating_point() or t.is_complex()) for t in given):
            raise StateError(
                f"x of shapes {[tuple(t.shape) for t in given]} in {[t.dtype for t in given]}: expected at least one sample, "
                "of real or complex numbers, e.g. x.float()"
            )
        inputs, pullbacks = [tuple(self._converted(t) for t in given)], []
        _require_finite(inputs[0], "the input of the chain", "it comes from the network")
        for number in range(len(self.links)):
            y, pullback = self._forward(number, inputs[-1])
            pullbacks.append(pullback)
            inputs.append(y)
        loss = self._loss(inputs.pop())
        updates = [(-torch.ones_like(loss),)]
        for number in reversed(range(len(self.links))):
            updates.append(self._backward(number, pullbacks[number], updates[-1], inputs[number]))
        updates = updates[:0:-1]
        returned = tuple(dx.to(t.dtype) for dx, t in zip(updates[0], given))
        _require_finite(returned, f"Δx in {given[0].dtype}", "bound it with TrustRegion(rule, radius)")
        update = returned[0] if isinstance(x, torch.Tensor) else returned
        return ChainStep(loss, tuple(inputs), tuple(updates), update, self.distance)

    def proxy(self, x: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
        """Proxy loss d(x − stop_gradient(x + Δx)), mean over samples, for whatever made x; d = ½‖·‖² by default.

        See `ChainStep.proxy`, and `update` for the errors; a line search over one target is `step = chain.update(x)`,
        then `step.proxy`.
        """
        return self.update(x).proxy(x if isinstance(x, torch.Tensor) else tuple(x))

    def _converted(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.precision is None:
            return tensor
        return tensor.to(self.precision.to_complex() if tensor.is_complex() else self.precision)

    def _forward(self, number: int, x: Tensors) -> tuple[Tensors, Pullback]:
        link = self.links[number]

        def function(*x: torch.Tensor) -> Tensors:
            y = as_tuple(link.function(*x))
            self._require_samples(number, x, y)
            return y

        y, pullback = link.rule(function, x)
        _require_finite(y, f"the output of {self._name(number)}", "look at its input, Chain.links gives the pieces")
        return tuple(t.detach() for t in y), pullback

    def _require_samples(self, number: int, x: Tensors, y: Tensors) -> None:
        sizes = {t.shape[0] if t.ndim else None for t in (*x, *y)}
        if len(sizes) > 1 or None in sizes:
            raise StateError(
                f"{self._name(number)} takes tensors of shapes {[tuple(t.shape) for t in x]} and returns "
                f"{[tuple(t.shape) for t in y]}: the first axis of all is that of the samples, `tensor[None]` makes one"
            )

    def _backward(self, number: int, pullback: Pullback, dy: Tensors, x: Tensors) -> Tensors:
        name = self._name(number)
        try:
            dx = tuple(t.detach() for t in as_tuple(pullback(dy)))
        except SolveError as error:
            raise SolveError(f"{name}: {error}", error.residual, error.iterations) from error
        except NonFiniteError as error:
            raise NonFiniteError(f"Δx of {name}: {error}", 0) from error
        require_like(dx, x, f"Δx of {name}")
        _require_finite(
            dx, f"Δx of {name}", "use damping, a larger rcond or floor, or an inverse that holds for y + Δy"
        )
        return dx

    def _loss(self, y: Tensors) -> torch.Tensor:
        if len(y) != 1 or y[0].ndim != 1 or y[0].is_complex():
            raise StateError(
                f"{self._name(len(self.links) - 1)} ends the chain and returns {[tuple(t.shape) for t in y]}, expected a real "
                "loss per sample, `(sample,)`: do not sum over the first axis"
            )
        return y[0]

    def _name(self, number: int) -> str:
        return f"link {number + 1} of {len(self.links)} ({self.links[number]})"


def _require_finite(tensors: Tensors, what: str, advice: str) -> None:
    bad = sum(int((~torch.isfinite(t)).sum()) for t in tensors)
    if bad:
        raise NonFiniteError(f"{what} holds {bad} NaN or infinite values; {advice}", 0)
