"""Pre-computed corrections against a dense least-squares solution, and one-step training on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases.chains import agree, force_at, make_data, make_solver, squares, step_by_hand, value_and_gradient
from cases.small import DT, equal, forced_step, line
from phi.torch.flow import Field, diffuse, math

import phi_hybrid as ph

CELLS, STEPS = 6, 4


def linear(u: Field, f: Field) -> Field:
    """Diffusion with a force."""
    return diffuse.explicit(u, 0.2, DT) + DT * f


@pytest.fixture(scope="module")
def data() -> ph.Trajectories:
    """The reference decays and feels twice the force."""
    with math.precision(64):
        u, f = (line(n, CELLS, torch.float64, b=2, **t) for n, t in ((0, {}), (1, {"time": STEPS})))
        return ph.Trajectories.generate(lambda u, f: 0.9 * linear(u, f) + DT * f, u, STEPS, (f,), progress=False)


def residuals(v: torch.Tensor, data: ph.Trajectories) -> torch.Tensor:
    """vₙ₊₁ − P(vₙ), written with rolls on a periodic line of length 2."""
    (f,), dx = data.inputs, 2.0 / CELLS
    u = v[:, :-1]
    laplace = (u.roll(1, 2) - 2 * u + u.roll(-1, 2)) / dx**2
    return v[:, 1:] - (u + DT * 0.2 * laplace + DT * f)


def dense_optimum(data: ph.Trajectories, weight: float) -> torch.Tensor:
    """The loss is ‖A·v − b‖²; its minimum by least squares."""
    (true,), sigma = data.states, float(data.states[0].std())
    unit = (residuals(true, data) ** 2).mean() ** 0.5

    def rows(v: torch.Tensor) -> torch.Tensor:
        near = (v - true) / sigma / true.numel() ** 0.5
        small = weight**0.5 * residuals(v, data) / unit / residuals(true, data).numel() ** 0.5
        return torch.cat([near.ravel(), small.ravel()])

    zero = torch.zeros_like(true)
    matrix = torch.func.jacrev(rows)(zero).flatten(1)
    return torch.linalg.lstsq(matrix, -rows(zero)).solution.view_as(true)


@pytest.mark.parametrize("weight", [0.01, 3.0])
def test_least_squares_by_a_dense_matrix(weight: float, data: ph.Trajectories) -> None:
    found = ph.training.precompute_corrections(ph.capture(linear), data, weight)
    expected = dense_optimum(data, weight)
    (true,) = data.states
    assert (found.states[0] - expected).norm() < 1e-4 * (expected - true).norm()
    assert equal(found.inputs, data.inputs) and found.state_layout == data.state_layout
    assert not equal(found.states, data.states)


def test_imaginary_states_are_corrected_as_real_ones() -> None:
    real = ph.Trajectories.generate(lambda u: 0.9 * u, line(0, CELLS, torch.float64, b=2), STEPS, progress=False)
    turned = replace(real, states=(real.states[0] * 1j,))
    expected, found = (ph.training.precompute_corrections(lambda u: 0.5 * u, d).states[0] for d in (real, turned))
    torch.testing.assert_close(found, expected * 1j, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found, turned.states[0])


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_do_not_matter(unit: float, data: ph.Trajectories) -> None:
    """Nor does the optimisation end sooner in large ones, where gradients are small."""
    scaled = replace(data, states=(unit * data.states[0],), inputs=(unit * data.inputs[0],))
    expected = ph.training.precompute_corrections(linear, data).states[0]
    found = ph.training.precompute_corrections(linear, scaled).states[0] / unit
    assert (found - expected).norm() < 1e-5 * (expected - data.states[0]).norm()


def test_the_number_of_trajectories_does_not_matter(data: ph.Trajectories) -> None:
    many = replace(data, states=(data.states[0].repeat(200, 1, 1, 1),), inputs=(data.inputs[0].repeat(200, 1, 1, 1),))
    expected = ph.training.precompute_corrections(linear, data, 1.0).states[0]
    found = ph.training.precompute_corrections(linear, many, 1.0).states[0][-2:]
    assert (found - expected).norm() < 1e-3 * (expected - data.states[0]).norm()


def test_a_larger_weight_makes_smaller_corrections(data: ph.Trajectories) -> None:
    made = [ph.training.precompute_corrections(linear, data, w).states[0] for w in (0.01, 1.0, 10.0)]
    sizes = [float(residuals(v, data).norm()) for v in made]
    distances = [float((v - data.states[0]).norm()) for v in made]
    assert sizes == sorted(sizes, reverse=True) and distances == sorted(distances)


def test_no_weight_gives_the_data(data: ph.Trajectories) -> None:
    assert equal(ph.training.precompute_corrections(linear, data, 0).states, data.states)


def test_nothing_to_correct(data: ph.Trajectories) -> None:
    """The data obey the physics already."""
    with math.precision(64):
        own = ph.Trajectories.generate(
            linear, line(0, CELLS, torch.float64, b=2), STEPS, data.step_inputs, progress=False
        )
    found = ph.training.precompute_corrections(linear, own)
    torch.testing.assert_close(found.states[0], own.states[0], rtol=1e-12, atol=1e-12)


def test_one_step_training_on_them_by_hand() -> None:
    """From vₙ to vₙ₊₁, on the faces of a closed box with nonlinear physics."""
    block, data = ph.capture(forced_step), make_data()
    made = ph.training.precompute_corrections(block, data, 1.0, iterations=20)
    solver, dataset = make_solver(block, data), made.windows(1)
    b = dataset.collate([dataset[n] for n in (0, 7, 13)])
    picked = [s[[0, 1, 2], [0, 2, 3]] for s in made.states]
    targets = [s[[0, 1, 2], [1, 3, 4]] for s in made.states]
    assert equal(b.initial, picked)
    loss = squares(step_by_hand(solver, picked, force_at(b, 0))[0], targets, [float(s.std()) for s in made.states])
    expected = [loss.detach(), *torch.autograd.grad(loss, list(solver.parameters()))]
    assert agree(value_and_gradient(ph.Unrolled(1), solver, b), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(weight=-1.0), "weight = -1.0"),
        (dict(weight=float("nan")), "weight = nan"),
        (dict(iterations=0), "iterations = 0"),
    ],
)
def test_values_out_of_range(settings: dict, message: str, data: ph.Trajectories) -> None:
    with pytest.raises(ph.StateError, match=message):
        ph.training.precompute_corrections(linear, data, **settings)


def test_physics_that_becomes_infinite(data: ph.Trajectories) -> None:
    with pytest.raises(ph.NonFiniteError, match="NaN or infinite"):
        ph.training.precompute_corrections(lambda u, f: u * 1e200 * u, data)


def test_data_without_the_inputs_of_the_physics() -> None:
    bare = ph.Trajectories.generate(lambda u: u * 0.9, line(0, CELLS, b=2), STEPS, progress=False)
    with pytest.raises(ph.StateError, match="1 by position"):
        ph.training.precompute_corrections(linear, bare)
