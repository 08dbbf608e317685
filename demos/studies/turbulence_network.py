"""A network that corrects Kolmogorov flow: products on blocks of 2×2 cells, and the mean over symmetric copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Velocity = Sequence[torch.Tensor]
"""Components on the lower faces of the cells of a periodic square, each `(…, x, y)`."""


class Correction(torch.nn.Module):
    """Residual network of products on blocks of 2×2 cells: a quarter of the places, each seen twice as far.

    What a coarse solver leaves out, u·∇u of small scales and truncation errors, are products of velocities and their
    slopes; a network with a product in each block has not to build them of kinks.

    Args:
        channels: of velocity and features.
        width: channels inside.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = convolution(4 * channels, width)
        self.blocks = torch.nn.ModuleList([Product(width) for _ in range(3)])
        self.last = torch.nn.Conv2d(width, 4 * 2, 1)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """`(batch, channel, x, y)`: what corrects the velocity, from velocity and features."""
        inside = self.first(torch.nn.functional.pixel_unshuffle(seen, 2))
        for block in self.blocks:
            inside = inside + block(inside)
        return torch.nn.functional.pixel_shuffle(self.last(inside), 2)


class Product(torch.nn.Module):
    """Convolution of a · silu(b), a and b being convolutions of the input (gated linear unit, Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factors, self.last = convolution(width, 2 * width), convolution(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch, width, x, y)`, in and out."""
        a, b = self.factors(x).chunk(2, 1)
        return self.last(a * torch.nn.functional.silu(b))


def convolution(inputs: int, outputs: int) -> torch.nn.Module:
    """3×3, periodic."""
    return torch.nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular")


class Symmetric(torch.nn.Module):
    """Mean over what a network makes of all symmetric copies, each turned back; in training, the network alone.

    So the corrected flow has exactly the symmetries of the true one. In training the data have the copies, at a quarter of
    the cost.

    Args:
        network: from velocity and force to what corrects the velocity. The force is the same in all copies.
        waves: of the force along y.
    """

    def __init__(self, network: torch.nn.Module, waves: int) -> None:
        super().__init__()
        self.network, self.waves = network, waves

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """`(batch, channel, x, y)`."""
        if self.training:
            return self.network(seen)
        velocity, force = seen[:, :2].unbind(1), seen[:, 2:]
        found = []
        for moves in symmetries(seen.shape[-1] // self.waves):
            there = torch.cat([torch.stack(moved(velocity, moves), 1), force], 1)
            found.append(torch.stack(moved_back(self.network(there).unbind(1), moves), 1))
        return torch.stack(found).mean(0)


# --- symmetries of the flow ---

Moves = tuple[tuple[str, int], ...]
"""Reflections, one after the other: reversed dims, and cells by which to move up in y afterwards."""


def symmetries(wavelength: int) -> tuple[Moves, ...]:
    """What takes solutions to solutions: mirrored in x and half a wave up in y, turned by π, both; first, nothing.

    Args:
        wavelength: of the force along y, in cells.
    """
    mirror, turn = ("x", wavelength // 2), ("xy", 0)
    return (), (mirror,), (turn,), (turn, mirror)


def moved(velocity: Velocity, moves: Moves) -> list[torch.Tensor]:
    """Velocity after these reflections."""
    for dims, up in moves:
        velocity = reflected(velocity, dims, up)
    return list(velocity)


def moved_back(velocity: Velocity, moves: Moves) -> list[torch.Tensor]:
    """The inverse of `moved`."""
    for dims, up in reversed(moves):
        velocity = reflected([v.roll(-up, -1) for v in velocity], dims)
    return list(velocity)


def reflected(velocity: Velocity, dims: str, up: int = 0) -> list[torch.Tensor]:
    """Velocity with some dims reversed, then moved up in y by so many cells."""
    axes, found = {"x": -2, "y": -1}, []
    for own, values in zip("xy", velocity):
        values = values.flip([axes[d] for d in dims])
        if own in dims:  # the lower face of a cell has become its upper one
            values = -values.roll(1, axes[own])
        found.append(values.roll(up, axes["y"]))
    return found
