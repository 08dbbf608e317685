"""Pre-computed corrections against a dense least-squares solution, and one-step training on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases.chains import agree, force_at, make_data, make_solver, squares, step_by_hand, value_and_gradient
from cases.small import DT, equal, forced_step, line
from phi.torch.flow import Field, diffuse, math
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def optimum_of_slices(physics: Any, data: ph.Trajectories, piece: int) -> list[torch.Tensor]:
    """The same search, with states in a row that autograd slices and adds up."""
    block, scale, steps = ph.capture(physics), data.scale, len(data) * data.steps
    numbers = range(steps)

    def penalties(states: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        for chosen in (slice(n, n + piece) for n in range(0, steps, piece)):
            b = data.windows(1).collate([data.windows(1)[n] for n in numbers[chosen]])
            before, after = ([v[:, t].flatten(0, 1)[chosen] for v in states] for t in (slice(-1), slice(1, None)))
            made = b.bind(block).step(*before, *b.step_inputs.at(0))
            yield sum((((v - p) / s) ** 2).sum() for v, p, s in zip(after, made, scale))

    with torch.no_grad():
        factor = sum(v.numel() for v in data.states) / sum(map(float, penalties(list(data.states))))
    shifts = [torch.zeros_like(v).requires_grad_() for v in data.states]

    def shifted() -> list[torch.Tensor]:
        return [u + s * d.detach() for u, s, d in zip(data.states, scale, shifts)]

    def closure() -> torch.Tensor:
        states = [v.requires_grad_() for v in shifted()]
        loss = sum((d.detach() ** 2).sum() for d in shifts)
        for penalty in penalties(states):
            (factor * penalty).backward()
            loss = loss + factor * penalty.detach()
        for d, v, s in zip(shifts, states, scale):
            d.grad = 2 * d.detach() + s * v.grad
        return loss

    torch.optim.LBFGS(shifts, max_iter=8, history_size=10, line_search_fn="strong_wolfe").step(closure)
    return shifted()


@pytest.mark.parametrize(("piece", "kind"), [(1, "line"), (3, "line"), (512, "line"), (3, "faces")])
def test_pieces_are_slices_of_the_states(
    piece: int, kind: str, data: ph.Trajectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, though pieces do not end where trajectories do; also for states of several tensors."""
    monkeypatch.setattr("phi_hybrid.training.precompute.PIECE", piece)
    physics, own = (linear, data) if kind == "line" else (forced_step, make_data())
    found = ph.training.precompute_corrections(ph.capture(physics), own, 1.0, iterations=8)
    assert equal(found.states, optimum_of_slices(physics, own, piece))


class Counted(TorchDispatchMode):
    """Counts all values that operations write to memory of their own."""

    values = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = [t for t in tree_leaves(found) if isinstance(t, torch.Tensor)]
        self.values += sum(t.numel() for t in made if t.untyped_storage().data_ptr() not in given)
        return found


def test_work_grows_with_the_number_of_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi_hybrid.training.precompute.PIECE", 4)
    counts = []
    for steps in (16, 64):
        states = torch.rand(2, steps + 1, CELLS, 1, generator=torch.Generator().manual_seed(0))
        data = ph.Trajectories.from_tensors(states, line(0, CELLS))
        with Counted() as counted:
            ph.training.precompute_corrections(lambda u: 0.9 * u, data, iterations=1)
        counts.append(counted.values)
    assert counts[1] < 4.5 * counts[0]


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
