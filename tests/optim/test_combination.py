"""Combined gradients against their definitions in dense algebra, by hand, and the authors' own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phi_hybrid.optim import Combination, ConFIG, PCGrad


def gradients(losses: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Of lengths that differ by orders of magnitude, some against each other."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(losses, 7, generator=generator, dtype=dtype)
    found[-1] -= 3 * found[0]
    return found * 10.0 ** torch.arange(losses)[:, None]


def combined(rule: Combination, rows: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return rule(rows, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("losses", [1, 2, 3, 5])
def test_conflict_free_direction_by_its_definition(losses: int) -> None:
    rows = gradients(losses)
    found, g = combined(ConFIG(), rows).numpy(), rows.numpy()
    units = g / np.linalg.norm(g, axis=1, keepdims=True)
    direction = np.linalg.pinv(units) @ np.ones(losses)
    direction /= np.linalg.norm(direction)
    np.testing.assert_allclose(found, (g @ direction).sum() * direction, rtol=1e-10)
    cosines = units @ found / np.linalg.norm(found)
    assert np.ptp(cosines) < 1e-12 and cosines.min() > 0


@pytest.mark.parametrize("losses", [2, 3, 5])
def test_as_the_authors_compute_it(losses: int) -> None:
    theirs = pytest.importorskip("conflictfree.grad_operator").ConFIG_update
    rows = gradients(losses, seed=1, dtype=torch.float32)  # the only precision they take
    own, expected = combined(ConFIG(), rows), theirs(list(rows))
    assert (own - expected).norm() <= 1e-4 * expected.norm()


def test_single_precision_is_as_good_as_it_can_be() -> None:
    rows = gradients(3, dtype=torch.float32)
    torch.testing.assert_close(combined(ConFIG(), rows).double(), combined(ConFIG(), rows.double()), rtol=1e-4, atol=0)


def test_weights_change_the_length_alone() -> None:
    rows = gradients(3)
    own, weighted = combined(ConFIG(), rows), combined(ConFIG(), rows * torch.tensor([[1e3], [1.0], [1e-3]]))
    torch.testing.assert_close(own / own.norm(), weighted / weighted.norm(), rtol=1e-10, atol=1e-14)
    assert abs(own.norm() / weighted.norm() - 1) > 0.1


@pytest.mark.parametrize("rule", [ConFIG(), PCGrad()])
def test_edges(rule: Combination) -> None:
    g = gradients(2)
    torch.testing.assert_close(combined(rule, g[:1]), g[0])
    with_zero = torch.stack([g[0], torch.zeros(7, dtype=g.dtype), g[1]])
    torch.testing.assert_close(combined(rule, with_zero), combined(rule, g))
    assert not combined(rule, torch.zeros(3, 7)).any()
    assert combined(rule, torch.stack([g[0], -g[0]])).norm() <= 1e-12 * g[0].norm()
    same = combined(rule, torch.stack([g[0], g[0]]))
    torch.testing.assert_close(same, 2 * g[0])


def test_surgery_of_two_gradients_by_hand() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(
        combined(PCGrad(), torch.stack([a, b])), torch.tensor([0.5, 0.5]) + torch.tensor([0.0, 1.0])
    )
    torch.testing.assert_close(combined(PCGrad(), torch.stack([a, -b])), a - b)


def test_the_order_of_surgery_is_random_and_reproducible() -> None:
    rows = gradients(4, seed=2)
    found = [combined(PCGrad(), rows, seed) for seed in (0, 0, 1, 2, 3, 4)]
    assert torch.equal(found[0], found[1]) and any(not torch.equal(found[0], other) for other in found[2:])
