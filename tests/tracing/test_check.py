"""The comparison of a new graph with plain PhiFlow: rounding is allowed, anything else is not."""

from __future__ import annotations

import pytest
import torch
from cases.states import random_field
from phi.torch.flow import (
    PERIODIC,
    CenteredGrid,
    Field,
    Noise,
    StaggeredGrid,
    Tensor,
    advect,
    batch,
    channel,
    diffuse,
    fluid,
    math,
    spatial,
    vec,
)

from phi_hybrid import capture
from phi_hybrid.bridge import flatten
from phi_hybrid.errors import CaptureError
from phi_hybrid.tracing.check import _half_square, _rounding

CHANNEL = {"x": 0, "y": PERIODIC}


@pytest.mark.parametrize("grid", [CenteredGrid, StaggeredGrid])
def test_walls_beside_periodic_sides_in_a_batch(grid: type) -> None:
    """Gradients of the padding are added up in another order, by one unit of rounding."""
    u = grid(Noise(batch(b=2)), CHANNEL, x=16, y=16)
    capture(lambda u: diffuse.explicit(u, 0.1, 0.1), u)


def test_projection_in_a_batched_channel() -> None:
    u = StaggeredGrid(Noise(batch(b=2)), CHANNEL, x=8, y=8)
    capture(lambda u: fluid.make_incompressible(advect.mac_cormack(u, u, 0.1))[0], u)


def test_gradients_that_cancel() -> None:
    """Incremental pressure correction: the projection removes all of ∇p, so ∂/∂p is nothing but rounding."""

    def step(v: Field, p: Field) -> tuple[Field, Field]:
        v = advect.semi_lagrangian(v, v, 0.05) - 0.05 * p.gradient(at=v.sampled_at)
        v, increment = fluid.make_incompressible(v)
        return v, p + increment / 0.05

    v = StaggeredGrid(lambda x, y: vec(x=math.sin(x) * math.cos(y), y=-math.cos(x) * math.sin(y)), PERIODIC, x=8, y=8)
    block = capture(step, v, CenteredGrid(lambda x, y: math.sin(x), PERIODIC, x=8, y=8))
    tensors = [t.clone().requires_grad_() for t in block.flatten(v, CenteredGrid(Noise(), PERIODIC, x=8, y=8))]
    by_pressure = torch.autograd.grad(block.native(*tensors)[:2], tensors[-1], [tensors[0].detach()] * 2)[0]
    assert by_pressure.abs().max() < 1e-5 * tensors[0].abs().max()


def test_a_small_change_from_call_to_call_is_no_rounding() -> None:
    values = iter(range(100))

    def step(u: Field) -> Field:
        return u * (1 + 1e-5 * next(values))

    with pytest.raises(CaptureError, match="differ .*rounding"):
        capture(step, random_field("scalar", "periodic", 2))


def test_a_layout_that_loses_something_is_found_by_the_plain_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graph and eager code that look through the same layout agree with each other, but not with the user's arguments."""
    u = math.random_normal(spatial(x=5))
    kind = type(flatten(u)[1])
    original = kind.unflatten
    monkeypatch.setattr(kind, "unflatten", lambda *args: original(*args) * 2)
    with pytest.raises(CaptureError, match="value 0"):
        capture(lambda u: u * u, u)


def test_arrays_of_two_kinds_that_are_equal_to_rounding_only_where_they_may() -> None:
    whole = math.wrap(torch.arange(4), channel("c"))
    values = iter(range(100))
    with pytest.raises(CaptureError, match="value 0"):
        capture(lambda whole: whole + next(values), whole)


def test_rounding_is_that_of_what_was_added_up() -> None:
    def step(u: Tensor) -> Tensor:
        return (u + 1e4) - 1e4

    u = math.random_normal(spatial(x=64))
    block = capture(step, u, check=False)
    module = block.known[0].module
    (rounding,) = _rounding(module, lambda f: list(f(*block.flatten(u))))
    unit = 1e4 * torch.finfo(torch.float32).eps
    assert unit < rounding < 100 * unit


def test_operations_without_a_derivative_are_captured() -> None:
    u = math.random_normal(spatial(x=5))
    block = capture(lambda u: u // 0.3, u)
    assert torch.equal(block(u).native("x"), (u // 0.3).native("x"))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.complex64])
def test_gradients_of_the_check_are_those_of_the_results_as_cotangents(kind: torch.dtype) -> None:
    leaf = torch.randn(7, dtype=kind, requires_grad=True)
    results = [torch.sin(leaf) / 3, leaf.abs() * 1e-20, leaf[:2] * 1e20]
    cotangents = [r.detach().clone() for r in results]
    (expected,) = torch.autograd.grad(results, leaf, cotangents, retain_graph=True)
    (found,) = torch.autograd.grad(_half_square(results), leaf)
    assert torch.equal(found, expected)
