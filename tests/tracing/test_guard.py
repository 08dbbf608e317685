"""What a graph cannot hold is refused, with the operation, the user's line and a way out."""

from __future__ import annotations

import linecache
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases.states import random_field
from phi.torch.flow import (
    PERIODIC,
    CenteredGrid,
    Field,
    Solve,
    Sphere,
    StaggeredGrid,
    Tensor,
    batch,
    diffuse,
    extrapolation,
    fluid,
    math,
    spatial,
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


def branch(u: Field) -> Field:
    if (u.vector["x"].values > 0).any:  # here: branch
        u = u * 2.0
    return u


def while_loop(u: Field) -> Field:
    while (abs(u.vector["x"].values) > 1e-3).any:  # here: while_loop
        u = u * 0.1
    return u


def assertion(u: Field) -> Field:
    assert math.is_finite(u.vector["x"].values).all  # here: assertion
    return u


def takes_float(u: Field) -> Field:
    scale = float(math.mean(u.vector["x"].values))  # here: takes_float
    return u * scale


def takes_int(u: Field) -> Field:
    return u * int(math.sum(u.vector["x"].values ** 2).native())  # here: takes_int


def takes_item(u: Field) -> Field:
    return u * u.vector["x"].values.native("x,y").sum().item()  # here: takes_item


def takes_list(u: Field) -> Field:
    return u * u.vector["x"].values.native("x,y").tolist()[0][0]  # here: takes_list


def takes_numpy(u: Field) -> Field:
    return u * u.vector["x"].values.numpy("x,y").mean()  # here: takes_numpy


def native_numpy(u: Field) -> Field:
    return u * float(np.asarray(u.vector["x"].values.native("x,y").detach()).mean())  # here: native_numpy


def range_of_tensor(u: Field) -> Field:
    for _ in range(u.vector["x"].values.native("x,y").abs().sum().long()):  # here: range_of_tensor
        u = u * 0.5
    return u


def tensor_equality(u: Field) -> Field:
    x = u.vector["x"].values.native("x,y")
    return u * 2.0 if torch.allclose(x, x * x) else u  # here: tensor_equality


VALUE_TAKERS: list[Callable] = [
    branch,
    while_loop,
    assertion,
    takes_float,
    takes_int,
    takes_item,
    takes_list,
    takes_numpy,
    native_numpy,
    range_of_tensor,
    tensor_equality,
]


def line_of(step: Callable) -> int:
    lines = linecache.getlines(__file__)
    return 1 + next(i for i, line in enumerate(lines) if line.rstrip().endswith(f"# here: {step.__name__}"))


def refusal(step: Callable, *arguments: Any) -> str:
    """The message, after a check that nothing is left behind."""
    with pytest.raises(CaptureError) as error:
        capture(step, *arguments)
    assert not HOOKS & set(vars(TORCH)) and torch.autograd.Function.__dict__["apply"] is APPLY
    assert all(getattr(_optimize, name) is function for name, function in UPSTREAM.items())
    assert math.get_precision() == 32 and TORCH.get_default_device().ref == "cpu"
    assert "Way out" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("step", VALUE_TAKERS, ids=lambda s: s.__name__)
def test_taking_values_out_is_refused_with_the_line(step: Callable) -> None:
    message = refusal(step, random_field(**EXAMPLE))
    assert re.search(rf"test_guard\.py:{line_of(step)} in {step.__name__}", message), message
    assert "takes a value out of a tensor" in message


@pytest.mark.parametrize(
    ("step", "operation"), [(branch, "Python condition"), (takes_item, "item()"), (tensor_equality, "torch.allclose()")]
)
def test_the_operation_is_named(step: Callable, operation: str) -> None:
    assert operation in refusal(step, random_field(**EXAMPLE))


def test_looking_at_constants_is_allowed() -> None:
    """Shapes, grid spacing and values that the step does not depend on are no secrets."""
    table = torch.arange(5.0)

    def step(u: Field) -> Field:
        if float(u.dx.vector["x"]) > 0 and table[2].item() == 2.0 and u.resolution.get_size("x") == 6:
            made_here = torch.ones(3) * 2
            if made_here.sum() > 1:
                u = u * float(table.sum())
        return u

    u = random_field(**EXAMPLE)
    math.assert_close(capture(step)(u).vector["x"].values, 10 * u.vector["x"].values, rel_tolerance=1e-6)


def boolean_indexing(x: Tensor) -> Tensor:
    native = x.native("x")
    return math.wrap(native[native > 0].sum())


def nonzero(x: Tensor) -> Tensor:
    return math.wrap(x.native("x").nonzero().sum().float() + x.native("x").sum())


def unique(x: Tensor) -> Tensor:
    return math.wrap(torch.unique(x.native("x")).sum())


@pytest.mark.parametrize("step", [boolean_indexing, nonzero, unique], ids=lambda s: s.__name__)
def test_shapes_that_depend_on_values_are_refused(step: Callable) -> None:
    message = refusal(step, math.wrap(torch.tensor([1.0, -1.0, 2.0]), spatial("x")))
    assert "math.where" in message
    assert "index" in message or "nonzero" in message or "unique" in message or "shape of its result" in message


def test_indexing_with_constant_masks_and_integers_is_allowed() -> None:
    mask, order = torch.tensor([True, False, True]), torch.tensor([2, 0])

    def step(x: Tensor) -> Tensor:
        native = x.native("x")
        return math.wrap(native[mask] * 2 + native[order], spatial("x"))

    x = math.wrap(torch.tensor([1.0, -1.0, 2.0]), spatial("x"))
    block = capture(step, x)
    for factor in (1.0, -2.0):
        assert torch.equal(block(factor * x).native("x"), factor * torch.tensor([4.0, 5.0]))


def numpy_noise(u: Field) -> Field:
    return u + float(np.random.rand())


def python_noise(u: Field) -> Field:
    return u + random.random()


@pytest.mark.parametrize("step", [numpy_noise, python_noise], ids=lambda s: s.__name__)
def test_random_numbers_from_elsewhere_are_refused(step: Callable) -> None:
    message = refusal(step, random_field("scalar", "open", 1))
    assert "math.random_normal" in message


def test_numpy_generator_of_its_own_is_found_by_comparison() -> None:
    generator = np.random.default_rng(0)
    message = refusal(lambda u: u * float(generator.random()), random_field("scalar", "open", 1))
    assert "random generator" in message


def test_counter_is_found_by_comparison() -> None:
    calls = []

    def step(u: Field) -> Field:
        calls.append(1)
        return u * float(len(calls))

    message = refusal(step, random_field("scalar", "open", 1))
    assert "counter" in message and "difference" in message


def test_comparison_can_be_switched_off() -> None:
    calls = []

    def step(u: Field) -> Field:
        calls.append(1)
        return u * float(len(calls))

    capture(step, random_field("scalar", "open", 1), check=False)


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
    assert "trainable tensor of shape ()" in refusal(lambda u: u * math.wrap(weight), random_field("scalar", "open", 1))
    network = torch.nn.Conv1d(1, 1, 3, padding=1)

    def corrected(u: Field) -> Field:
        native = network(u.values.native("b,x").unsqueeze(1)).squeeze(1)
        return u + u.with_values(math.wrap(native, batch("b"), spatial("x")))

    message = refusal(corrected, random_field("scalar", "open", 1, b=2))
    assert "trainable" in message and "HybridSolver" in message
    network.requires_grad_(False)
    capture(corrected, random_field("scalar", "open", 1, b=2))


def test_intermediate_results_of_training_are_refused() -> None:
    """A tensor computed from parameters is no leaf, but would be just as untrained."""
    scale = torch.nn.Parameter(torch.tensor(2.0)) * 3.0
    assert "trainable" in refusal(lambda u: u * math.wrap(scale), random_field("scalar", "open", 1))


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


def viscosity(u: Field, nu: Tensor) -> Field:
    return diffuse.implicit(u, nu, 0.1)  # here: viscosity


def time_step(u: Field, dt: Tensor) -> Field:
    return diffuse.implicit(u, 0.1, dt)  # here: time_step


def obstacle(u: Field, x: Tensor) -> Field:
    return fluid.make_incompressible(u, Sphere(x=x, y=0.7, radius=0.4))[0]  # here: obstacle


def coefficient(u: Field, c: Tensor) -> Field:
    return math.solve_linear(lambda v: c * v - 0.1 * v.laplace(), u, Solve(x0=u))  # here: coefficient


def tolerance(u: Field, t: Tensor) -> Field:
    return diffuse.implicit(u, 0.1, 0.1, Solve(rel_tol=t))  # here: tolerance


@pytest.mark.parametrize("step", [viscosity, time_step, obstacle, coefficient, tolerance], ids=lambda s: s.__name__)
def test_matrices_that_depend_on_inputs_are_refused(step: Callable) -> None:
    u = random_field("staggered" if step is obstacle else "scalar", "closed", 2)
    message = refusal(step, u, math.wrap(torch.tensor(0.5)))
    assert re.search(rf"test_guard\.py:{line_of(step)} in {step.__name__}", message), message
    assert "linear solve whose matrix (or tolerance) depends on the step's inputs" in message
    assert "as Python numbers" in message and "diffuse.explicit" in message


def test_matrices_of_numbers_and_of_what_the_step_closes_over_are_allowed() -> None:
    nu, u = math.wrap(torch.tensor(0.1)), random_field("scalar", "closed", 2)
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


def test_matrices_that_differ_along_the_batch_are_refused() -> None:
    nu = math.wrap(torch.tensor([0.1, 0.2]), batch("b"))
    message = refusal(lambda u: diffuse.implicit(u, nu, 0.1), random_field("scalar", "closed", 2, b=2))
    assert "only square systems over the same dims" in message


def test_custom_gradients_are_refused() -> None:
    def forward(x: Tensor) -> Tensor:
        return x * 2.0

    doubled = math.custom_gradient(forward, lambda inputs, outputs, gradient: {"x": gradient * 7.0})

    def step(u: Field) -> Field:
        return u.with_values(doubled(u.values))

    assert "custom gradient" in refusal(step, random_field("scalar", "open", 1))


def test_autograd_functions_are_refused() -> None:
    class Clamp(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clamp(-1, 1)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient

    def step(x: Tensor) -> Tensor:
        return math.wrap(Clamp.apply(x.native("x")), spatial("x"))

    message = refusal(step, math.wrap(torch.tensor([0.5, 3.0]), spatial("x")))
    assert "custom gradient (Clamp)" in message and "in step" in message


def test_steps_that_fail_in_plain_phiflow_are_a_state_error() -> None:
    def step(u: Field) -> Field:
        raise KeyError("viscosity")

    with pytest.raises(StateError, match="KeyError.*viscosity") as error:
        capture(step, random_field("scalar", "open", 1))
    assert isinstance(error.value.__cause__, KeyError)
    assert not HOOKS & set(vars(TORCH))


def test_results_that_are_no_states_are_refused() -> None:
    with pytest.raises((StateError, CaptureError), match="wrap"):
        capture(lambda u: u.values.native("x"), random_field("scalar", "open", 1))


def test_error_while_tracing_leaves_nothing_behind() -> None:
    calls = []

    def step(u: Field) -> Field:
        calls.append(1)
        if len(calls) == 2:  # the first call is plain PhiFlow, the second is traced
            raise OSError("disk")
        return u

    with pytest.raises(CaptureError, match="OSError.*disk.*test_guard"):
        with math.precision(64):
            capture(step, random_field("scalar", "open", 1))
    assert not HOOKS & set(vars(TORCH)) and math.get_precision() == 32
    u = StaggeredGrid(1.0, PERIODIC, x=4, y=4)
    diffuse.explicit(u, 0.1, 0.1)


def test_boundary_from_an_input_is_refused() -> None:
    def step(u: Field, wall: Tensor) -> Field:
        return u.with_boundary(extrapolation.ConstantExtrapolation(wall))

    u = CenteredGrid(math.wrap(torch.ones(4), spatial("x")), 0)
    assert "takes a value out" in refusal(step, u, math.wrap(torch.tensor(2.0)))


# --- what looks dangerous and is not ---


def test_random_numbers_of_torch_stay_random() -> None:
    def step(u: Field) -> Field:
        noise = math.random_normal(u.values.shape) + math.random_uniform(u.values.shape)
        return u + u.with_values(noise)

    u = random_field("scalar", "open", 1, b=2)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    block = capture(step, u)
    assert torch.equal(torch.random.get_rng_state(), before)  # capturing draws nothing from the user's generator
    first, second = block(u).values.native("b,x"), block(u).values.native("b,x")
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    again = block(u).values.native("b,x")
    torch.manual_seed(5)
    assert torch.equal(block(u).values.native("b,x"), again)
    torch.manual_seed(5)
    assert torch.equal(step(u).values.native("b,x"), again)


def test_branch_on_random_numbers_is_refused() -> None:
    def step(u: Field) -> Field:
        return u * 2.0 if bool(torch.rand(()) > 0.5) else u

    assert "Python condition" in refusal(step, random_field("scalar", "open", 1))


def test_viscosity_as_tensor_passes_the_cfl_check() -> None:
    def step(u: Field, nu: Tensor) -> Field:
        return diffuse.explicit(u, nu, 0.1)

    u = random_field("scalar", "closed", 2)
    block = capture(step, u, math.wrap(torch.tensor(0.05)))
    for nu in (0.05, 0.2):
        viscosity = math.wrap(torch.tensor(nu))
        assert torch.equal(block(u, viscosity).values.native("x,y"), step(u, viscosity).values.native("x,y"))
    assert len(block.known) == 1
    with pytest.warns(RuntimeWarning, match="CFL"):  # plain PhiFlow still looks
        step(u, math.wrap(torch.tensor(5.0)))
