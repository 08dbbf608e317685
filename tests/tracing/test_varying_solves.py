"""Captured steps whose matrices depend on their arguments, against dense linear algebra, differences and plain PhiFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from cases.derivatives import check_products
from cases.solves import CELLS, components, diffuse_implicitly, noise, project, relative_error, stacked, velocity
from cases.varying_steps import (
    TIGHT,
    cell_field,
    cell_values,
    dense_past_soft_body,
    dense_stratified,
    past_bar,
    past_soft_body,
    past_sphere,
    stratified,
    vector,
    viscosities,
    viscous,
)
from phi.geom import build_mesh
from phi.torch.flow import (
    ZERO_GRADIENT,
    Box,
    Field,
    Obstacle,
    Solve,
    Sphere,
    Tensor,
    advect,
    batch,
    channel,
    diffuse,
    dual,
    fluid,
    instance,
    math,
    spatial,
    wrap,
)

import phi_hybrid as ph
from phi_hybrid.linear_solve import LinearSolve, VaryingSolve, linear_solves


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    with math.precision(64):
        yield


def solves_of(block: ph.PhysicsBlock) -> list[torch.nn.Module]:
    return [m for m in block.modules() if isinstance(m, (LinearSolve, VaryingSolve))]


def check_gradient(block: ph.PhysicsBlock, arguments: Sequence, dense: Callable, number: int) -> None:
    """Of a weighted sum of the results by a native argument, or by ten of its values, against differences of `dense`."""
    bound = block.bind(*arguments)
    tensors = list(bound.flatten(*arguments))
    x = tensors[number] = tensors[number].clone().requires_grad_()
    outputs = bound.native(*tensors)
    weights = [noise(*o.shape, seed=40 + i) for i, o in enumerate(outputs)]
    (found,) = torch.autograd.grad(outputs, x, weights)

    def loss(value: np.ndarray) -> float:
        return sum(float((w.numpy() * r).sum()) for w, r in zip(weights, dense(value)))

    at, places = x.detach().numpy(), list(np.ndindex(*x.shape))
    places = [places[i] for i in np.random.default_rng(0).permutation(len(places))[:10]]
    expected = []
    for place in places:
        step = np.zeros(x.shape)
        step[place] = 1e-5
        expected.append((loss(at + step) - loss(at - step)) / 2e-5)
    assert relative_error([found[place] for place in places], expected) < 1e-6


# --- diffusion ---


def test_viscosity_field() -> None:
    u, nu = cell_field(cell_values(0)), cell_field(viscosities(1))
    block = ph.capture(viscous, u, nu)
    assert [type(m) for m in solves_of(block)] == [VaryingSolve]
    assert relative_error(components(block(u, nu), ())[0], components(viscous(u, nu), ())[0]) < 1e-9
    other = cell_field(2 * viscosities(2))
    assert relative_error(components(block(u, other), ())[0], diffuse_implicitly(u, other, 0.7)[0]) < 1e-10
    check_gradient(block, (u, nu), lambda x: diffuse_implicitly(u, cell_field(torch.as_tensor(x)), 0.7), 1)
    bound = block.bind(u, nu)
    check_products(bound.native, bound.flatten(u, nu))


@pytest.mark.parametrize("kind", ["periodic", "closed", "inflow"])
def test_viscosity_tensor_on_faces(kind: str) -> None:
    u, nu = velocity(kind, cells=CELLS), wrap(torch.tensor(0.3, dtype=torch.float64))
    block = ph.capture(viscous, u, nu)
    assert relative_error(stacked(components(block(u, nu))), stacked(diffuse_implicitly(u, 0.3, 0.7))) < 1e-10
    check_gradient(block, (u, nu), lambda x: diffuse_implicitly(u, float(x), 0.7), 2)


def test_viscosity_of_each_batch_entry() -> None:
    """Of a tensor and of a field; as a loop over the entries."""
    u = cell_field(cell_values(0, 3), "b")
    for nu in (
        wrap(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), batch("b")),
        cell_field(viscosities(1, 3), "b"),
    ):
        block = ph.capture(viscous, u, nu)
        found, alone = block(u, nu), ph.capture(viscous, u.b[0], nu.b[0])
        for i in range(3):
            expected = diffuse_implicitly(u.b[i], nu.b[i], 0.7)[0]
            assert relative_error(components(found.b[i], ())[0], expected) < 1e-10
            torch.testing.assert_close(
                components(found.b[i], ())[0], components(alone(u.b[i], nu.b[i]), ())[0], rtol=0, atol=1e-14
            )
        bound = block.bind(u, nu)
        check_products(bound.native, bound.flatten(u, nu))


def test_viscosities_for_one_state() -> None:
    """The result has the batch dim of the matrix."""
    u, nu = cell_field(cell_values(0)), wrap(torch.tensor([0.1, 0.2], dtype=torch.float64), batch("b"))
    found = ph.capture(viscous, u, nu)(u, nu)
    for i, expected in enumerate((0.1, 0.2)):
        assert relative_error(components(found.b[i], ())[0], diffuse_implicitly(u, expected, 0.7)[0]) < 1e-10


# --- projections ---


def test_density() -> None:
    v, rho = velocity("closed", cells=CELLS, b=1).b[0], cell_field(1 + cell_values(1) ** 2)
    block = ph.capture(stratified, v, rho)
    v0 = [c.numpy() for c in components(v, ())]
    expected = dense_stratified(v0, components(rho, ())[0].numpy())
    assert relative_error(stacked(components(block(v, rho), ())), stacked(expected)) < 1e-10
    check_gradient(block, (v, rho), lambda x: dense_stratified(v0, x), 2)
    bound = block.bind(v, rho)
    check_products(bound.native, bound.flatten(v, rho), rounding=1e-9)


def test_position_and_radius_of_a_soft_body() -> None:
    v = velocity("closed", cells=CELLS, b=1).b[0]
    arguments = v, vector([0.9, 0.7]), wrap(torch.tensor(0.4, dtype=torch.float64))
    block = ph.capture(past_soft_body, *arguments)
    v0 = [c.numpy() for c in components(v, ())]
    expected = dense_past_soft_body(v0, np.array([0.9, 0.7]), 0.4)
    assert relative_error(stacked(components(block(*arguments), ())), stacked(expected)) < 1e-10
    check_gradient(block, arguments, lambda x: dense_past_soft_body(v0, x, 0.4), 2)
    check_gradient(block, arguments, lambda x: dense_past_soft_body(v0, np.array([0.9, 0.7]), float(x)), 3)
    bound = block.bind(*arguments)
    check_products(bound.native, bound.flatten(*arguments), rounding=1e-9)


@pytest.mark.parametrize("kind", ["closed", "inflow"])
def test_a_sphere_that_moves_and_grows(kind: str) -> None:
    """One capture; in boxes without an opening singular matrices, whose null space moves with the body."""
    v = velocity(kind, cells=CELLS)
    block = ph.capture(past_sphere, v, vector([0.9, 0.7]), wrap(0.35))
    for centre, radius in (((0.9, 0.7), 0.35), ((1.2, 0.6), 0.4), ((0.1, 0.2), 0.5)):
        expected = project(v, [Obstacle(Sphere(vector(centre), radius=radius))]).velocity
        found = block(v, vector(centre), wrap(radius))
        assert relative_error(stacked(components(found)), stacked(expected)) < 1e-9
    assert block._captures == 1
    (solve,) = solves_of(block)
    assert isinstance(solve, VaryingSolve)


def test_a_bar_that_turns() -> None:
    v = velocity("inflow", cells=CELLS)
    block = ph.capture(past_bar, v, vector([0.9, 0.7]), wrap(0.3))
    for centre, angle in (((0.9, 0.7), 0.3), ((1.1, 0.6), 1.4)):
        expected = project(v, [Obstacle(Box(x=0.9, y=0.4).at(vector(centre)).rotated(angle))]).velocity
        assert relative_error(stacked(components(block(v, vector(centre), wrap(angle)))), stacked(expected)) < 1e-9


def test_a_wall_that_divides_the_box() -> None:
    """Each part has a null space and loses a mean of its own."""

    def step(v: Field, centre: Tensor) -> Field:
        return fluid.make_incompressible(v, Box(x=0.2, y=4.0).at(centre))[0]

    v = velocity("closed", cells=CELLS)
    block = ph.capture(step, v, vector([0.9, 0.7]))
    for x in (0.9, 1.3, 0.0):
        expected = project(v, [Obstacle(Box(x=0.2, y=4.0).at(vector([x, 0.7])))])
        assert relative_error(stacked(components(block(v, vector([x, 0.7])))), stacked(expected.velocity)) < 1e-9


@pytest.mark.parametrize(("how", "with_batch"), [("closed over", True), ("argument", False)])
def test_a_body_in_each_batch_entry(how: str, with_batch: bool) -> None:
    """As a loop over the entries."""
    v = velocity("inflow", cells=CELLS) if with_batch else velocity("inflow", cells=CELLS, b=1).b[0]
    places = math.wrap(torch.tensor([(0.9, 0.7), (1.3, 0.5)], dtype=torch.float64), batch("b"), channel(vector="x,y"))
    if how == "argument":
        found = ph.capture(past_sphere, v, places, wrap(0.35))(v, places, wrap(0.35))
    else:
        found = ph.capture(lambda v: past_sphere(v, places, 0.35), v)(v)
    for i in range(2):
        alone = v.b[i] if with_batch else v
        expected = project(math.expand(alone, batch(b=1)), [Obstacle(Sphere(places.b[i], radius=0.35))]).velocity
        assert relative_error(stacked(components(found.b[i], ())), stacked(expected)) < 1e-9


def test_derivatives_through_hard_masks_are_those_of_phiflow() -> None:
    """The matrix has none; those of the velocity at the body remain."""
    v, centre = velocity("inflow", cells=CELLS), torch.tensor([0.9, 0.7], dtype=torch.float64)
    block = ph.capture(past_sphere, v, vector(centre), wrap(0.35))
    gradients = []
    for step in (block, lambda v, c, r: past_sphere_plain(v, c, r)):
        c = centre.clone().requires_grad_()
        out = components(step(v, vector(c), wrap(0.35)))
        gradients.append(torch.autograd.grad(sum((o**2).sum() for o in out), c)[0])
    assert gradients[1].abs().max() > 0.1
    assert relative_error(gradients[0], gradients[1]) < 1e-8


def past_sphere_plain(v: Field, centre: Tensor, radius: Tensor) -> Field:
    return fluid.make_incompressible(v, Sphere(centre, radius=radius), Solve("scipy-direct", 1e-9, 1e-9))[0]


# --- guesses, gradients in steps, functions, meshes, products ---


def test_a_guess_changes_nothing() -> None:
    def step(v: Field, guess: Field | None, centre: Tensor) -> tuple[Field, Field]:
        return fluid.make_incompressible(v, Sphere(centre, radius=0.35), Solve("CG", 1e-9, 1e-9, x0=guess))

    v, centre = velocity("inflow", cells=CELLS), vector([0.9, 0.7])
    first, p = ph.capture(step, v, None, centre)(v, None, centre)
    block = ph.capture(step, v, p, centre)
    for guess in (p, p * float("nan")):
        second, _ = block(v, guess, centre)
        assert torch.equal(components(first)[0], components(second)[0])
    bound = block.bind(v, p, centre)
    tensors = [t.requires_grad_() for t in bound.flatten(v, p, centre)]
    gradients = torch.autograd.grad([o.sum() for o in bound.native(*tensors)], tensors, allow_unused=True)
    assert sum(g is None or not g.any() for g in gradients) == 1  # that by the guess


@pytest.mark.parametrize("by", ["y", "strength"])
@pytest.mark.parametrize("matrix", ["constant", "varies"])
def test_gradients_of_solves_inside_of_a_step(by: str, matrix: str) -> None:
    """`math.gradient` of ½·|A⁻¹·y|²: A⁻ᵀ·A⁻¹·y, and −xᵀ·A⁻ᵀ·(∂A)·x."""

    def energy(y: Tensor, strength: Tensor) -> Tensor:
        strength = 0.3 if matrix == "constant" else strength
        f = math.jit_compile_linear(lambda x: 2.0 * x - strength * math.laplace(x, padding=math.extrapolation.PERIODIC))
        return math.l2_loss(math.solve_linear(f, y, Solve("CG", 1e-11, 1e-11, x0=0 * y))) + 0 * math.sum(strength)

    def step(y: Tensor, strength: Tensor) -> Tensor:
        return math.gradient(energy, by, get_output=False)(y, strength)

    y, strength = wrap(noise(7), spatial("x")), wrap(torch.tensor(0.3, dtype=torch.float64))
    laplacian = np.roll(np.eye(7), 1, 0) + np.roll(np.eye(7), -1, 0) - 2 * np.eye(7)
    inverse = np.linalg.inv(2 * np.eye(7) - 0.3 * laplacian)
    x = inverse @ noise(7).numpy()
    expected = inverse.T @ x if by == "y" else x @ inverse @ laplacian @ x * (matrix == "varies")
    if by == "y" or matrix == "varies":
        found = ph.capture(step, y, strength)(y, strength)
        found = found.numpy("x") if by == "y" else float(found)
        assert relative_error(found, expected) < 1e-10


def shifted(x: Tensor, k: Tensor) -> Tensor:
    return 2.0 * x - k * math.stop_gradient(x)


def filtered(x: Tensor, k: Tensor) -> Tensor:
    damping = math.exp(-math.vec_squared(math.fftfreq(x.shape.spatial)))
    return 2.0 * x + k * math.real(math.ifft(math.fft(x) * damping))


def antisymmetric(x: Tensor, k: Tensor) -> Tensor:
    return x - k * math.laplace(x, padding=math.extrapolation.ANTISYMMETRIC)


@pytest.mark.parametrize("function", [shifted, filtered, antisymmetric])
@pytest.mark.parametrize("how", ["captured", "captured with a constant", "with block"])
def test_functions_without_a_decorator(function: Callable, how: str) -> None:
    """PhiFlow solves with them without a matrix; PhiML's linear tracing takes none of them."""
    y, k = wrap(noise(2, 6), batch("b"), spatial("x")), wrap(torch.tensor(0.3, dtype=torch.float64))

    def step(y: Tensor, k: Tensor) -> Tensor:
        return math.solve_linear(lambda x: function(x, k), y, Solve("CG", 1e-11, 1e-11, x0=y))

    identity = wrap(torch.eye(6).double(), batch("column"), spatial("x"))
    matrix = function(identity, k).native("x,column").numpy()
    if how == "with block":
        with linear_solves():
            found = step(y, k)
    elif how == "captured":
        block = ph.capture(step, y, k)
        found = block(y, k)
        check_products(block.bind(y, k).native, block.bind(y, k).flatten(y, k))
    else:
        found = ph.capture(lambda y: step(y, 0.3), y)(y)
    assert relative_error(found.native("b,x"), np.linalg.solve(matrix, noise(2, 6).numpy().T).T) < 1e-10
    assert relative_error(found.native("b,x"), step(y, k).native("b,x")) < 1e-8  # plain PhiFlow


def test_large_functions_that_have_no_matrix() -> None:
    """Are left to PhiFlow in eager code, refused where their matrix varies."""

    def step(y: Tensor, k: Tensor) -> Tensor:
        return math.solve_linear(lambda x: shifted(x, k), y, Solve("CG", 1e-9, 1e-9, x0=y))

    y, k = wrap(noise(1100), spatial("x")), wrap(torch.tensor(0.3, requires_grad=True, dtype=torch.float64))
    with linear_solves():
        assert relative_error(step(y, k).native("x").detach(), noise(1100) / 1.7) < 1e-8
    with pytest.raises(ph.CaptureError, match="1100 unknowns, of which 1024"):
        ph.capture(step, y, wrap(torch.tensor(0.3, dtype=torch.float64)))
    assert relative_error(ph.capture(lambda y: step(y, 0.3), y)(y).native("x"), noise(1100) / 1.7) < 1e-8


def test_matrices_of_meshes() -> None:
    """Implicit convection and diffusion: the matrix depends on velocity and viscosity."""
    mesh = build_mesh(Box(x=1, y=1), x=5, y=4, obstacles=Box(x=0.4, y=0.4))
    sides = {"x-": 0.1, "obstacle": 0, "y": 0, "x+": ZERO_GRADIENT}

    def momentum(u: Field, before: Field, viscosity: Tensor) -> Field:
        change = advect.differential(u, before, order=1) + diffuse.differential(u, viscosity, correct_skew=False)
        return u - 0.01 * change

    def step(values: Tensor, wind: Tensor, viscosity: Tensor) -> Tensor:
        u = Field(mesh, values, sides)
        before = Field(mesh, math.expand(wind, instance(mesh)), {k: math.vec(x=0.1, y=0) for k in sides})
        solve = Solve("scipy-direct", 1e-9, 1e-9, x0=u)
        return math.solve_linear(math.jit_compile_linear(momentum), u, solve, before, viscosity).values

    count = instance(mesh).volume
    values, wind = wrap(noise(count), instance(mesh)), wrap(noise(count, 2), instance(mesh), channel(vector="x,y"))
    viscosity = wrap(torch.tensor(0.02, dtype=torch.float64))
    block = ph.capture(step, values, wind, viscosity)
    plain = step(values, wind, viscosity)
    assert relative_error(block(values, wind, viscosity).native("cells"), plain.native("cells")) < 1e-10
    bound = block.bind(values, wind, viscosity)
    tensors = bound.flatten(values, wind, viscosity)
    check_products(bound.native, tensors, rounding=1e-9)
    found = torch.func.jvp(bound.native, tensors, tuple(torch.ones_like(t) for t in tensors))[1][0]
    ends = [bound.native(*(t + h for t in tensors))[0] for h in (1e-6, -1e-6)]
    assert relative_error(found, (ends[0] - ends[1]) / 2e-6) < 1e-6


@pytest.mark.parametrize("form", ["coo", "csr"])
@pytest.mark.parametrize("twice", [False, True])
def test_products_with_sparse_matrices(form: str, twice: bool) -> None:
    """One place may hold two entries."""
    places = [(0, 0), (0, 1), (1, 1), (2, 0), (2, 2), (2, 2) if twice else (1, 2)]

    def step(values: Tensor, y: Tensor) -> Tensor:
        indices = math.wrap(np.array(places), instance("entries"), channel(i="x,~x"))
        return math.sparse_tensor(indices, values, spatial(x=3) & dual(x=3), format=form) @ y

    values, y = wrap(noise(6), instance("entries")), wrap(noise(3, seed=1), spatial("x"))
    matrix = np.zeros((3, 3))
    np.add.at(matrix, tuple(np.array(places).T), noise(6).numpy())
    block = ph.capture(step, values, y)
    assert relative_error(block(values, y).native("x"), matrix @ noise(3, seed=1).numpy()) < 1e-14
    check_products(block.bind(values, y).native, block.bind(values, y).flatten(values, y))


# --- what stays as it was, and what is refused ---


def test_constant_matrices_are_solved_as_before() -> None:
    """Whether of numbers, of tensors in the closure, or of arguments that do not reach the matrix."""
    u, nu = cell_field(cell_values(0)), wrap(torch.tensor(0.1, dtype=torch.float64))
    for step, *more in (
        (lambda u: diffuse.implicit(u, 0.1, 0.7, TIGHT),),
        (lambda u: diffuse.implicit(u, nu, 0.7, TIGHT),),
        (lambda u, a: diffuse.implicit(a * u, 0.1, 0.7 + 0 * nu, TIGHT), wrap(torch.tensor(2.0, dtype=torch.float64))),
    ):
        block = ph.capture(step, u, *more)
        assert [type(m) for m in solves_of(block)] == [LinearSolve]
        with linear_solves():
            assert torch.equal(components(block(u, *more), ())[0], components(step(u, *more), ())[0])


def test_viscosities_that_are_not_finite() -> None:
    u, nu = cell_field(cell_values(0)), cell_field(viscosities(1))
    block = ph.capture(viscous, u, nu)
    with pytest.raises(ph.SolveError, match="the matrix of a linear solve holds"):
        block(u, nu * float("inf"))


def test_systems_that_are_not_square() -> None:
    def step(matrix: Tensor, y: Tensor) -> Tensor:
        return math.solve_linear(matrix, y, Solve("scipy-direct", x0=math.zeros(channel(j=3))))

    matrix, y = wrap(noise(4, 3), channel("i"), dual("j")), wrap(noise(4, seed=1), channel("i"))
    with pytest.raises((ph.CaptureError, ph.StateError)):
        ph.capture(step, matrix, y)


@pytest.mark.slow
def test_compiled() -> None:
    """By inductor, with gradients."""
    u, nu = cell_field(cell_values(0)), cell_field(viscosities(1))
    results = []
    for compiled in (False, True):
        block = ph.capture(viscous, u, nu, compile=compiled)
        bound = block.bind(u, nu)
        tensors = [t.clone().requires_grad_() for t in bound.flatten(u, nu)]
        (out,) = bound.native(*tensors)
        results.append((out.detach(), *torch.autograd.grad((out**2).sum(), tensors)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)
