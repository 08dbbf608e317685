"""Plain code as a step: solvers of other libraries through which no gradient passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from phi.torch.flow import PERIODIC, CenteredGrid, Field, Noise, batch, diffuse

import phi_hybrid as ph
from phi_hybrid.bridge import flatten, unflatten


def by_numpy(u: Field) -> Field:
    (values,), layout = flatten(u)
    smooth = (np.roll(values.detach().numpy(), 1, -1) + values.detach().numpy()) / 2
    return unflatten(layout, (torch.from_numpy(smooth),))


def by_phiflow(u: Field) -> Field:
    return diffuse.explicit(u, 0.1, 0.1)


def trained(step: Callable, objective: ph.Unrolled) -> float:
    data = ph.Trajectories.generate(step, CenteredGrid(Noise(batch(b=2)), PERIODIC, x=8), 4, progress=False)
    torch.manual_seed(0)
    solver = ph.HybridSolver(step, torch.nn.Conv1d(1, 1, 3, padding=1))
    optimizer = torch.optim.Adam(solver.parameters())
    return ph.Trainer(solver, data, objective, optimizer=optimizer, batch_size=2, progress=False).fit(1)["loss"][-1]


def test_unrolling_a_step_without_a_gradient_warns() -> None:
    with pytest.warns(UserWarning, match=r"no gradient passes the step by_numpy.*Pushforward"):
        trained(by_numpy, ph.Unrolled(3))


@pytest.mark.parametrize(
    "step, objective",
    [
        (by_numpy, ph.Unrolled(1)),
        (by_numpy, ph.training.Pushforward(3)),
        (by_numpy, ph.Unrolled(3, gradient=ph.gradient.Detached())),
        (by_phiflow, ph.Unrolled(3)),
    ],
    ids=["single steps", "pushforward", "detached", "PhiFlow"],
)
def test_nothing_to_warn_of(step: Callable, objective: ph.Unrolled) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert np.isfinite(trained(step, objective))


def test_one_step_without_a_gradient_trains_as_if_it_had_one() -> None:
    """Its input does not depend on weights: gradients of Unrolled(1) are those behind the step alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        (values,), layout = flatten(CenteredGrid(Noise(batch(b=2)), PERIODIC, x=8))
        solver = ph.HybridSolver(by_numpy, torch.nn.Conv1d(1, 1, 3, padding=1))
        bound = solver.bind(unflatten(layout, (values,)))
        (after,) = bound.native(values)
        after.sum().backward()
    assert solver.network.bias.grad.item() == pytest.approx(values.numel())
