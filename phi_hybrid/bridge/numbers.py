"""Real and complex numbers of a state alike: an imaginary part is never dropped."""

from __future__ import annotations

import torch


def in_double(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in float64, or in complex128."""
    return tensor.to(torch.complex128) if tensor.is_complex() else tensor.double()


def square(tensor: torch.Tensor) -> torch.Tensor:
    """|x|², real also of complex numbers x."""
    return tensor.real**2 + tensor.imag**2 if tensor.is_complex() else tensor**2
