"""Functions with a gradient of their own keep it in a graph: values, gradients, second derivatives, inside other gradients."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from phi.torch.flow import Tensor, math, spatial

from phi_hybrid import capture
from phi_hybrid.errors import CaptureError

VALUES = torch.tensor([0.5, -1.2, 2.0], dtype=torch.float64)
X = math.wrap(VALUES, spatial("x"))


class Cube(torch.autograd.Function):
    """x³ with five times its gradient, by saved tensors and an attribute."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.factor, ctx.square = factor, x * x
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * 5 * ctx.factor * x * x + 0 * ctx.square, None


class Split(torch.autograd.Function):
    """(2x, [3x]) in the newer style, with a result that is no number of the reals."""

    @staticmethod
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 * x, (3 * x).int()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return 11 * first.reshape(ctx.shape)


def cube(x: Tensor) -> Tensor:
    return math.wrap(Cube.apply(x.native("x"), 3.0), spatial("x"))


exponential = math.custom_gradient(lambda x: math.exp(x), lambda inputs, y, dy: {"x": dy * inputs["x"] * y})
"""eˣ with the gradient x·eˣ."""


def only(block: Any, x: Tensor) -> torch.Tensor:
    (value,) = block.native(*block.flatten(x))
    return value


def derivatives(block: Any, x: Tensor, order: int = 1) -> torch.Tensor:
    (value,) = block.flatten(x)
    value.requires_grad_()
    result = block.native(value)[0]
    for _ in range(order):
        (result,) = torch.autograd.grad(result.sum(), value, create_graph=True)
    return result.detach()


def test_a_torch_function_keeps_its_gradient() -> None:
    block, x = capture(cube, X), VALUES
    torch.testing.assert_close(only(block, X), x**3, rtol=0, atol=0)
    torch.testing.assert_close(derivatives(block, X), 15 * x * x)


def test_second_derivatives_go_through_what_was_saved() -> None:
    x = VALUES
    torch.testing.assert_close(derivatives(capture(cube, X), X, 2), 30 * x)
    torch.testing.assert_close(derivatives(capture(exponential, X), X, 2), x.exp() * (1 + x * x))


def test_newer_style_and_results_without_gradient() -> None:
    def step(x: Tensor) -> Tensor:
        double, whole = Split.apply(x.native("x"))
        return math.wrap(double + whole, spatial("x"))

    block = capture(step, X)
    x = VALUES
    torch.testing.assert_close(only(block, X), 2 * x + (3 * x).int(), rtol=0, atol=0)
    torch.testing.assert_close(derivatives(block, X), torch.full_like(x, 11))


def test_it_holds_inside_a_gradient_that_the_step_takes() -> None:
    slope = math.gradient(lambda x: math.sum(exponential(x), "x"), "x", get_output=False)
    block = capture(lambda x: x - 0.1 * slope(x), X)
    x = VALUES
    torch.testing.assert_close(only(block, X), x - 0.1 * x * x.exp())
    torch.testing.assert_close(derivatives(block, X), torch.ones_like(x))  # PhiML's gradients carry none themselves


def test_under_transformations_copies_and_pickles() -> None:
    block = capture(exponential, X)
    x = VALUES
    expected = torch.diag(x * x.exp())
    for b in (block, copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        torch.testing.assert_close(torch.func.jacrev(lambda t, b=b: b.native(t)[0])(x), expected)
    lanes = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.vmap(lambda t: block.native(t)[0])(lanes), lanes.exp())


def test_a_way_back_that_reaches_into_the_step_is_refused() -> None:
    def step(x: Tensor) -> Tensor:
        other = 2 * x
        f = math.custom_gradient(lambda x: x, lambda inputs, y, dy: {"x": dy * other})
        return f(x)

    with pytest.raises(CaptureError, match="custom gradient.*not given"):
        capture(step, X)
