"""Muon against singular values, against torch for matrices, and against Adam for the rest."""

from __future__ import annotations

import pytest
import torch
from muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_singular_vectors_stay_and_singular_values_become_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonal(1e-3 * matrix) @ v.T
    values = found.diagonal()
    assert 0.65 < values.min() and values.max() < 1.25
    torch.testing.assert_close(found, torch.diag(values))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_kernels_move_like_matrices_in_torch() -> None:
    """Which calculates in bfloat16."""
    torch.manual_seed(1)
    kernel = torch.nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))
    matrix = torch.nn.Parameter(kernel.detach().reshape(8, 36).clone())
    settings = dict(momentum=0.95, nesterov=True, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    own, known = Muon([kernel], lr=0.1), torch.optim.Muon([matrix], lr=0.1, **settings)
    before = matrix.detach().clone()
    for _ in range(3):
        kernel.grad = torch.randn(8, 4, 3, 3)
        matrix.grad = kernel.grad.reshape(8, 36).clone()
        own.step()
        known.step()
    moved, expected = kernel.detach().reshape(8, 36) - before, matrix.detach() - before
    assert (moved - expected).norm() < 0.02 * expected.norm()


def test_biases_move_by_adam() -> None:
    torch.manual_seed(2)
    bias = torch.nn.Parameter(torch.randn(7))
    copy = torch.nn.Parameter(bias.detach().clone())
    own, known = Muon([bias], lr=0.1), torch.optim.Adam([copy], 0.1, betas=(0.9, 0.99), eps=1e-10)
    for _ in range(3):
        bias.grad = torch.randn(7)
        copy.grad = bias.grad.clone()
        own.step()
        known.step()
    torch.testing.assert_close(bias, copy)


def test_a_step_takes_a_closure_and_goes_on_from_its_state() -> None:
    def closure() -> torch.Tensor:
        kernel.grad = None
        loss = (kernel - 1).square().sum()
        loss.backward()
        return loss

    kernel = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = Muon([kernel], lr=0.1)
    assert optimizer.step(closure) == 6.0
    other = Muon([kernel], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.state[kernel]["mean"], optimizer.state[kernel]["mean"])
