"""Comparison of a new graph with plain PhiFlow: values and gradients, up to the rounding of what was added up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from phi_hybrid import _compat
from phi_hybrid.bridge.layout import Layout
from phi_hybrid.errors import CaptureError
from phi_hybrid.linear_solve import Solves
from phi_hybrid.steps.plain import computing_like, run_eager
from phi_hybrid.tracing.guard import is_random
from phi_hybrid.tracing.tracer import in_place_targets

SEEDS = 1_234_567, 7_654_321
"""Of the perturbations, and of the random numbers that a step may draw."""

Results = Sequence[torch.Tensor | None]


def check_against_eager(
    graph: Any, step: Callable, tensors: tuple[torch.Tensor, ...], solves: Solves, plain: tuple[Results, Layout]
) -> None:
    """Compares graph and plain PhiFlow: on the arguments given, then values and vector–Jacobian products on perturbed ones.

    Args:
        graph: `CapturedGraph` of the step.
        step: the step behind it.
        tensors: state and inputs that it was traced with.
        solves: its linear systems.
        plain: tensors and layout of what the step returned for the arguments given, outside of the graph.

    Raises:
        CaptureError: where they differ by more than rounding, with the size of the difference.
    """
    if plain[1] != graph.output_layout:
        _refuse(f"they return {graph.output_layout.difference(plain[1])}")
    if not any(
        map(is_random, graph.module.graph.nodes)
    ):  # which are drawn in the order of dims, here that of the layout
        _compare(graph, lambda f: seeded(f, tensors), plain[0])
    for seed in SEEDS:
        generator = torch.Generator(tensors[0].device if tensors else "cpu").manual_seed(seed)
        perturbed = [_perturb(t, generator) for t in tensors]

        def results(f: Callable, perturbed: list[torch.Tensor] = perturbed, seed: int = seed) -> Results:
            return _with_gradients(f, perturbed, seed)

        with _compat.plain_products(), _compat.faces_laid_out_once():  # as in the graph
            eager = results(lambda *inputs: run_eager(step, graph.layout, inputs, solves)[0])
        _compare(graph, results, eager)


def seeded(f: Callable, arguments: Sequence[Any], seed: int = SEEDS[0]) -> Any:
    """`f(*arguments)` without gradients and with random numbers that repeat."""
    with torch.random.fork_rng(enabled=True), torch.no_grad():
        torch.manual_seed(seed)
        return f(*arguments)


def _with_gradients(f: Callable, inputs: Sequence[torch.Tensor], seed: int) -> Results:
    differentiable = [t for t in inputs if t.is_floating_point() or t.is_complex()]
    with computing_like(inputs), torch.random.fork_rng(enabled=True), torch.enable_grad():  # the way back computes, too
        torch.manual_seed(seed)
        outputs = f(*(t.requires_grad_(any(t is d for d in differentiable)) for t in inputs))
        varying = [o for o in outputs if o.requires_grad]
        if not varying or not differentiable:
            return [*outputs, *(None for _ in differentiable)]
        try:
            return [*outputs, *torch.autograd.grad(_half_square(varying), differentiable, allow_unused=True)]
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            return [*outputs, *(None for _ in differentiable)]  # torch has no derivative, in graphs as in eager code


def _half_square(results: Sequence[torch.Tensor]) -> torch.Tensor:
    """A number whose gradient by each result is this result, to the last bit.

    `torch.autograd.grad` would take the results as cotangents, but loads a library for symbolic mathematics to do so.
    """
    return sum((r * r.detach().conj()).real.sum() for r in results)


def _perturb(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.detach().clone()
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=tensor.device)
    scale = tensor.detach().abs().mean() if tensor.any() else 1.0
    return tensor.detach() * (1 + 0.01 * noise) + 0.01 * scale * noise


def _compare(graph: Any, results: Callable[[Callable], Results], eager: Results) -> None:
    """Raises unless `results(graph)` agrees with plain PhiFlow; its rounding is estimated only where a bit differs."""
    allowed: list[float] | None = None
    values = len(graph.output_layout.leaves)
    for number, (a, b) in enumerate(zip(results(graph.module), eager, strict=True)):
        if _identical(a, b):
            continue
        allowed = _rounding(graph.module, results) if allowed is None else allowed
        if not _within(a, b, allowed[number]):
            kind = f"value {number}" if number < values else f"gradient {number - values}"
            size = "one is missing" if a is None or b is None else f"difference {_distance(a, b):.2e}"
            _refuse(f"{kind}, {size}, rounding {allowed[number]:.1e}")


def _refuse(difference: str) -> None:
    raise CaptureError(
        f"the captured graph and plain PhiFlow differ ({difference}). Something in the step changes from call to call or "
        "depends on values: a counter, a random generator or a seed of its own, a cache; or the step hides operations from "
        "autograd with torch.no_grad. Way out: pass it as an argument, use math.stop_gradient instead of no_grad, or use the "
        "step uncaptured"
    )


def _identical(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return (a is None or not a.any()) and (b is None or not b.any())
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _within(a: torch.Tensor | None, b: torch.Tensor | None, allowed: float) -> bool:
    if a is None or b is None:  # where an operation was left out that gives nothing but rounding
        return bool(((b if a is None else a).abs() <= allowed).all())
    if a.shape != b.shape or a.dtype != b.dtype or not (a.is_floating_point() or a.is_complex()):
        return False
    same = (a == b) | (a.isnan() & b.isnan()) | ((a - b).abs() <= allowed)
    return bool(same.all())


# --- rounding errors, by random rounding of every operation (Monte Carlo arithmetic, Parker 1997) ---

SAMPLES = 3
MARGIN = 16
"""Times the largest change that random rounding made. Additions in another order differ by a few of its units."""


def _rounding(module: torch.fx.GraphModule, results: Callable[[Callable], Results]) -> list[float]:
    """For every result the size of its rounding error, found by rounding each intermediate value, and its gradient, anew."""
    exact, largest = results(module), []
    samples = [results(_RandomRounding(module, seed).run) for seed in range(SAMPLES)]
    for number, value in enumerate(exact):
        changes = [_distance(s[number], value) for s in samples]
        scale = 0.0 if value is None else _size(value)
        largest.append(MARGIN * max(changes) + MARGIN * _unit(value) * scale)
    return largest


class _RandomRounding(torch.fx.Interpreter):
    """Runs a graph with a relative error of one unit in the last place after every operation, there and back."""

    def __init__(self, module: torch.fx.GraphModule, seed: int) -> None:
        super().__init__(module)
        self.written = in_place_targets(module.graph)  # of which a rounded copy would not be written to
        self.seed = seed

    def run(self, *inputs: torch.Tensor) -> Any:
        self.generator = torch.Generator(inputs[0].device if inputs else "cpu").manual_seed(self.seed)
        return super().run(*inputs)

    def run_node(self, node: torch.fx.Node) -> Any:
        result = super().run_node(node)
        if node.op == "output" or node in self.written or not isinstance(result, torch.Tensor):
            return result
        return self._round(result) if result.is_floating_point() or result.is_complex() else result

    def _round(self, value: torch.Tensor) -> torch.Tensor:
        rounded = value * self._factor(value)
        if rounded.requires_grad:
            rounded.register_hook(lambda gradient: gradient * self._factor(gradient))
        return rounded

    def _factor(self, like: torch.Tensor) -> torch.Tensor:
        real = like.real if like.is_complex() else like
        noise = torch.rand(real.shape, generator=self.generator, dtype=real.dtype, device=real.device)
        return 1 + (2 * noise - 1) * torch.finfo(real.dtype).eps


def _distance(a: torch.Tensor | None, b: torch.Tensor | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else _size(b if a is None else a)
    return _size(a - b) if a.is_floating_point() or a.is_complex() else 0.0


def _size(value: torch.Tensor) -> float:
    return float(value.detach().abs().double().nan_to_num(0.0, 0.0, 0.0).max()) if value.numel() else 0.0


def _unit(value: torch.Tensor | None) -> float:
    floating = value is not None and (value.is_floating_point() or value.is_complex())
    return torch.finfo(value.dtype).eps if floating else 0.0
