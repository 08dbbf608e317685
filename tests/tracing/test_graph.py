"""A captured step gives the values and gradients of plain PhiFlow to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases.small import equal, same
from cases.states import BOUNDARIES, DTYPE, component_values, field_of, noise, random_field, random_leaves
from cases.steps import DIFFUSION, SCHEMES, burgers, eager, known_to_fail, vector_jacobian_product, viscous
from phi.torch.flow import (
    PERIODIC,
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
from phi_hybrid.errors import StateError

COVERING = {  # each scheme, placement, boundary, dimension and precision, most schemes on cells and on faces
    "semi_lagrangian": """vector periodic 1 32, vector inflow 2 32, vector closed 3 32, staggered closed 1 32,
        staggered open 2 32, staggered inflow 2 64, staggered inflow 3 32""",
    "semi_lagrangian_rk4": "vector closed 1 64, staggered inflow 2 32",
    "semi_lagrangian_finite_rk4": "vector open 1 32, staggered closed 2 32, vector open 3 32",
    "mac_cormack": """vector periodic 1 32, vector inflow 2 32, vector open 2 64, staggered closed 1 32,
        staggered closed 2 64, staggered inflow 2 32, vector inflow 3 64""",
    "mac_cormack_rk4": "vector closed 1 32",
    "differential": """vector inflow 1 32, vector closed 2 32, staggered periodic 1 32, staggered open 2 64,
        vector periodic 3 32""",
    "differential_order4": "vector open 1 32, vector closed 1 32, staggered periodic 2 64",
    "explicit": """vector open 1 32, vector inflow 2 32, staggered closed 1 32, staggered inflow 2 64,
        staggered closed 3 64""",
    "explicit_order4": "vector open 1 64, staggered periodic 2 32, vector periodic 3 32",
    "finite_difference": "vector closed 2 32, staggered open 1 32, staggered inflow 2 32, vector inflow 3 32",
    "fourier": "vector periodic 1 32, vector periodic 2 64, staggered periodic 3 32",
}
FAILING = {
    "fourier": "vector closed 1 32, staggered inflow 2 32",
    "explicit_order4": "staggered open 1 32, vector inflow 2 32",
    "differential_order4": "staggered closed 1 32, staggered inflow 2 32",
    "differential": "staggered closed 1 32",
    "explicit": "staggered inflow 3 32",
}


def cases(table: dict[str, str]) -> list[tuple[str, str, str, int, int]]:
    entries = [(scheme, *case.split()) for scheme, row in table.items() for case in row.split(",")]
    return [(scheme, placement, kind, int(dims), int(bits)) for scheme, placement, kind, dims, bits in entries]


def _id(case: tuple) -> str:
    return "-".join(map(str, case))


def test_the_selection_covers_all() -> None:
    running = cases(COVERING)
    for column, values in enumerate((SCHEMES, ("vector", "staggered"), BOUNDARIES, (1, 2, 3), (32, 64))):
        assert {case[column] for case in running} == set(values)
    assert not any(known_to_fail(*case[:4]) for case in running)
    assert all(known_to_fail(*case[:4]) for case in cases(FAILING))


@pytest.mark.parametrize("case", cases(COVERING), ids=_id)
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
    found = component_values(after, "b")
    assert equal(found, expected) and found[0].dtype == DTYPE[bits]
    assert equal(vector_jacobian_product(found, leaves), gradients)

    one_dimension_too_many = placement == "staggered" and dims == 1 and scheme not in DIFFUSION  # upstream defect
    if state.boundary == u.boundary and not one_dimension_too_many:
        found = block.native(*block.native(*leaves))
        assert equal(found, expected)
        assert equal(vector_jacobian_product(found, leaves), gradients)
    assert all(bool(g.any()) for g in gradients)


@pytest.mark.parametrize("case", cases(FAILING), ids=_id)
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

    block = capture(step, u, check=False)
    assert equal(component_values(block(block(u))), component_values(step(step(u))))


@pytest.mark.parametrize("batches", [{}, {"time": 2, "b": 3}], ids=str)
@pytest.mark.parametrize("placement", ["vector", "staggered"])
def test_any_batch_dims(placement: str, batches: dict[str, int]) -> None:
    u = random_field(placement, "inflow", 2, **batches)
    assert same(capture(burgers)(u), burgers(u))


def test_batch_dims_on_some_arguments_only() -> None:
    u = random_field("staggered", "closed", 2)
    nu = math.wrap(torch.tensor([0.01, 0.02, 0.03]), batch("run"))
    found = capture(viscous)(u, nu)
    assert same(found, viscous(u, nu)) and not same(found.run[0], found.run[1])


@pytest.mark.smoke
def test_states_of_several_fields_and_tensors() -> None:
    """Buoyancy: smoke and velocity on different sample points, a dict as state, a tuple as input."""
    state = {"smoke": random_field("scalar", "open", 2, b=2), "v": random_field("staggered", "closed", 2, seed=1, b=2)}
    buoyancy, decay = math.wrap(torch.tensor([0.0, 0.3]), channel(vector="x,y")), math.wrap(torch.tensor(0.9))

    def step(state: dict, parameters: tuple) -> dict:
        smoke = advect.mac_cormack(state["smoke"], state["v"], 0.1) * parameters[1]
        v = advect.semi_lagrangian(state["v"], state["v"], 0.1) + (smoke * parameters[0]).at(state["v"])
        return {"smoke": smoke, "v": v, "mean": field.mean(smoke), "steps": 3}

    found = capture(step)(state, (buoyancy, decay))
    assert same(found, step(state, (buoyancy, decay))) and list(found) == ["smoke", "v", "mean", "steps"]


def test_steps_on_tensors_without_fields() -> None:
    def step(x: Tensor, shift: int) -> Tensor:
        return math.laplace(x, padding=PERIODIC, dims="x") * 0.1 + x[{"x": 0}] * shift

    x = math.wrap(noise(2, 8), batch("b"), spatial("x"))
    for shift in (2, 3):
        assert same(capture(step)(x, shift), step(x, shift))


def test_closed_over_fields_are_constants() -> None:
    force = random_field("staggered", "periodic", 2, seed=3)
    mask = math.wrap(torch.arange(6) % 2 == 0, spatial("x"))

    def step(u: Field) -> Field:
        kept = math.where(mask, u.values, 0.5 * u.values)
        return u.with_values(kept) + 0.1 * force

    u = random_field("staggered", "periodic", 2, b=2)
    other = random_field("staggered", "periodic", 2, seed=5, b=2)
    assert same(capture(step, u)(other), step(other))


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
    assert same(capture(step)(u), step(u))


def test_in_place_work_on_own_tensors_is_allowed() -> None:
    def step(x: Tensor) -> Tensor:
        native = x.native("b,x").clone()
        native[:, 0] = 0.0
        native.mul_(2.0)
        filled = torch.zeros(3)
        filled[1] = 5.0  # a constant that is written to
        return math.wrap(native, batch("b"), spatial("x")) + math.wrap(filled, batch("b"))

    x = math.wrap(noise(3, 5), batch("b"), spatial("x"))
    block = capture(step, x)
    for factor in (1.0, -3.0):
        assert same(block(factor * x), step(factor * x))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_states(dtype: torch.dtype) -> None:
    native, weights = (torch.view_as_complex(noise(2, 8, 2, seed=n, dtype=torch.float64)).to(dtype) for n in (0, 1))

    def step(psi: Tensor) -> Tensor:
        return math.ifft(math.fft(psi, "x") * 0.5, "x") * 1j

    leaf = native.clone().requires_grad_()
    with math.precision(torch.finfo(dtype).bits):
        expected = step(math.wrap(leaf, batch("b"), spatial("x"))).native("b,x")
    (found,) = capture(step, math.wrap(native, batch("b"), spatial("x"))).native(leaf)
    assert found.dtype == dtype and torch.equal(found, expected)
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


def test_float64_states_need_no_precision_context() -> None:
    u = random_field("staggered", "closed", 2, dtype=torch.float64, b=2)
    with math.precision(64):
        expected = viscous(u, 0.02)
    assert same(capture(viscous)(u, 0.02), expected) and expected.values.dtype.precision == 64


def test_stop_gradient_is_respected() -> None:
    def step(u: Field) -> Field:
        return u * 2.0 + 3.0 * u.with_values(math.stop_gradient(u.values))

    (leaf,) = [t.requires_grad_() for t in random_leaves("scalar", "open", 2, (2,))]
    (found,) = capture(step, field_of([leaf], "scalar", "open", 2, ("b",))).native(leaf)
    assert torch.equal(found, leaf * 2.0 + 3.0 * leaf)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert torch.equal(gradient, torch.full_like(leaf, 2.0))


@pytest.mark.parametrize("detach", [torch.Tensor.detach, torch.detach, lambda t: t.data])
def test_detached_native_values_are_respected(detach: Callable) -> None:
    def step(x: Tensor) -> Tensor:
        native = x.native("x")
        return math.wrap(native * detach(native), spatial("x"))

    leaf = noise(5).requires_grad_()
    (found,) = capture(step, math.wrap(leaf.detach(), spatial("x"))).native(leaf)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert torch.equal(gradient, leaf.detach())


def test_results_that_do_not_depend_on_the_state() -> None:
    def step(u: Field) -> tuple:
        return u * 0.5, u.with_values(math.ones(u.values.shape)), u

    u = random_field("scalar", "open", 1, b=2)
    assert same(capture(step)(u), step(u))


def test_eager_phiflow_afterwards_is_as_before() -> None:
    u, step = random_field("staggered", "inflow", 2), SCHEMES["mac_cormack"]
    before = step(u)
    capture(step, u)
    assert same(step(u), before) and math.get_precision() == 32
