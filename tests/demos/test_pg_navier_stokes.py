"""The demo of physical gradients in flows: samples, what each entrant wants, training."""

from __future__ import annotations

import math

import pg_navier_stokes as demo
import pytest
import torch
from pg_navier_stokes import BATCH
from smoke_inversion import (
    CHUNK,
    Network,
    Simulation,
    Smoke,
    physical_gradient,
    plain_gradient,
    samples,
    supervised,
)
from smoke_results import curves, errors, pictures, seconds_to

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return Simulation(32)


@pytest.fixture(scope="module")
def smoke(simulation: Simulation) -> Smoke:
    return samples(simulation, 2 * CHUNK, seed=0)


def test_samples_are_bars_in_incompressible_flow(smoke: Smoke) -> None:
    u, v = smoke.velocity.unbind(1)
    assert (u.roll(-1, 1) - u + v.roll(-1, 2) - v).abs().max() < 1e-5
    # stream function ω·R²·exp(−r²/2R²): twice ω is the vorticity in the middle, the largest
    vorticity = v - v.roll(1, 1) - u + u.roll(1, 2)
    largest = vorticity.abs().flatten(1).amax(1)
    assert (largest > 0.9 * 2 * 0.2).all() and (largest < 2 * 0.8).all()
    area = smoke.before.sum((1, 2))  # (2·half)² of 9…14 by 4…7 cells of 64, soft edges taking as much as they give
    assert (area > 36 * 0.9).all() and (area < 98 * 1.1).all()


def test_markers_are_carried_by_the_flow(simulation: Simulation) -> None:
    """Uniform flow of 2 cells per time for t = 2, half a cell per step."""
    marker = samples(simulation, CHUNK, seed=1).before
    velocity = torch.zeros(CHUNK, 2, 32, 32)
    velocity[:, 0] = 2.0
    moved = simulation.forward(velocity, marker)[1]
    wave, expected = (torch.fft.fft2(m)[:, 1, 0] for m in (moved, marker.roll(4, 1)))
    damping = math.cos(math.pi / 32) ** 8  # of the longest wave, by interpolation halfway between cells
    torch.testing.assert_close(wave, damping * expected, rtol=1e-4, atol=1e-3)


def test_what_the_entrants_want(simulation: Simulation, smoke: Smoke) -> None:
    part = smoke[:CHUNK]
    guess = (0.7 * part.velocity).requires_grad_()
    found = simulation.forward(guess, part.before)[1]
    (adjoint,) = torch.autograd.grad(((found - part.after) ** 2).sum() / 2, guess)
    torch.testing.assert_close(plain_gradient(simulation, part).update(guess).update, -adjoint, rtol=1e-3, atol=1e-3)
    wanted = supervised(simulation, part).update(guess).update
    torch.testing.assert_close(wanted, part.velocity - guess.detach())


def test_physical_gradients_from_rest(simulation: Simulation, smoke: Smoke) -> None:
    """A single update carries the marker most of the way."""
    part = smoke[:CHUNK]
    update = physical_gradient(simulation, part).update(torch.zeros_like(part.velocity)).update
    before, after = errors(simulation, 0 * update, part), errors(simulation, update, part)
    assert before == pytest.approx({"velocity": 1.0, "marker": 1.0})
    assert after["marker"] < 0.3 and after["velocity"] < 0.8


def test_physical_gradients_vanish_at_the_solution(simulation: Simulation, smoke: Smoke) -> None:
    """As far as the flow comes back when it is run backwards."""
    part = smoke[:CHUNK]
    update = physical_gradient(simulation, part).update(part.velocity).update
    assert update.norm() < 0.15 * part.velocity.norm()


@pytest.mark.parametrize("name", ["pg_then_adam", "supervised"])
def test_training_reduces_the_errors(
    name: str, simulation: Simulation, smoke: Smoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "HELD_OUT", BATCH)
    torch.manual_seed(0)
    network = Network(simulation, hidden=32)
    history = demo.train(simulation, network, smoke, demo.ENTRANTS[name], 1.0, looks=2, seed=0)
    assert history["velocity"][-1] < history["velocity"][0] and len({len(v) for v in history.values()}) == 1
    assert history["seconds"][0] == history["updates"][0] == 0 and history["updates"][-1] > 0


def test_memory_recalls_what_physical_gradients_found(simulation: Simulation, smoke: Smoke) -> None:
    memory, chosen = demo.Memory(smoke, seed=0), torch.arange(3, 3 + BATCH)
    guess = 0.5 * smoke[chosen].velocity
    step = supervised(simulation, smoke[chosen]).update(guess)  # finds the truth
    memory.keep(chosen, step)
    for _ in range(3):
        recalled, loss = memory.recall()
        assert len(recalled) == BATCH and loss(recalled.velocity) < 1e-8
        expected = ((0.5 * recalled.velocity) ** 2).sum() / 2 / BATCH
        torch.testing.assert_close(loss(0.5 * recalled.velocity), expected)


def test_search_of_a_single_sample(simulation: Simulation, smoke: Smoke) -> None:
    seconds = demo.alone(simulation, smoke[:1], 0.5)
    assert 0 < seconds < math.inf
    assert demo.alone(simulation, smoke[:1], 0.0, iterations=1) == math.inf  # no break-even there
    row = demo.break_even(simulation, smoke, {"marker": 0.5, "seconds": 10.0}, uses=1)
    assert row["break_even"] == pytest.approx(10.0 / row["alone_seconds"])


def test_figures_and_times(simulation: Simulation, smoke: Smoke, tmp_path: object) -> None:
    history = {"seconds": [0.0, 1.0, 2.0], "updates": [0, 3, 6], "marker": [1.0, 0.5, 0.3], "velocity": [1.0, 0.9, 0.8]}
    assert seconds_to(history, {"marker": 0.6}) == {"seconds_to_adam": 1.0}
    assert seconds_to(history, {"marker": 0.1}) == {"seconds_to_adam": math.inf}
    curves({"adam": history}).savefig(tmp_path / "a.png")
    shown = {"true": smoke.velocity[-1:], "pg": 0.5 * smoke.velocity[-1:]}
    pictures(simulation, smoke[-1:], shown).savefig(tmp_path / "b.png")
