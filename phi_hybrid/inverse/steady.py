"""Steady states of steps, x = f(x, p), and their derivatives by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable

import torch

from phi_hybrid.bridge.checks import require_callable, require_count, require_instance, require_number
from phi_hybrid.errors import SolveError
from phi_hybrid.linear_solve import checked_solves

__all__ = ["fixed_point", "steady_state"]

Tensors = tuple[torch.Tensor, ...]


def fixed_point(
    step: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    tolerance: float,
    max_steps: int = 2000,
    memory: int = 20,
) -> tuple[torch.Tensor, int]:
    """x = f(x) by Anderson's acceleration, which for linear f is nearly GMRES (Anderson 1965; Walker & Ni 2011).

    Args:
        step: f, of a vector.
        start: where to begin.
        tolerance: of ‖f(x) − x‖ / ‖f(x)‖; no smaller one than 8 ε is asked for, what rounding leaves of f.
        max_steps: evaluations of f.
        memory: how many differences are combined; 0 iterates x ← f(x).

    Returns:
        The fixed point and the number of evaluations.

    Raises:
        StateError: no evaluation is allowed, or the tolerance is no number > 0.
        SolveError: the tolerance is not reached within the allowed evaluations, or values are not finite.
    """
    require_callable("step", step, "a function of a vector")
    require_instance("start", start, torch.Tensor, "a torch tensor, a vector")
    require_number("tolerance", tolerance, above=0)
    require_count("max_steps", max_steps)
    require_count("memory", memory, 0)
    x, values, residuals = start, [], []
    tolerance = max(tolerance, 8 * torch.finfo(start.dtype).eps)
    for steps in range(1, max_steps + 1):
        value = step(x)
        residual = value - x
        error = float(residual.norm() / value.norm().clamp_min(torch.finfo(value.dtype).tiny))
        if error <= tolerance:
            return value, steps
        if not error < float("inf"):
            break
        oldest = max(0, len(values) - memory)
        values, residuals = [*values[oldest:], value], [*residuals[oldest:], residual]
        x = value
        if len(values) > 1:
            change = torch.stack([residual - r for r in residuals[:-1]], 1)
            gram = change.mH @ change
            gram = gram + 1e-12 * gram.trace() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            weights, singular = torch.linalg.solve_ex(gram, change.mH @ residual)
            if singular:  # nothing but rounding is left of the differences
                values, residuals = [value], [residual]
            else:
                x = value - torch.stack([value - v for v in values[:-1]], 1) @ weights
    raise SolveError(
        f"fixed point: ‖f(x) − x‖/‖x‖ = {error:.2e} after {steps} steps, expected ≤ {tolerance:.1e}; raise max_steps, take a "
        "smaller time step, or make sure that the flow is steady",
        error,
        steps,
    )


def steady_state(
    step: Callable[..., Tensors],
    start: Tensors,
    inputs: Tensors,
    tolerance: float = 1e-8,
    max_steps: int = 2000,
    memory: int = 20,
    counted: Callable[[str, int], None] = lambda kind, steps: None,
) -> Tensors:
    """u with u = f(u, p), differentiable by p: dL/dp = λᵀ ∂f/∂p with λ = ∂L/∂u + (∂f/∂u)ᵀ λ.

    Memory and time of the backward pass do not depend on how the state was reached (Christianson 1994; Bai et al. 2019).

    Args:
        step: `(*state, *inputs) -> state`, such as `block.native`.
        start: initial state, tensors; near the steady state it takes fewer steps.
        inputs: p, tensors; those that require gradients get them, zero where f does not depend on them.
        tolerance: ‖f(u) − u‖/‖u‖, and the same of λ, at least 8 ε.
        max_steps: of either iteration.
        memory: of Anderson's acceleration.
        counted: called as `counted("forward" or "adjoint", steps)`.

    Raises:
        SolveError: either iteration does not converge.
    """
    shapes = [s.shape for s in start]
    sizes = [s.numel() for s in start]

    def split(vector: torch.Tensor) -> Tensors:
        return tuple(part.reshape(shape) for part, shape in zip(vector.split(sizes), shapes))

    def flow(vector: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        return _join(step(*split(vector), *inputs))

    class Steady(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, *inputs: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), checked_solves():
                state, steps = fixed_point(lambda x: flow(x, *inputs), _join(start), tolerance, max_steps, memory)
            counted("forward", steps)
            ctx.save_for_backward(state, *inputs)
            return state

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            state, *inputs = (t.detach() for t in ctx.saved_tensors)
            wanted = [t.requires_grad_() for t, needed in zip(inputs, ctx.needs_input_grad, strict=True) if needed]
            with torch.enable_grad():
                after = flow(state.requires_grad_(), *inputs)

            def pull(cotangent: torch.Tensor) -> torch.Tensor:
                settings = dict(retain_graph=True, materialize_grads=True)  # zero where f does not depend on u
                return gradient + torch.autograd.grad(after, state, cotangent, **settings)[0]

            with checked_solves():
                adjoint, steps = fixed_point(pull, gradient, tolerance, max_steps, memory)
            counted("adjoint", steps)
            found = iter(torch.autograd.grad(after, wanted, adjoint, materialize_grads=True))
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)

    return split(Steady.apply(*inputs))


def _join(tensors: Tensors) -> torch.Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
