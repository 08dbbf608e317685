"""A captured step gives the values and gradients of plain PhiFlow to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from cases.states import BOUNDARIES, DTYPE, field_of, leaves_of, names, random_field, random_leaves
from cases.steps import DIFFUSION, SCHEMES, eager, known_to_fail, roll, vector_jacobian_product
from phi.torch.flow import (
    PERIODIC,
    ZERO_GRADIENT,
    CenteredGrid,
    Field,
    Tensor,
    advect,
    batch,
    channel,
    diffuse,
    field,
    math,
    spatial,
    vec,
)

from phi_hybrid import capture
from phi_hybrid.bridge import flatten
from phi_hybrid.errors import StateError

COSTLY = {  # one boundary each stands for all
    ("semi_lagrangian_rk4", "vector", 1): ("periodic", "inflow"),
    ("semi_lagrangian_rk4", "vector", 2): ("closed", "inflow"),
    ("semi_lagrangian_rk4", "staggered", 2): ("inflow",),
    ("semi_lagrangian_finite_rk4", "vector", 1): ("open",),
    ("semi_lagrangian_finite_rk4", "vector", 2): ("periodic",),
    ("mac_cormack", "staggered", 1): ("closed",),
    ("mac_cormack_rk4", "vector", 1): ("closed",),
    ("mac_cormack_rk4", "vector", 2): ("open",),
    ("mac_cormack_rk4", "staggered", 2): ("inflow",),
    ("semi_lagrangian_finite_rk4", "staggered", 2): ("closed",),
    ("differential_order4", "vector", 2): ("periodic", "closed", "inflow"),
    ("differential_order4", "staggered", 2): ("open", "inflow"),
    ("explicit_order4", "vector", 2): ("open", "inflow"),
    ("explicit_order4", "staggered", 2): ("periodic", "inflow"),
    ("mac_cormack_rk4", "staggered", 1): (),
    ("semi_lagrangian_rk4", "staggered", 1): (),
    ("semi_lagrangian_finite_rk4", "staggered", 1): (),
}
FLAT = [
    c
    for c in product(SCHEMES, ("vector", "staggered"), BOUNDARIES, (1, 2), (32,))
    if c[2] in COSTLY.get((c[0], c[1], c[3]), BOUNDARIES)
]
DOUBLE = [
    ("semi_lagrangian", "staggered", "inflow", 2, 64),
    ("semi_lagrangian_rk4", "vector", "closed", 1, 64),
    ("mac_cormack", "staggered", "closed", 2, 64),
    ("mac_cormack", "vector", "open", 2, 64),
    ("differential", "staggered", "open", 2, 64),
    ("differential_order4", "staggered", "periodic", 2, 64),
    ("explicit", "staggered", "inflow", 2, 64),
    ("explicit_order4", "vector", "open", 1, 64),
    ("fourier", "vector", "periodic", 2, 64),
]
CUBES = [
    ("semi_lagrangian", "vector", "closed", 3, 32),
    ("semi_lagrangian", "staggered", "inflow", 3, 32),
    ("semi_lagrangian_finite_rk4", "vector", "open", 3, 32),
    ("mac_cormack", "vector", "inflow", 3, 64),
    ("differential", "vector", "periodic", 3, 32),
    ("differential_order4", "vector", "periodic", 3, 32),
    ("explicit", "staggered", "closed", 3, 64),
    ("explicit_order4", "vector", "periodic", 3, 32),
    ("finite_difference", "vector", "inflow", 3, 32),
    ("fourier", "staggered", "periodic", 3, 32),
    ("explicit", "staggered", "inflow", 3, 32),
]
CASES = [*FLAT, *DOUBLE, *CUBES]
RUNNING = [c for c in CASES if not known_to_fail(*c[:4])]
FAILING = [c for c in CASES if known_to_fail(*c[:4])]


def _id(case: tuple) -> str:
    return "-".join(map(str, case))


def test_the_cases_that_plain_phiflow_cannot_do_are_few() -> None:
    assert len(CASES) == 149
    assert len(FAILING) == 28


@pytest.mark.parametrize("case", RUNNING, ids=_id)
def test_value_and_gradient_are_those_of_phiflow(case: tuple[str, str, str, int, int]) -> None:
    scheme, placement, kind, dims, bits = case
    step = SCHEMES[scheme]
    leaves = [t.requires_grad_() for t in random_leaves(placement, kind, dims, (2,), DTYPE[bits])]
    expected, state = eager(step, leaves, placement, kind, dims, steps=2)
    gradients = vector_jacobian_product(expected, leaves)

    u = field_of(leaves, placement, kind, dims, ("b",))
    block = capture(step, field_of([t.detach() + 1 for t in leaves], placement, kind, dims, ("b",)), check=False)
    after = block(block(u))
    assert after.boundary == state.boundary
    found = leaves_of(after, placement, dims, ("b",))
    assert all(torch.equal(a, b) and a.dtype == DTYPE[bits] for a, b in zip(found, expected))
    assert all(torch.equal(a, b) for a, b in zip(vector_jacobian_product(found, leaves), gradients))

    one_dimension_too_many = placement == "staggered" and dims == 1 and scheme not in DIFFUSION  # upstream defect
    if state.boundary == u.boundary and not one_dimension_too_many:
        found = roll(block.native, leaves, 2)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
        assert all(torch.equal(a, b) for a, b in zip(vector_jacobian_product(found, leaves), gradients))
    assert all(bool(g.any()) for g in gradients)


@pytest.mark.parametrize("case", FAILING, ids=_id)
def test_where_phiflow_fails_capture_says_so(case: tuple[str, str, str, int, int]) -> None:
    """Fails for a case that PhiFlow has learned to do: take it out of `known_to_fail`."""
    scheme, placement, kind, dims, bits = case
    leaves = random_leaves(placement, kind, dims, (2,), DTYPE[bits])
    with pytest.raises(Exception) as upstream:
        eager(SCHEMES[scheme], leaves, placement, kind, dims, steps=1)
    with pytest.raises(StateError, match="fails in plain PhiFlow") as error:
        capture(SCHEMES[scheme], field_of(leaves, placement, kind, dims, ("b",)))
    assert type(upstream.value).__name__ in str(error.value)


@pytest.mark.parametrize("kind", ["periodic", "closed", "open"])
def test_1d_staggered_steps_can_be_repeated(kind: str) -> None:
    """Upstream, advected values have a dimension `vector` too many; see `_compat`."""
    u = random_field("staggered", kind, 1)

    def step(u: Field) -> Field:
        return diffuse.explicit(advect.mac_cormack(u, u, 0.1), 0.01, 0.1)

    expected = leaves_of(step(step(u)), "staggered", 1, ())
    block = capture(step, u)
    assert all(torch.equal(a, b) for a, b in zip(leaves_of(block(block(u)), "staggered", 1, ()), expected))


@pytest.mark.parametrize("batches", [{}, {"time": 2}, {"time": 2, "b": 3}], ids=str)
@pytest.mark.parametrize("placement", ["vector", "staggered"])
def test_any_batch_dims(placement: str, batches: dict[str, int]) -> None:
    leaves = random_leaves(placement, "inflow", 2, tuple(batches.values()))
    u = field_of(leaves, placement, "inflow", 2, tuple(batches))

    def step(u: Field) -> Field:
        return diffuse.explicit(advect.semi_lagrangian(u, u, 0.1), 0.01, 0.1)

    expected = leaves_of(step(u), placement, 2, tuple(batches))
    found = leaves_of(capture(step)(u), placement, 2, tuple(batches))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_batch_dims_on_some_arguments_only() -> None:
    u = random_field("staggered", "closed", 2)
    nu = math.wrap(torch.tensor([0.01, 0.02, 0.03]), batch("run"))

    def step(u: Field, nu: Tensor) -> Field:
        return diffuse.explicit(u, nu, 0.1)

    expected = leaves_of(step(u, nu), "staggered", 2, ("run",))
    found = leaves_of(capture(step)(u, nu), "staggered", 2, ("run",))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert not torch.equal(found[0][0], found[0][1])


def test_states_of_several_fields_and_tensors() -> None:
    """Buoyancy: smoke and velocity on different sample points, a dict as state, a tuple as input."""
    state = {"smoke": random_field("scalar", "open", 2, b=2), "v": random_field("staggered", "closed", 2, seed=1, b=2)}
    buoyancy, decay = math.wrap(torch.tensor([0.0, 0.3]), channel(vector="x,y")), math.wrap(torch.tensor(0.9))

    def step(state: dict, parameters: tuple) -> dict:
        smoke = advect.mac_cormack(state["smoke"], state["v"], 0.1) * parameters[1]
        v = advect.semi_lagrangian(state["v"], state["v"], 0.1) + (smoke * parameters[0]).at(state["v"])
        return {"smoke": smoke, "v": v, "mean": field.mean(smoke), "steps": 3}

    expected = step(state, (buoyancy, decay))
    found = capture(step)(state, (buoyancy, decay))
    assert list(found) == list(expected) and found["steps"] == 3
    assert torch.equal(found["mean"].native("b"), expected["mean"].native("b"))
    for key, placement in (("smoke", "scalar"), ("v", "staggered")):
        pairs = zip(leaves_of(found[key], placement, 2, ("b",)), leaves_of(expected[key], placement, 2, ("b",)))
        assert all(torch.equal(a, b) for a, b in pairs)


def test_steps_on_tensors_without_fields() -> None:
    def step(x: Tensor, shift: int) -> Tensor:
        return math.laplace(x, padding=PERIODIC, dims="x") * 0.1 + x[{"x": 0}] * shift

    x = math.wrap(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), batch("b"), spatial("x"))
    for shift in (2, 3):
        assert torch.equal(capture(step)(x, shift).native("b,x"), step(x, shift).native("b,x"))


def test_closed_over_fields_are_constants() -> None:
    force = random_field("staggered", "periodic", 2, seed=3)
    mask = math.wrap(torch.arange(6) % 2 == 0, spatial("x"))

    def step(u: Field) -> Field:
        kept = math.where(mask, u.values, 0.5 * u.values)
        return u.with_values(kept) + 0.1 * force

    u = random_field("staggered", "periodic", 2, b=2)
    block = capture(step, u)
    other = random_field("staggered", "periodic", 2, seed=5, b=2)
    pairs = zip(leaves_of(block(other), "staggered", 2, ("b",)), leaves_of(step(other), "staggered", 2, ("b",)))
    assert all(torch.equal(a, b) for a, b in pairs)


def test_sampled_and_resampled_fields() -> None:
    """Functions of space, centre values of faces, divergences and curls are captured like the rest."""

    def step(u: Field) -> Field:
        source = CenteredGrid(
            lambda x: math.sin(x.vector["x"]) * vec(x=1.0, y=0.5), u.boundary, u.bounds, resolution=u.resolution
        )
        centred = u.at_centers() + 0.1 * source
        damped = centred * math.exp(-0.1 * field.divergence(u).values)
        return damped.at(u)

    u = random_field("staggered", "open", 2, b=2)
    pairs = zip(leaves_of(capture(step)(u), "staggered", 2, ("b",)), leaves_of(step(u), "staggered", 2, ("b",)))
    assert all(torch.equal(a, b) for a, b in pairs)


def test_in_place_work_on_own_tensors_is_allowed() -> None:
    def step(x: Tensor) -> Tensor:
        native = x.native("b,x").clone()
        native[:, 0] = 0.0
        native.mul_(2.0)
        filled = torch.zeros(3)
        filled[1] = 5.0  # a constant that is written to
        return math.wrap(native, batch("b"), spatial("x")) + math.wrap(filled, batch("b"))

    x = math.wrap(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), batch("b"), spatial("x"))
    block = capture(step, x)
    for factor in (1.0, -3.0):
        assert torch.equal(block(factor * x).native("b,x"), step(factor * x).native("b,x"))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_states(dtype: torch.dtype) -> None:
    native = torch.randn(2, 8, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)).to(dtype)

    def step(psi: Tensor) -> Tensor:
        return math.ifft(math.fft(psi, "x") * 0.5, "x") * 1j

    leaf = native.clone().requires_grad_()
    with math.precision(torch.finfo(dtype).bits):
        expected = step(math.wrap(leaf, batch("b"), spatial("x"))).native("b,x")
    (found,) = roll(capture(step, math.wrap(native, batch("b"), spatial("x"))).native, (leaf,), 1)
    assert found.dtype == dtype and torch.equal(found, expected)
    weights = torch.randn(2, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))
    a, b = (torch.autograd.grad(y, leaf, weights)[0] for y in (found, expected))
    assert torch.equal(a, b)


def test_integer_states_count() -> None:
    def step(state: tuple) -> tuple:
        u, count = state
        return u * 0.9 + 0.0 * count, count + 1

    u, count = random_field("scalar", "open", 1), math.wrap(torch.tensor(3))
    block = capture(step, (u, count))
    _, count = block(block((u, count)))
    assert count.native().item() == 5 and count.dtype.kind is int


def test_numpy_backed_states_are_computed_in_torch() -> None:
    with math.NUMPY:
        u = CenteredGrid(math.wrap(torch.randn(6, 5).numpy(), spatial("x,y")), ZERO_GRADIENT)
    assert u.values.default_backend.name == "numpy"
    native = torch.as_tensor(u.values.native("x,y"))
    reference = u.with_values(math.wrap(native, spatial("x,y")))

    def step(u: Field) -> Field:
        return diffuse.explicit(u, 0.05, 0.5)

    assert torch.equal(capture(step)(u).values.native("x,y"), step(reference).values.native("x,y"))


def test_float64_states_need_no_precision_context() -> None:
    leaves = random_leaves("staggered", "closed", 2, (2,), torch.float64)
    u = field_of(leaves, "staggered", "closed", 2, ("b",))

    def step(u: Field) -> Field:
        return diffuse.explicit(u, 0.02, 0.1)

    with math.precision(64):
        expected = leaves_of(step(u), "staggered", 2, ("b",))
    found, _ = flatten(capture(step)(u))
    assert all(a.dtype == torch.float64 and torch.equal(a, b) for a, b in zip(found, expected))


def test_stop_gradient_is_respected() -> None:
    def step(u: Field) -> Field:
        return u * 2.0 + 3.0 * u.with_values(math.stop_gradient(u.values))

    (leaf,) = [t.requires_grad_() for t in random_leaves("scalar", "open", 2, (2,))]
    (found,) = capture(step, field_of([leaf], "scalar", "open", 2, ("b",))).native(leaf)
    assert torch.equal(found, leaf * 2.0 + 3.0 * leaf)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert torch.equal(gradient, torch.full_like(leaf, 2.0))


def test_detached_native_values_are_respected() -> None:
    def step(x: Tensor) -> Tensor:
        native = x.native("x")
        return math.wrap(native * native.detach(), spatial("x"))

    leaf = torch.randn(5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (found,) = capture(step, math.wrap(leaf.detach(), spatial("x"))).native(leaf)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert torch.equal(gradient, leaf.detach())


def test_results_that_do_not_depend_on_the_state() -> None:
    def step(u: Field) -> tuple:
        return u * 0.5, u.with_values(math.ones(u.values.shape)), u

    u = random_field("scalar", "open", 1, b=2)
    first, second, third = capture(step)(u)
    assert torch.equal(second.values.native("b,x"), torch.ones(2, 7))
    assert torch.equal(third.values.native("b,x"), u.values.native("b,x"))
    assert torch.equal(first.values.native("b,x"), 0.5 * u.values.native("b,x"))


def test_eager_phiflow_afterwards_is_as_before() -> None:
    u = random_field("staggered", "inflow", 2)
    step: Callable[[Field], Field] = SCHEMES["mac_cormack"]
    before = leaves_of(step(u), "staggered", 2)
    capture(step, u)
    assert all(torch.equal(a, b) for a, b in zip(leaves_of(step(u), "staggered", 2), before))
    assert math.get_precision() == 32 and names(2) == "xy"
