"""Newton's method that cannot climb: Δx = −|H|⁻¹·∇φ (saddle-free Newton, Dauphin et al. 2014, arXiv 1406.2572).

φ(x) = −⟨Δy, f(x)⟩ is the function that Δy wants to be small: the loss itself where f is the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from phi_hybrid.bridge.checks import require_count, require_instance
from phi_hybrid.errors import StateError
from phi_hybrid.optim.filters import require_nonnegative
from phi_hybrid.optim.linearization import Linearization, finite_derivatives
from phi_hybrid.optim.rules import Function, Pullback
from phi_hybrid.optim.vectors import Tensors, as_tuple, pack, probe, unpack


@dataclass(frozen=True)
class Clipped:
    """Inverse curvature 1/max(|h|, floor, rcond·|h|_max): along small ones the step is that of the smallest allowed one.

    Args:
        rcond: smallest |h| that is used, relative to the largest of the sample; 1e-6 by default.
        floor: smallest |h| that is used; 0 by default.
    """

    rcond: float = 1e-6
    floor: float = 0.0

    def __post_init__(self) -> None:
        require_nonnegative("rcond", self.rcond)
        require_nonnegative("floor", self.floor)

    def __call__(self, curvature: torch.Tensor) -> torch.Tensor:
        size = curvature.abs()
        return 1 / size.clamp_min(self.floor).maximum(self.rcond * size.amax(-1, keepdim=True))


@dataclass(frozen=True)
class Dropped:
    """Inverse curvature 1/|h| for |h| > rcond·|h|_max, 0 below: no step along small ones.

    Args:
        rcond: size relative to the largest |h| of the sample; 1e-6 by default.
    """

    rcond: float = 1e-6

    def __post_init__(self) -> None:
        require_nonnegative("rcond", self.rcond)

    def __call__(self, curvature: torch.Tensor) -> torch.Tensor:
        size = curvature.abs()
        return torch.where(size > self.rcond * size.amax(-1, keepdim=True), 1 / size, torch.zeros_like(size))


@dataclass(frozen=True)
class Newton:
    """Saddle-free Newton Δx = −|H|⁻¹·∇φ with H the Hessian of each sample, |H| with the absolute values of its eigenvalues.

    Takes as many passes as x has entries, all samples at once, and the eigenvectors of H.

    Args:
        curvature: treatment of small eigenvalues, `Clipped(rcond, floor)` or `Dropped(rcond)`.
        chunk: number of passes that are made at once.

    Raises:
        StateError: when used, if samples depend on each other.
    """

    curvature: Clipped | Dropped = Clipped()
    chunk: int = 256

    def __post_init__(self) -> None:
        require_instance("curvature", self.curvature, (Clipped, Dropped), "Clipped(rcond, floor) or Dropped(rcond)")
        require_count("chunk", self.chunk)

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        linear = Linearization(function, x)

        def pullback(dy: Tensors) -> Tensors:
            linear.require_independent_samples()
            slope = linear.transposed_times(-pack(dy)).double()
            values, vectors = torch.linalg.eigh(_Hessian(function, x, dy).matrices(self.chunk))
            modes = torch.einsum("sij,si->sj", vectors, slope)
            return unpack(torch.einsum("sij,sj->si", vectors, _step(modes, self.curvature(values))), x)

        return linear.y, pullback


@dataclass(frozen=True)
class SeparableNewton:
    """Newton for φ(x) = Σᵢ φᵢ(xᵢ), such as a squared distance: H is diagonal and takes one pass, however many entries.

    Args:
        curvature: treatment of small second derivatives, as for `Newton`.

    Raises:
        StateError: when used, if the entries of x depend on each other.
    """

    curvature: Clipped | Dropped = Clipped()

    def __post_init__(self) -> None:
        require_instance("curvature", self.curvature, (Clipped, Dropped), "Clipped(rcond, floor) or Dropped(rcond)")

    def __call__(self, function: Function, x: Tensors) -> tuple[Tensors, Pullback]:
        linear = Linearization(function, x)

        def pullback(dy: Tensors) -> Tensors:
            slope = linear.transposed_times(-pack(dy)).double()
            return unpack(_step(slope, self.curvature(_Hessian(function, x, dy).diagonal().double())), x)

        return linear.y, pullback


class _Hessian:
    """Second derivatives of φ = −⟨Δy, f⟩ in forward over reverse mode."""

    def __init__(self, function: Function, x: Tensors, dy: Tensors) -> None:
        cotangent = pack(dy)

        def objective(vectors: torch.Tensor) -> torch.Tensor:
            return -(cotangent * pack(as_tuple(function(*unpack(vectors, x))))).sum()

        self._x = pack(x)
        self._slope: Callable[[torch.Tensor], torch.Tensor] = torch.func.grad(objective)

    def times(self, tangent: torch.Tensor) -> torch.Tensor:
        """H·t, `(sample, entry)`."""
        return torch.func.jvp(self._slope, (self._x,), (tangent,))[1]

    def matrices(self, chunk: int) -> torch.Tensor:
        """H of every sample in double precision, `(sample, entry, entry)`, symmetrised."""
        units = torch.eye(self._x.shape[1], dtype=self._x.dtype, device=self._x.device)
        columns = torch.func.vmap(lambda unit: self.times(unit.expand_as(self._x)), chunk_size=chunk)(units)
        hessians = finite_derivatives(columns).permute(1, 2, 0).double()
        return (hessians + hessians.mT) / 2

    def diagonal(self) -> torch.Tensor:
        """H·1, which is the diagonal if there is nothing else; `(sample, entry)`."""
        probed, diagonal = probe(self._x), finite_derivatives(self.times(torch.ones_like(self._x)))
        deviation = (finite_derivatives(self.times(probed)) - diagonal * probed).abs().amax(1)
        if bool((deviation > 100 * torch.finfo(probed.dtype).eps * diagonal.abs().amax(1)).any()):
            raise StateError(
                "the entries of x depend on each other in this function, so that its Hessian is not diagonal: use Newton()"
            )
        return diagonal


def _step(gradient: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """−g/|h|; where there is no slope there is no step, whatever the curvature."""
    return torch.where(gradient == 0, gradient, -gradient * inverse)
