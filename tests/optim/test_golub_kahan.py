"""The matrix-free engine against decompositions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases.hig import Task, relative
from phi.math import batch, zeros

import phi_hybrid as ph
from phi_hybrid.optim import HIG, Closure, Cutoff, Dense, GolubKahan, Gram, Smooth, Structured
from phi_hybrid.pde import poisson
from phi_hybrid.pde.oscillators import Oscillators

torch.set_num_threads(1)


def smooth_update(task: Task, kappa: float, rcond: float) -> np.ndarray:
    """−Jᵀ (J·Jᵀ + (rcond·σ_max)²)^(−(1+κ)/2) g from NumPy's decomposition, per sample."""
    scale = len(task.x) ** -0.5
    u, sigma, vt = np.linalg.svd(task.jacobian() * scale, full_matrices=False)
    weights = sigma * (sigma**2 + (rcond * sigma[0]) ** 2) ** (-(1 + kappa) / 2)
    return -vt.T @ (weights * (u.T @ task.cotangent() / scale))


@pytest.mark.parametrize(("samples", "kappa"), [(2, 0.5), (20, 0.5), (6, -1.0), (6, 1.0)])
def test_run_to_the_end_it_is_exact(samples: int, kappa: float) -> None:
    """More and fewer outputs than parameters (44)."""
    task = Task(samples)
    expected = smooth_update(task, kappa, 1e-2)
    moved = task.moved(HIG(task.net, 1.0, kappa, Smooth(1e-2), engine=GolubKahan(1e-12, memory=0)))
    assert relative(moved, expected) < 1e-8
    task.target = task.outputs().detach()  # nothing to be gained
    assert np.all(task.moved(HIG(task.net, 1.0, kappa, Smooth(), engine=GolubKahan(memory=0))) == 0)


def test_the_error_is_estimated() -> None:
    """Of the update of a network behind a Laplacian, whose spectrum falls off slowly; single precision."""
    closure, net = laplace_task(samples=16)
    exact = direction(net, closure, Smooth(1e-3), Structured())
    for tolerance in (0.1, 0.001):
        optimizer = HIG(net, 0.0, 0.5, Smooth(1e-3), engine=GolubKahan(tolerance, memory=0))
        optimizer.step(closure)
        found = torch.cat([d.flatten().double() for d in optimizer.last.direction])
        error = float((found - exact).norm() / exact.norm())
        assert error < 2 * tolerance and optimizer.last.error < tolerance
        assert optimizer.last.kept < 900  # of 1024


def test_update_on_the_jacobian_of_controlled_oscillators() -> None:
    """24 steps of physics; singular values over five orders of magnitude; within 2 % of the dense update."""
    chain = Oscillators()
    block, states = ph.capture(chain.controlled), chain.random_states(16, 0)
    block.flatten(states, zeros(batch(time=24, trajectory=16)))
    start = ph.bridge.flatten(states)[0][0]
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 20), torch.nn.Tanh(), torch.nn.Linear(20, 24))
    net.to(start.dtype)
    closure = Closure(
        lambda: block.native(start, net(start).T)[0], lambda y: ((y - start) ** 2).flatten(1).sum(1).mean()
    )
    for rcond in (1e-2, 1e-4):
        dense = direction(net, closure, Smooth(rcond), Structured())
        found = direction(net, closure, Smooth(rcond), GolubKahan(memory=0))
        assert float((found - dense).norm() / dense.norm()) < 0.02


def test_a_hard_cutoff_is_refused() -> None:
    task = Task()
    with pytest.raises(ph.StateError, match=r"Cutoff\(.*Smooth"):
        HIG(task.net, 1.0, 0.5, Cutoff(1e-3), engine=GolubKahan()).step(task.closure)


def test_too_few_iterations_are_said() -> None:
    closure, net = laplace_task(samples=16)
    with pytest.warns(UserWarning, match="30 iterations"):
        HIG(net, 0.0, 0.5, Smooth(1e-5), engine=GolubKahan(iterations=30, memory=0)).step(closure)


def laplace_task(samples: int) -> tuple[Closure, torch.nn.Module]:
    laplace = ph.capture(poisson.laplace)
    f = laplace.flatten(poisson.noise(poisson.square(8), samples, 0))[0]
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
    return Closure(lambda: laplace.native(net(f).view_as(f))[0], lambda y: ((y - f) ** 2).flatten(1).sum(1).mean()), net


def direction(net: torch.nn.Module, closure: Closure, filter: Smooth, engine: object) -> torch.Tensor:
    optimizer = HIG(net, 0.0, 0.5, filter, engine=engine)
    optimizer.step(closure)
    return torch.cat([d.flatten().double() for d in optimizer.last.direction])


def test_cutoff_is_relative_to_the_largest_of_all_singular_values() -> None:
    """J = diag(100, 1), a loss of the second output only: (σ² + 10²)^(−1), not (σ² + 0.1²)^(−1)."""
    net = torch.nn.Linear(1, 2, bias=False).double()
    x, gains = torch.ones(1, 1, dtype=torch.float64), torch.tensor([100.0, 1.0], dtype=torch.float64)
    closure = Closure(lambda: net(x) * gains, lambda y: (y[:, 1] - 2).square().mean())
    dense = direction(net, closure, Smooth(0.1), Dense())
    found = direction(net, closure, Smooth(0.1), GolubKahan(memory=0))
    torch.testing.assert_close(found, dense, rtol=1e-6, atol=1e-12)


def test_few_outputs_go_by_rows() -> None:
    """They are as many backward passes as iterations, but side by side: exactly, if there is memory for it."""
    closure, net = laplace_task(samples=1)
    taken = {memory: HIG(net, 0.0, 0.5, Smooth(), engine=GolubKahan(memory=memory)) for memory in (2**28, 0)}
    for optimizer in taken.values():
        optimizer.step(closure)
    assert taken[2**28].last.error == 0.0 and len(taken[2**28].last.singular_values) == 64
    chosen = [type(next(iter(optimizer._chosen.values()))) for optimizer in taken.values()]
    assert chosen[0] in (Gram, Structured) and chosen[1] is GolubKahan


def test_rcond_below_the_precision_of_the_outputs() -> None:
    closure, net = laplace_task(samples=1)
    with pytest.raises(ph.StateError, match=r"rcond = 1e-07.*Smooth\(1e-3\)"):
        HIG(net, rcond=Smooth(1e-7), engine=GolubKahan()).step(closure)
