"""What a graph cannot hold is refused, with the operation, the user's line and a way out."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases.small import same
from cases.states import random_field
from cases.steps import viscous
from phi.torch.flow import (
    NAN,
    PERIODIC,
    Field,
    Solve,
    StaggeredGrid,
    Tensor,
    batch,
    diffuse,
    extrapolation,
    math,
    spatial,
    wrap,
)
from phiml.backend.torch import TORCH
from phiml.math import _optimize

from phi_hybrid import capture
from phi_hybrid.errors import CaptureError, StateError
from phi_hybrid.linear_solve import linear_solves

HOOKS = {"is_available", "linear_solve", "custom_gradient", "mul_csr_dense", "csr_matrix"}
UPSTREAM = {
    name: getattr(_optimize, name)
    for name in ("attach_gradient_solve", "native_matrix", "_linear_solve_forward", "compute_preconditioner")
}
APPLY = torch.autograd.Function.__dict__["apply"]
EXAMPLE = dict(placement="staggered", kind="periodic", dims=2)


def x_of(u: Field) -> torch.Tensor:
    return u.vector["x"].values.native("x,y")


VALUE_TAKERS: dict[str, Callable] = {
    "a Python condition": lambda u: u * 2.0 if (u.vector["x"].values > 0).any else u,
    "float()": lambda u: u * float(math.mean(u.vector["x"].values)),
    "int()": lambda u: u * int(math.sum(u.vector["x"].values ** 2).native()),
    "item()": lambda u: u * x_of(u).sum().item(),
    "tolist()": lambda u: u * x_of(u).tolist()[0][0],
    "numpy()": lambda u: u * u.vector["x"].values.numpy("x,y").mean(),
    "NumPy array": lambda u: u * float(np.asarray(x_of(u).detach()).mean()),
    "Python index": lambda u: [u * 0.5 for _ in range(x_of(u).abs().sum().long())][0],
    "torch.allclose()": lambda u: u * 2.0 if torch.allclose(x_of(u), x_of(u) ** 2) else u,
}
CLOSED = random_field("scalar", "closed", 2)
LINE = random_field("scalar", "open", 1)


def place_of(step: Callable) -> str:
    """File, line and function as messages name them."""
    return f"{Path(__file__).name}:{step.__code__.co_firstlineno} in {step.__name__}"


def refusal(step: Callable, *arguments: Any) -> str:
    """The message, after a check that nothing is left behind."""
    with pytest.raises(CaptureError) as error:
        capture(step, *arguments)
    assert not HOOKS & set(vars(TORCH)) and torch.autograd.Function.__dict__["apply"] is APPLY
    assert all(getattr(_optimize, name) is function for name, function in UPSTREAM.items())
    assert math.get_precision() == 32 and TORCH.get_default_device().ref == "cpu"
    assert "Way out" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("operation", VALUE_TAKERS)
def test_taking_values_out_is_refused_with_operation_and_line(operation: str) -> None:
    message = refusal(VALUE_TAKERS[operation], random_field(**EXAMPLE))
    assert place_of(VALUE_TAKERS[operation]) in message and operation in message, message


def test_looking_at_constants_is_allowed() -> None:
    """Shapes, grid spacing and values that the step does not depend on are no secrets."""
    table = torch.arange(5.0)

    def step(u: Field) -> Field:
        constant = float(u.dx.vector["x"]) > 0 and table[2].item() == 2.0 and u.resolution.get_size("x") == 6
        return u * float(table.sum()) if constant and torch.ones(3).sum() > 1 else u

    u = random_field(**EXAMPLE)
    math.assert_close(capture(step)(u).vector["x"].values, 10 * u.vector["x"].values, rel_tolerance=1e-6)


SHAPES: dict[str, Callable] = {
    "boolean indexing": lambda x: x[x > 0].sum(),
    "nonzero": lambda x: x.nonzero().sum().float() + x.sum(),
    "unique": lambda x: torch.unique(x).sum(),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_that_depend_on_values_are_refused(name: str) -> None:
    example = math.wrap(torch.tensor([1.0, -1.0, 2.0]), spatial("x"))
    assert "math.where" in refusal(lambda x: math.wrap(SHAPES[name](x.native("x"))), example)


def test_indexing_with_constant_masks_and_integers_is_allowed() -> None:
    mask, order = torch.tensor([True, False, True]), torch.tensor([2, 0])

    def step(x: Tensor) -> Tensor:
        native = x.native("x")
        return math.wrap(native[mask] * 2 + native[order], spatial("x"))

    x = math.wrap(torch.tensor([1.0, -1.0, 2.0]), spatial("x"))
    block = capture(step, x)
    for factor in (1.0, -2.0):
        assert torch.equal(block(factor * x).native("x"), factor * torch.tensor([4.0, 5.0]))


@pytest.mark.parametrize("draw", [np.random.rand, random.random], ids=["numpy", "python"])
def test_random_numbers_from_elsewhere_are_refused(draw: Callable) -> None:
    assert "math.random_normal" in refusal(lambda u: u + float(draw()), LINE)


def test_numpy_generator_of_its_own_is_found_by_comparison() -> None:
    generator = np.random.default_rng(0)
    assert "random generator" in refusal(lambda u: u * float(generator.random()), LINE)


def counting() -> Callable:
    calls = []

    def step(u: Field) -> Field:
        calls.append(1)
        return u * float(len(calls))

    return step


@pytest.mark.parametrize("example", [LINE, 0 * LINE], ids=["random", "zero"])
def test_counter_is_found_by_comparison_unless_that_is_switched_off(example: Field) -> None:
    message = refusal(counting(), example)
    assert "counter" in message and "difference" in message
    capture(counting(), example, check=False)


def test_a_refusal_that_the_step_catches_is_not_lost() -> None:
    def step(u: Field) -> Field:
        try:
            large = float(math.max(u.values)) > 1
        except Exception:
            large = False
        return u * 0.5 if large else u

    assert "float()" in refusal(step, LINE)


def test_hidden_dependence_on_values_is_found_by_comparison() -> None:
    """What escapes the tracer, here that autograd was off, shows in values or gradients on perturbed inputs."""

    def step(x: Tensor) -> Tensor:
        native = x.native("x")
        with torch.no_grad():
            frozen = native * 3.0
        return math.wrap(native + frozen, spatial("x"))

    message = refusal(step, math.wrap(torch.ones(3), spatial("x")))
    assert "gradient" in message and "no_grad" in message and "stop_gradient" in message


def test_trainable_tensors_from_outside_are_refused() -> None:
    weight = torch.nn.Parameter(torch.tensor(2.0))
    for tensor in (weight, weight * 3.0):  # what is computed from parameters is no leaf, but would be just as untrained
        assert "trainable tensor of shape ()" in refusal(lambda u, t=tensor: u * math.wrap(t), LINE)
    network = torch.nn.Conv1d(1, 1, 3, padding=1)

    def corrected(u: Field) -> Field:
        native = network(u.values.native("b,x").unsqueeze(1)).squeeze(1)
        return u + u.with_values(math.wrap(native, batch("b"), spatial("x")))

    u = random_field("scalar", "open", 1, b=2)
    message = refusal(corrected, u)
    assert "trainable" in message and "HybridSolver" in message
    network.requires_grad_(False)
    capture(corrected, u)


def test_trainable_argument_is_fine() -> None:
    weight = torch.nn.Parameter(torch.tensor(2.0))
    u = random_field("scalar", "open", 1)
    after = capture(lambda u, w: u * w)(u, math.wrap(weight))
    (gradient,) = torch.autograd.grad(after.values.native("x").sum(), weight)
    torch.testing.assert_close(gradient, u.values.native("x").sum())


def test_writing_to_an_argument_is_refused() -> None:
    def step(x: Tensor) -> Tensor:
        native = x.native("x")
        native += 1
        return math.wrap(native * 2, spatial("x"))

    x = torch.ones(3)
    assert "writes into one of its arguments" in refusal(step, math.wrap(x, spatial("x")))


def test_tolerances_that_depend_on_inputs_are_refused() -> None:
    def step(u: Field, tolerance: Tensor) -> Field:
        return diffuse.implicit(u, 0.1, 0.1, Solve(rel_tol=tolerance))

    message = refusal(step, CLOSED, math.wrap(torch.tensor(0.5)))
    assert "a linear solve whose tolerance depends" in message and "Solve(rel_tol=tolerance)" in message


def test_matrices_of_numbers_and_of_what_the_step_closes_over_are_allowed() -> None:
    nu, u = math.wrap(torch.tensor(0.1)), CLOSED
    block = capture(lambda u, dt: diffuse.implicit(u, nu, dt), u, 0.5)
    with linear_solves():
        math.assert_close(block(u, 0.5).values, diffuse.implicit(u, 0.1, 0.5).values, abs_tolerance=1e-6)
        math.assert_close(block(u, 0.7).values, diffuse.implicit(u, 0.1, 0.7).values, abs_tolerance=1e-6)


@pytest.mark.parametrize("where", ["matrix", "right-hand side"])
def test_trainable_tensors_in_linear_solves_are_refused(where: str) -> None:
    weight = math.wrap(torch.nn.Parameter(torch.tensor(0.1)))

    def step(u: Field) -> Field:
        return diffuse.implicit(u, weight, 0.1) if where == "matrix" else diffuse.implicit(weight * u, 0.1, 0.1)

    for kind in ("closed", "periodic"):
        assert "trainable tensor" in refusal(step, random_field("scalar", kind, 2))


def test_steps_that_fail_in_plain_phiflow_are_a_state_error() -> None:
    def step(u: Field) -> Field:
        raise KeyError("viscosity")

    with pytest.raises(StateError, match="KeyError.*viscosity") as error:
        capture(step, LINE)
    assert isinstance(error.value.__cause__, KeyError)
    assert not HOOKS & set(vars(TORCH))


def test_results_that_are_no_states_are_refused() -> None:
    with pytest.raises((StateError, CaptureError), match="wrap"):
        capture(lambda u: u.values.native("x"), LINE)


def test_error_while_tracing_leaves_nothing_behind() -> None:
    calls = []

    def step(u: Field) -> Field:
        calls.append(1)
        if len(calls) == 2:  # the first call is plain PhiFlow, the second is traced
            raise OSError("disk")
        return u

    with pytest.raises(CaptureError, match=f"OSError.*disk.*{Path(__file__).name}"):
        with math.precision(64):
            capture(step, random_field("scalar", "open", 1))
    assert not HOOKS & set(vars(TORCH)) and math.get_precision() == 32
    u = StaggeredGrid(1.0, PERIODIC, x=4, y=4)
    diffuse.explicit(u, 0.1, 0.1)


def test_random_numbers_of_torch_stay_random() -> None:
    def step(u: Field) -> Field:
        noise = math.random_normal(u.values.shape) + math.random_uniform(u.values.shape)
        return u + u.with_values(noise)

    u = random_field("scalar", "open", 1, b=2)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    block = capture(step, u)
    assert torch.equal(torch.random.get_rng_state(), before)  # capturing draws nothing from the user's generator
    assert not same(block(u), block(u))
    seeded = []
    for f in (block, block, step):
        torch.manual_seed(5)
        seeded.append(f(u))
    assert same(seeded[0], seeded[1]) and same(seeded[0], seeded[2])


def test_generators_of_ones_own_are_refused() -> None:
    generator = torch.Generator()

    def step(u: Field) -> Field:
        return u + math.wrap(torch.randn(u.values.shape.sizes, generator=generator), u.values.shape)

    with pytest.raises(CaptureError, match=r"torch\.Generator of its own"):
        capture(step, random_field("scalar", "closed", 1))


def test_operations_that_failed_are_not_done_again() -> None:
    """torch does not reflect flags, so PhiML pads the mask by slices; the failed operation stays in the trace."""
    gaps = wrap(torch.tensor([1.0, NAN, 3.0, 4.0], dtype=torch.float64), spatial("x"))

    def step(u: Tensor) -> Tensor:
        return u + math.finite_fill(gaps, padding=extrapolation.REFLECT)

    u = wrap(torch.ones(4, dtype=torch.float64), spatial("x"))
    with math.precision(64):
        assert capture(step, u)(u).numpy("x") == pytest.approx(step(u).numpy("x"))


def test_branch_on_random_numbers_is_refused() -> None:
    def step(u: Field) -> Field:
        return u * 2.0 if bool(torch.rand(()) > 0.5) else u

    assert "Python condition" in refusal(step, LINE)


def test_viscosity_as_tensor_passes_the_cfl_check() -> None:
    block = capture(viscous, CLOSED, math.wrap(torch.tensor(0.05)))
    for nu in (0.05, 0.2):
        viscosity = math.wrap(torch.tensor(nu))
        assert same(block(CLOSED, viscosity), viscous(CLOSED, viscosity))
    assert len(block.known) == 1
    with pytest.warns(RuntimeWarning, match="CFL"):  # plain PhiFlow still looks
        viscous(CLOSED, math.wrap(torch.tensor(5.0)))
