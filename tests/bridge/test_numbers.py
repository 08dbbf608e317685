"""Real and complex numbers alike."""

from __future__ import annotations

import pytest
import torch
from cases.small import noise

from phi_hybrid.bridge.numbers import in_double, square

COMPLEX = torch.complex(noise(40, seed=0), noise(40, seed=1))


@pytest.mark.parametrize(
    ("given", "kind"), [(noise(40), torch.float64), (COMPLEX, torch.complex128), (torch.arange(4), torch.float64)]
)
def test_no_part_of_a_value_is_lost_in_double_precision(given: torch.Tensor, kind: torch.dtype) -> None:
    assert in_double(given).dtype == kind and torch.equal(in_double(given).to(given), given)


def test_squares_of_moduli_and_their_gradient() -> None:
    """2z along z, as torch has it for real functions of complex numbers; real ones to the last bit."""
    assert torch.equal(square(noise(40)), noise(40) ** 2)
    z = COMPLEX.clone().requires_grad_()
    found = square(z)
    torch.testing.assert_close(found, z.abs() ** 2)
    found.sum().backward()
    torch.testing.assert_close(z.grad, 2 * COMPLEX)
