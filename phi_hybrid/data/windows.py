"""Windows of trajectories as a torch `Dataset`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from phi_hybrid.bridge.checks import require_count
from phi_hybrid.data.batch import Batch
from phi_hybrid.data.joining import in_a_row
from phi_hybrid.errors import DataError

if TYPE_CHECKING:
    from phi_hybrid.data.trajectories import Trajectories


@lru_cache(maxsize=8)
def _epoch_order(windows: int, seed: int, epoch: int) -> torch.Tensor:
    """Numbers of the windows, shuffled anew in every epoch."""
    return torch.randperm(windows, generator=epoch_generator(seed, epoch))


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Random numbers of one epoch, whatever was drawn before."""
    return torch.Generator().manual_seed(seed_of(seed, epoch) % 2**64)  # torch takes no more


def seed_of(seed: int, number: int) -> int:
    """Seed of one of many draws, e.g. of an epoch."""
    return seed * 1_000_003 + number


class Windows(Dataset):
    """All windows of `steps` steps in a set of trajectories, for a torch `DataLoader` with `collate_fn=windows.collate`.

    Raises:
        DataError: if the trajectories are shorter than a window.
    """

    def __init__(self, data: Trajectories, steps: int) -> None:
        require_count("steps", steps, None, "e.g. data.windows(16)")
        if not 1 <= steps <= data.steps:
            raise DataError(
                f"windows of {steps} steps do not fit in trajectories of {data.steps}; use 1 … {data.steps}"
            )
        self.data = data
        self.steps = steps
        self.per_trajectory = data.steps - steps + 1
        self.count = len(data) * self.per_trajectory

    def __len__(self) -> int:
        return self.count

    def shuffled(self, number: int, size: int, seed: int) -> Batch:
        """Batch `number` of `size` windows of an endless sequence that visits every window once an epoch, at random.

        Args:
            number: of the batch, from 0; it and the seed alone decide which windows it has.
            size: windows per batch; those left over at the end of an epoch are left out.
            seed: of the order.
        """
        epoch, position = divmod(number, self.count // size)
        return self.gather(_epoch_order(self.count, seed, epoch)[position * size : (position + 1) * size])

    def gather(self, numbers: torch.Tensor) -> Batch:
        """The windows of these numbers `(window,)`, in their order, as one batch."""
        return gather(self.data, self.steps, numbers, self.data.scale)

    def __getitem__(self, index: int) -> Batch:
        """Window `index` as a batch of one, counted from the end if negative."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        trajectory, start = divmod(index % len(self), self.per_trajectory)
        return self.data.cut(slice(trajectory, trajectory + 1), start, self.steps)

    def collate(self, windows: Sequence[Batch]) -> Batch:
        """Joins windows to one batch."""
        return collate(windows)


def gather(data: Trajectories, steps: int, numbers: torch.Tensor, scale: tuple[float, ...]) -> Batch:
    """Windows of `steps` steps, numbered trajectory by trajectory, as one batch."""
    per_trajectory = data.steps - steps + 1
    trajectory, start = numbers // per_trajectory, numbers % per_trajectory
    times, layouts = start[:, None] + torch.arange(steps + 1), data.layouts
    states = [t[trajectory[:, None], times] for t in data.states]
    inputs = [
        t[trajectory[:, None], times[:, :-1]] if varies else t[trajectory]
        for t, varies in zip(data.inputs, layouts.varies)
    ]
    return Batch(tuple(states), tuple(inputs), layouts, scale)


def collate(windows: Sequence[Batch]) -> Batch:
    """Joins windows of one data set, or of sets that are alike, to one batch."""
    states, inputs = (in_a_row([getattr(w, part) for w in windows]) for part in ("states", "inputs"))
    return replace(windows[0], states=states, inputs=inputs)
