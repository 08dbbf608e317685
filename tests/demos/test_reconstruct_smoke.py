"""The published smoke reconstruction against a loop by hand in plain PhiFlow."""

from __future__ import annotations

import pytest
import reconstruct_smoke as demo
import torch
from phi.torch.flow import Field, Solve, advect, batch, field, fluid, math, resample

import phi_hybrid as ph
from phi_hybrid.bridge import flatten

torch.set_num_threads(1)


def by_hand(velocity: Field, inflow: Field, steps: int) -> Field:
    """Plain PhiFlow, pressure by conjugate gradients to 1e-13."""
    smoke = 0 * inflow
    solve = Solve("CG", 1e-13, 1e-13, max_iterations=2000, rank_deficiency=0)
    for _ in range(steps):
        smoke = advect.mac_cormack(smoke, velocity, 1.0) + inflow
        lift = resample(smoke * math.vec(x=0.0, y=1.0), velocity)
        velocity = advect.semi_lagrangian(velocity, velocity, 1.0) + lift
        velocity = fluid.make_incompressible(velocity, (), solve)[0]
    return smoke


def compare(monkeypatch: pytest.MonkeyPatch, steps: int, iterations: int, rates: dict[int, float]) -> list[float]:
    """Gradient descent by hand next to `reconstruct`; `rates` are allowed errors from an iteration on."""
    monkeypatch.setattr(demo, "STEPS", steps)
    with math.precision(64):
        physics = ph.capture(demo.rise)
        air, inflow = demo.plumes()
        result, _ = demo.search(
            ph.capture(demo.rise), iterations, dict(demo.SEARCHES["gradient descent"], keep_path=True)
        )
        target = physics(air, inflow).plume[-1]
        velocity = air.with_values(math.expand(air.values, batch(plume=len(demo.PLACES))))
        slope = field.functional_gradient(
            lambda v: field.l2_loss(by_hand(v, inflow, steps) - target), "v", get_output=True
        )
        for n in range(iterations):
            loss, gradient = slope(velocity)
            gradient = gradient[0] if isinstance(gradient, (tuple, list)) else gradient
            tolerance = max(t for start, t in rates.items() if start <= n)
            assert demo.total(result)[n] == pytest.approx(float(loss.sum.detach()), rel=tolerance), n
            for found, expected in zip(flatten(result.path.iteration[n])[0], flatten(velocity)[0]):
                assert (found - expected).abs().max() < tolerance, n
            velocity = velocity - 1e-3 * gradient
    return demo.total(result)


def test_first_ten_iterations_are_those_of_plain_phiflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over two steps, so that it is quick."""
    losses = compare(monkeypatch, 2, 10, {0: 1e-9})
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_first_ten_iterations_of_the_published_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of interpolation jump between cells: 1e-13 of the solves has grown to 1e-8 after ten iterations."""
    compare(monkeypatch, 20, 10, {0: 1e-12, 1: 1e-10, 5: 1e-6})


@pytest.fixture(scope="module")
def rise() -> ph.PhysicsBlock:
    """Captured once for all tests, which takes longer than they do."""
    return ph.capture(demo.rise)


def test_first_losses_and_the_last_plume(rise: ph.PhysicsBlock) -> None:
    """298.3 as published, 291.45 and 276.07 as measured in plain PhiFlow; the last plume is its own target."""
    with math.precision(64):
        result, _ = demo.search(rise, 2, demo.SEARCHES["gradient descent"])
    assert demo.total(result) == pytest.approx([demo.PUBLISHED[0], 291.45, 276.07], abs=0.05)
    for component in flatten(result.state)[0]:
        assert component[-1].abs().max() == 0 and component[0].abs().max() > 0.01


def test_adam_is_below_the_published_loss_after_ten_iterations(rise: ph.PhysicsBlock) -> None:
    with math.precision(64):
        result, _ = demo.search(rise, 9, demo.SEARCHES["Adam"])
    assert demo.total(result)[9] < 0.85 * demo.PUBLISHED[9]


@pytest.mark.slow
def test_adam_stays_below_the_published_losses(rise: ph.PhysicsBlock) -> None:
    with math.precision(64):
        result, _ = demo.search(rise, 79, demo.SEARCHES["Adam"])
    for iteration, published in demo.PUBLISHED.items():
        assert demo.total(result)[iteration] < published + 0.05
