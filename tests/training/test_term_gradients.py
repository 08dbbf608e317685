"""Trainings that combine the gradients of several losses, against updates by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases.small import SmallNet, equal, forced_data

import phi_hybrid as ph
from phi_hybrid import gradient, losses
from phi_hybrid.optim import HIG, Combination, ConFIG, PCGrad

STEPS = 3
TWO = ph.losses.Losses({"state": losses.L2(), "sum": (0.1, lambda states, batch: (states[0].sum(2) ** 2).mean())})
UNTOUCHED = ph.losses.Losses({"state": losses.L2(), "none": lambda states, batch: torch.ones(())})


def trainer(
    block: ph.PhysicsBlock, data: ph.Trajectories, combine: Any, terms: Any = TWO, mode: Any = None, **settings: Any
) -> ph.Trainer:
    solver = ph.HybridSolver(block, SmallNet(2, 1, 1))
    optimizer = settings.pop("optimizer", torch.optim.SGD)(solver.parameters(), 1.0)
    objective = ph.Unrolled(STEPS, losses=terms, gradient=mode or gradient.Full())
    settings = {"batch_size": 4, "progress": False, **settings}
    return ph.Trainer(solver, data, objective, optimizer=optimizer, combine=combine, **settings)


def by_hand(made: ph.Trainer, rule: Combination, size: int = 4) -> list[torch.Tensor]:
    """Weights after one step of gradient descent along the combined gradient of two losses."""
    solver, terms = made.solver, made.objective.losses
    window = made.windows.shuffled(0, size, 0)
    bound, inputs = window.bind(solver), window.step_inputs
    states, state = [], bound.state
    for n in range(STEPS):
        state = bound.step(*state, *inputs.at(n))
        states.append(state[0])
    found = terms.contributions((torch.stack(states, 1),), (), window)
    weights = list(solver.parameters())
    rows = [torch.autograd.grad(value, weights, retain_graph=True) for value in found.values()]
    rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    total = rule(rows, torch.Generator().manual_seed(0))
    return [w.detach() - g.view_as(w) for w, g in zip(weights, total.split([w.numel() for w in weights]))]


@pytest.mark.parametrize("rule", [ConFIG(), PCGrad(), lambda g, generator: g.sum(0)], ids=["config", "surgery", "sum"])
def test_an_update_by_hand(rule: Combination, block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    made = trainer(block, data, rule)
    expected = by_hand(made, rule)
    made.fit(1)
    for own, its in zip(made.solver.parameters(), expected):
        torch.testing.assert_close(own.detach(), its, rtol=1e-5, atol=1e-7)
    assert set(made.history["contributions"]) == {"state", "sum"}


def test_parts_of_an_update_are_averaged_before(block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    made = trainer(block, data, ConFIG(), batch_size=2, accumulate=3)
    expected = by_hand(made, ConFIG(), 6)
    made.fit(1)
    for own, its in zip(made.solver.parameters(), expected):
        torch.testing.assert_close(own.detach(), its, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", [gradient.Checkpointed(2), gradient.Truncated(2), gradient.SignConsistent()], ids=repr)
def test_the_sum_is_the_usual_training_in_every_mode(
    mode: gradient.GradientMode, block: ph.PhysicsBlock, data: ph.Trajectories
) -> None:
    if isinstance(mode, gradient.SignConsistent):  # compares signs of the gradient of each loss
        terms = UNTOUCHED
    else:
        terms = TWO
    usual, summed = (trainer(block, data, rule, terms, mode) for rule in (None, lambda g, generator: g.sum(0)))
    usual.fit(2), summed.fit(2)
    for own, its in zip(summed.solver.parameters(), usual.solver.parameters()):
        torch.testing.assert_close(own, its, rtol=1e-4, atol=1e-6)


def test_losses_of_no_parameter_have_no_say(block: ph.PhysicsBlock, data: ph.Trajectories) -> None:
    usual, own = (trainer(block, data, rule, UNTOUCHED) for rule in (None, ConFIG()))
    usual.fit(1), own.fit(1)
    for a, b in zip(own.solver.parameters(), usual.solver.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_clip_and_resume(block: ph.PhysicsBlock, data: ph.Trajectories, tmp_path: Path) -> None:
    settings = {"clip": 1e-3, "optimizer": torch.optim.Adam}
    whole = trainer(block, data, PCGrad(), **settings)
    whole.fit(8)
    assert len(whole.history["clipped"]) == 8
    trainer(block, data, PCGrad(), checkpoint=tmp_path / "a.pt", **settings).fit(3)
    resumed = trainer(block, data, PCGrad(), **settings).resume(tmp_path / "a.pt")
    resumed.fit(8)
    assert equal(list(whole.solver.parameters()), list(resumed.solver.parameters()))
    with pytest.raises(ph.StateError, match="another training.*'combine'"):
        trainer(block, data, ConFIG(), **settings).resume(tmp_path / "a.pt")


def test_wrong_uses(block: ph.PhysicsBlock) -> None:
    data = forced_data(2)
    for combine in ("ConFIG", ConFIG, 3):
        with pytest.raises(ph.StateError, match=r"combine = .*ConFIG\(\)"):
            trainer(block, data, combine)
    with pytest.raises(ph.StateError, match="combine is called with .gradients, generator"):
        trainer(block, data, lambda gradients: gradients[0])
    for wrong in (lambda g, generator: g, lambda g, generator: None):
        with pytest.raises(ph.StateError, match=r"result of .*one gradient, a tensor of shape \(\d+,\)"):
            trainer(block, data, wrong).fit(1)
    for optimizer in (torch.optim.LBFGS, lambda p, lr: HIG(SmallNet(2, 1, 1), lr)):
        with pytest.raises(ph.StateError, match="ConFIG.*leave it out"):
            trainer(block, data, ConFIG(), optimizer=optimizer)
