"""Jacobians J = ∂y/∂x of a piece of physics, sample by sample: blocks of a diagonal that are computed all at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from phi_hybrid.errors import NonFiniteError, StateError
from phi_hybrid.optim.jacobian import products
from phi_hybrid.optim.vectors import Tensors, as_tuple, lengths, pack, probe, unit, unpack


class Linearization:
    """Linearisation f(x + Δx) ≈ y + J·Δx, in real numbers `(sample, entry)`. Its graph is kept until the object goes.

    Args:
        function: f, torch tensors `(sample, …)` to torch tensors `(sample, …)`, each sample by itself.
        x: point, tensors `(sample, …)`.

    Attributes:
        y: f(x), without a graph.

    Raises:
        StateError: if f records no gradient.
        NonFiniteError: by all products, where a derivative is NaN or infinite.
    """

    def __init__(self, function: Callable[..., torch.Tensor | Tensors], x: Tensors) -> None:
        self._function, self._x = function, x
        self._inputs = pack(x).detach().requires_grad_()
        with torch.enable_grad():
            y = as_tuple(function(*unpack(self._inputs, x)))
            self._outputs = pack(y)
        if not self._outputs.requires_grad:
            raise StateError(
                "this function records no gradient by its input: take out detach() and no_grad(), or use a rule without "
                "derivatives, Inverse(fn)"
            )
        self.y = tuple(t.detach() for t in y)

    @property
    def shape(self) -> tuple[int, int]:
        """Entries of y and of x, of one sample."""
        return self._outputs.shape[1], self._inputs.shape[1]

    def transposed_times(self, cotangent: torch.Tensor) -> torch.Tensor:
        """Jᵀ·c, `(sample, d_y)` → `(sample, d_x)`."""
        (back,) = torch.autograd.grad(
            self._outputs, self._inputs, cotangent.to(self._outputs), retain_graph=True, materialize_grads=True
        )
        return finite_derivatives(back)

    def times(self, tangent: torch.Tensor) -> torch.Tensor:
        """J·t in forward mode, `(sample, d_x)` → `(sample, d_y)`."""
        return finite_derivatives(self._forward(tangent))

    def norms(self) -> torch.Tensor:
        """‖J‖ of every sample, `(sample, 1)`, roughly and from below: one step of power iteration."""
        image = self.times(unit(probe(self._inputs)))
        return lengths(self.transposed_times(unit(image)))

    def matrices(self, chunk: int = 256) -> torch.Tensor:
        """J of every sample in double precision, `(sample, d_y, d_x)`, by as many passes as the shorter side has entries.

        Args:
            chunk: number of passes that are made at once.

        Raises:
            StateError: if one sample depends on another.
        """
        self.require_independent_samples()
        rows, columns = self.shape
        if rows <= columns:
            return finite_derivatives(torch.cat([self._rows(seeds) for seeds in _units(self._outputs, chunk)], 1))
        return finite_derivatives(torch.cat([self._columns(seeds) for seeds in _units(self._inputs, chunk)], 2))

    def require_independent_samples(self) -> None:
        """Raises StateError if a sample of y depends on another sample of x.

        Any two samples differ in a binary digit of their numbers: samples with that digit, in either direction, must be
        the only ones that Jᵀ·c reaches if c is theirs. Takes 2·log₂(samples) passes.
        """
        number = torch.arange(len(self._outputs), device=self._outputs.device).unsqueeze(1)
        for digit in range((len(number) - 1).bit_length()):
            ones = (number >> digit) % 2 == 1
            for some in (ones, ~ones):
                if bool(self.transposed_times(probe(self._outputs) * some).ne(0).logical_and(~some).any()):
                    raise StateError(
                        "the samples of this function depend on each other, so that its Jacobian is not one matrix per "
                        "sample: take out batch normalisation and sums over the batch, or use the rule Gradient()"
                    )

    def _rows(self, seeds: torch.Tensor) -> torch.Tensor:
        return products(self._outputs, [self._inputs], seeds)[0].transpose(0, 1).double()

    def _columns(self, seeds: torch.Tensor) -> torch.Tensor:
        return torch.func.vmap(self._forward)(seeds).permute(1, 2, 0).double()

    def _forward(self, tangent: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(self._vectors, (self._inputs.detach(),), (tangent.to(self._inputs),))[1]

    def _vectors(self, x: torch.Tensor) -> torch.Tensor:
        return pack(as_tuple(self._function(*unpack(x, self._x))))


def finite_derivatives(derivatives: torch.Tensor) -> torch.Tensor:
    """The same, or NonFiniteError."""
    bad = int((~torch.isfinite(derivatives)).sum())
    if bad:
        raise NonFiniteError(
            f"{bad} derivatives are NaN or infinite where values are finite, as that of a root at 0 or of a norm of zeros; "
            "keep x away from there, or add a small number under the root",
            0,
        )
    return derivatives


def _units(like: torch.Tensor, chunk: int) -> list[torch.Tensor]:
    """Unit vectors, the same in all samples: `(unit, sample, entry)`, a block of them at a time."""
    units = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    return [part.unsqueeze(1).expand(-1, *like.shape).contiguous() for part in units.split(chunk)]
