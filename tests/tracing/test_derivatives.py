"""Derivatives of captured steps in every mode, against finite differences in float64 and against each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases.states import field_of, noise, random_leaves
from cases.steps import SCHEMES, viscous
from phi.torch.flow import Field, advect, diffuse, math

from phi_hybrid import PhysicsBlock, capture
from phi_hybrid.tracing.operators import SampledTwice, gather_linear

Native = Callable[[torch.Tensor], torch.Tensor]


def smooth_step(u: Field) -> Field:
    return diffuse.explicit(u, 0.02, 0.1) - 0.05 * u * u


def transport_step(u: Field) -> Field:
    return diffuse.explicit(advect.mac_cormack(u, u, 0.1), 0.02, 0.1)


STEPS: dict[str, Callable[[Field], Field]] = {
    "smooth": smooth_step,
    "semi_lagrangian": SCHEMES["semi_lagrangian"],
    "transport": transport_step,
    "explicit_order4": SCHEMES["explicit_order4"],
    "rk4": SCHEMES["semi_lagrangian_rk4"],
}


def flat_function(
    step: Callable,
    placement: str,
    kind: str,
    dims: int,
    batches: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
) -> tuple[Native, torch.Tensor, PhysicsBlock]:
    """The native face as a function of one vector, with a point at which to differentiate it."""
    names = ("b", "c")[: len(batches)]
    leaves = random_leaves(placement, kind, dims, batches, dtype)
    block = capture(step, field_of(leaves, placement, kind, dims, names), check=False)
    sizes = [t.numel() for t in leaves]

    def f(x: torch.Tensor) -> torch.Tensor:
        parts = [p.reshape(t.shape) for p, t in zip(x.split(sizes), leaves)]
        return torch.cat([y.reshape(-1) for y in block.native(*parts)])

    return f, torch.cat([t.reshape(-1) for t in leaves]), block


def difference(f: Native, x: torch.Tensor, v: torch.Tensor, h: float = 1e-6) -> torch.Tensor:
    """Central difference of `f` along `v`."""
    return (f(x + h * v) - f(x - h * v)) / (2 * h)


JACOBIANS = [
    ("smooth", "staggered", "inflow", 2),
    ("semi_lagrangian", "vector", "periodic", 2),
    ("transport", "staggered", "closed", 2),
    ("transport", "vector", "inflow", 1),
    ("explicit_order4", "vector", "open", 1),
    ("rk4", "vector", "closed", 1),
]


@pytest.mark.parametrize("case", JACOBIANS, ids=str)
def test_jacobians_agree_with_finite_differences(case: tuple[str, str, str, int]) -> None:
    scheme, placement, kind, dims = case
    f, x, _ = flat_function(STEPS[scheme], placement, kind, dims)
    expected = torch.stack([difference(f, x, e) for e in torch.eye(len(x), dtype=x.dtype)], 1)  # (output, input)
    reverse, forward = torch.func.jacrev(f)(x), torch.func.jacfwd(f)(x)
    assert bool((expected.abs() > 1e-3).any(0).all())  # every input matters
    torch.testing.assert_close(reverse, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(forward, reverse, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "dims"), [("periodic", 3), ("closed", 1), ("open", 2), ("inflow", 2), ("inflow", 1)])
def test_forward_mode_equals_reverse_mode_in_float32(kind: str, dims: int) -> None:
    """v·(J w) = w·(Jᵀ v), and the primal value of forward mode is that of the graph."""
    f, x, _ = flat_function(STEPS["semi_lagrangian"], "vector", kind, dims, (2,), torch.float32)
    tangent, cotangent = noise(*x.shape, seed=1), noise(*x.shape, seed=2)
    value, pushed = torch.func.jvp(f, (x,), (tangent,))
    torch.testing.assert_close(value, f(x), rtol=0, atol=2e-6)
    assert pushed.abs().max() > 0.1
    (pulled,) = torch.func.vjp(f, x)[1](cotangent)
    torch.testing.assert_close(cotangent @ pushed, pulled @ tangent, rtol=1e-5, atol=1e-5)


def test_forward_mode_in_3d_float64() -> None:
    f, x, _ = flat_function(STEPS["transport"], "vector", "closed", 3)
    v, w = (noise(*x.shape, seed=n, dtype=x.dtype) for n in (1, 2))
    value, pushed = torch.func.jvp(f, (x,), (v,))
    torch.testing.assert_close(value, f(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(pushed, difference(f, x, v), rtol=0, atol=1e-7)
    (pulled,) = torch.func.vjp(f, x)[1](w)
    assert (w @ pushed).item() == pytest.approx((pulled @ v).item(), abs=1e-10)
    assert pushed.abs().max() > 0.1


def test_dual_numbers_without_torch_func() -> None:
    f, x, _ = flat_function(STEPS["semi_lagrangian"], "vector", "periodic", 1)
    v = torch.ones_like(x)
    with torch.autograd.forward_ad.dual_level():
        pushed = torch.autograd.forward_ad.unpack_dual(f(torch.autograd.forward_ad.make_dual(x, v))).tangent
    torch.testing.assert_close(pushed, torch.func.jacrev(f)(x) @ v, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("scheme", "dims"), [("smooth", 2), ("semi_lagrangian", 1), ("explicit_order4", 1)])
def test_second_derivatives(scheme: str, dims: int) -> None:
    f, x, _ = flat_function(STEPS[scheme], "vector", "closed", dims)

    def energy(x: torch.Tensor) -> torch.Tensor:
        return (f(x) ** 3).sum() / 3

    hessian = torch.func.jacrev(torch.func.jacrev(energy))(x)
    torch.testing.assert_close(torch.func.hessian(energy)(x), hessian, rtol=0, atol=1e-10)  # forward over reverse
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-10)
    v, gradient = noise(*x.shape, seed=1, dtype=x.dtype), torch.func.grad(energy)
    by_differences = difference(gradient, x, v)
    assert by_differences.abs().max() > 0.1
    torch.testing.assert_close(hessian @ v, by_differences, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.func.jvp(gradient, (x,), (v,))[1], by_differences, rtol=0, atol=1e-6)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(energy(leaf), leaf, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(g @ v, leaf)[0], by_differences, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", [("transport", "staggered", 2), ("explicit_order4", "vector", 1)], ids=str)
def test_vmap_is_the_loop(case: tuple[str, str, int]) -> None:
    f, x, _ = flat_function(STEPS[case[0]], case[1], "closed", case[2])
    points = torch.stack([x, 0.5 * x, -x])
    mapped = torch.func.vmap(f)(points)
    torch.testing.assert_close(mapped, torch.stack([f(p) for p in points]), rtol=0, atol=1e-14)
    jacobians = torch.func.vmap(torch.func.jacrev(f))(points)
    torch.testing.assert_close(jacobians, torch.stack([torch.func.jacrev(f)(p) for p in points]), rtol=0, atol=1e-13)
    forward = torch.func.vmap(torch.func.jacfwd(f))(points[:2])
    torch.testing.assert_close(forward, jacobians[:2], rtol=0, atol=1e-12)


def test_vmap_over_one_of_two_inputs() -> None:
    leaves = random_leaves("staggered", "closed", 2)
    block = capture(viscous, field_of(leaves, "staggered", "closed", 2), math.wrap(torch.tensor(0.05)))
    viscosities = torch.tensor([0.01, 0.1, 0.2])
    mapped = torch.func.vmap(block.native, in_dims=(None, None, 0))(*leaves, viscosities)
    for i, nu in enumerate(viscosities):
        for a, b in zip(mapped, block.native(*leaves, nu)):
            torch.testing.assert_close(a[i], b, rtol=0, atol=1e-6)


def test_new_signature_inside_a_transformation() -> None:
    """A graph that is missing is captured from within vmap or jvp, with right derivatives."""
    leaves = random_leaves("vector", "open", 2, (2,), torch.float64)
    block = capture(STEPS["semi_lagrangian"], check=False)
    block.flatten(field_of(leaves, "vector", "open", 2, ("b",)))
    x = leaves[0]
    _, pushed = torch.func.jvp(lambda x: block.native(x)[0], (x,), (torch.ones_like(x),))
    expected = difference(lambda x: block.native(x)[0], x, torch.ones_like(x))
    torch.testing.assert_close(pushed, expected, rtol=0, atol=1e-7)
    assert len(block.known) == 1
    mapped = torch.func.vmap(lambda x: block.native(x)[0])(torch.stack([x[:1], x[1:]]))
    assert len(block.known) == 2
    torch.testing.assert_close(mapped[:, 0], block.native(x)[0], rtol=0, atol=1e-14)


def test_checked_capture_inside_a_transformation() -> None:
    leaves = random_leaves("staggered", "closed", 2, (2,))
    block = PhysicsBlock(smooth_step)
    block.flatten(field_of(leaves, "staggered", "closed", 2, ("b",)))
    value = torch.func.vmap(lambda *t: block.native(*t), in_dims=1)(*(t.unsqueeze(1) for t in leaves))
    for a, b in zip(value, block.native(*leaves)):
        torch.testing.assert_close(a[0], b, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_compiled_steps_are_equal_to_rounding() -> None:
    leaves = [t.requires_grad_() for t in random_leaves("vector", "closed", 2, (2,))]
    example = field_of([t.detach() for t in leaves], "vector", "closed", 2, ("b",))
    plain, own = capture(transport_step, example), capture(transport_step, example, compile=True)
    outside = torch.compile(plain.native, fullgraph=True)
    (expected,) = plain.native(*leaves)
    (gradient,) = torch.autograd.grad((expected**2).sum(), leaves)
    for f in (own.native, outside):
        (found,) = f(*leaves)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad((found**2).sum(), leaves)[0], gradient, rtol=0, atol=1e-4)
    _, pushed = torch.func.jvp(lambda x: own.native(x)[0], (leaves[0].detach(),), (torch.ones_like(leaves[0]),))
    _, straight = torch.func.jvp(lambda x: plain.native(x)[0], (leaves[0].detach(),), (torch.ones_like(leaves[0]),))
    assert pushed.abs().max() > 0.1
    torch.testing.assert_close(pushed, straight, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_compiled_fourth_order_stencils() -> None:
    (leaf,) = random_leaves("scalar", "open", 1, (2,))
    block = capture(SCHEMES["explicit_order4"], field_of([leaf], "scalar", "open", 1, ("b",)))
    (found,) = torch.compile(block.native, fullgraph=True)(leaf)
    torch.testing.assert_close(found, block.native(leaf)[0], rtol=0, atol=1e-5)


# --- sampling by gathers ---


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dims", [2, 3])
def test_gradient_of_sampling_by_gathers_is_that_of_torch(dims: int, padding: int) -> None:
    values = noise(2, 3, *(5, 4, 3)[:dims], dtype=torch.float64).requires_grad_()
    grid = (1.5 * noise(2, 7, *(1,) * (dims - 2), 6, dims, seed=1, dtype=torch.float64).tanh()).requires_grad_()
    weights = noise(2, 3, 7, *(1,) * (dims - 2), 6, seed=2, dtype=torch.float64)
    sampler = torch.ops.aten.grid_sampler_2d if dims == 2 else torch.ops.aten.grid_sampler_3d
    found = gather_linear(values, grid, 0, padding, True)
    expected = sampler(values, grid, 0, padding, True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad((r * weights).sum(), (values, grid)) for r in (found, expected))):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dims", [2, 3])
def test_gradient_of_the_gradient_of_sampling(dims: int, padding: int) -> None:
    """For torch below 2.12, on any: values and gradients are torch's own, second derivatives those of differences."""
    values = noise(2, 3, *(5, 4, 3)[:dims], dtype=torch.float64).requires_grad_()
    grid = (1.5 * noise(2, 7, *(1,) * (dims - 2), 6, dims, seed=1, dtype=torch.float64).tanh()).requires_grad_()
    weights = noise(2, 3, 7, *(1,) * (dims - 2), 6, seed=2, dtype=torch.float64).requires_grad_()
    sampler = torch.ops.aten.grid_sampler_2d if dims == 2 else torch.ops.aten.grid_sampler_3d

    def slopes(sample: Native, *at: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = sample(*at[:2], 0, padding, True)
        return result, *torch.autograd.grad((result * at[2]).sum(), at[:2], create_graph=True)

    at = (values, grid, weights)
    found, expected = slopes(SampledTwice.apply, *at), slopes(sampler, *at)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    ways = tuple(noise(*t.shape, seed=3 + n, dtype=torch.float64) for n, t in enumerate(at))
    second = torch.autograd.grad(sum((a * w).sum() for a, w in zip(found[1:], ways)), at)
    for n, (leaf, way) in enumerate(zip(at, ways)):
        ends = [slopes(sampler, *at[:n], leaf + e * way, *at[n + 1 :])[1:] for e in (1e-6, -1e-6)]
        expected = sum(((a - b) * w).sum() for a, b, w in zip(*ends, ways)) / 2e-6
        assert (second[n] * way).sum().item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
