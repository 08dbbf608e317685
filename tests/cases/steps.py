"""PhiFlow steps to capture, at module level so that blocks can be pickled, and plain PhiFlow run on native tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from phi.torch.flow import Field, advect, diffuse, math

from cases.states import component_values, field_of, noise


def burgers(u: Field) -> Field:
    return diffuse.explicit(advect.semi_lagrangian(u, u, 0.1), 0.02, 0.1)


def viscous(u: Field, nu: Any) -> Field:
    return diffuse.explicit(u, nu, 0.1)


class Model(torch.nn.Module):
    """One trainable number between two physics steps."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block
        self.gain = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.block.native(*(self.gain * t for t in self.block.native(*tensors)))


SCHEMES: dict[str, Callable[[Field], Field]] = {
    "semi_lagrangian": lambda u: advect.semi_lagrangian(u, u, 0.1),
    "semi_lagrangian_rk4": lambda u: advect.semi_lagrangian(u, u, 0.1, integrator=advect.rk4),
    "semi_lagrangian_finite_rk4": lambda u: advect.semi_lagrangian(u, u, 0.1, integrator=advect.finite_rk4),
    "mac_cormack": lambda u: advect.mac_cormack(u, u, 0.1),
    "mac_cormack_rk4": lambda u: advect.mac_cormack(u, u, 0.1, correction_strength=0.8, integrator=advect.rk4),
    "differential": lambda u: u + 0.1 * advect.differential(u, u),
    "differential_order4": lambda u: u + 0.1 * advect.differential(u, u, order=4),
    "explicit": lambda u: diffuse.explicit(u, 0.02, 0.1, substeps=2),
    "explicit_order4": lambda u: diffuse.explicit(u, 0.02, 0.1, substeps=2, order=4),
    "finite_difference": lambda u: u + 0.1 * diffuse.finite_difference(u, 0.02),
    "fourier": lambda u: diffuse.fourier(u, 0.02, 0.1),
}

DIFFUSION = {"explicit", "explicit_order4", "finite_difference", "fourier"}


def known_to_fail(scheme: str, placement: str, kind: str, dims: int) -> bool:
    """Cases in which two steps of plain PhiFlow 3.4 raise."""
    if scheme == "fourier":
        return kind != "periodic"
    if scheme.endswith("order4") and dims == 1:
        return placement == "staggered"  # no fourth-order stencils on lines of faces
    if scheme.endswith("order4") and kind == "inflow":
        return True  # nor at boundaries that hold a vector
    if placement == "staggered" and dims == 1:  # results have a dimension too many, see tests/test_compat.py
        return scheme == "differential" and kind != "periodic"
    if placement == "staggered" and dims == 3 and kind == "inflow":
        return scheme in ("explicit", "finite_difference")
    return False


def eager(
    step: Callable[[Field], Field], leaves: Sequence[torch.Tensor], placement: str, kind: str, dims: int, steps: int
) -> tuple[list[torch.Tensor], Field]:
    """Plain PhiFlow on a field with one batch dim `b`, in the precision of its values: tensors and field."""
    with math.precision(torch.finfo(leaves[0].dtype).bits):
        u = field_of(leaves, placement, kind, dims, ("b",))
        for _ in range(steps):
            u = step(u)
        return component_values(u, "b"), u


def vector_jacobian_product(
    outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], seed: int = 7
) -> list[torch.Tensor]:
    """Gradient of Σ w·output with random weights w."""
    weights = [noise(*o.shape, seed=seed + n, dtype=o.dtype) for n, o in enumerate(outputs)]
    return list(torch.autograd.grad(list(outputs), list(inputs), weights))
