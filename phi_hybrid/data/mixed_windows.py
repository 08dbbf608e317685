"""Windows of a mixture of sets as a torch `Dataset`."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from phi_hybrid.bridge.checks import require_count
from phi_hybrid.data.batch import Batch
from phi_hybrid.data.windows import collate, epoch_generator
from phi_hybrid.errors import DataError

if TYPE_CHECKING:
    from phi_hybrid.data.mixture import Mixture


class MixedWindows(Dataset):
    """All windows of `steps` steps in a mixture, those of its first set first; else like `Windows`.

    Raises:
        DataError: if a set has shorter trajectories.
    """

    def __init__(self, mixture: Mixture, steps: int) -> None:
        require_count("steps", steps, None, "e.g. mixture.windows(16)")
        lengths = {name: data.steps for name, data in mixture.sets.items()}
        if short := {name: length for name, length in lengths.items() if not 1 <= steps <= length}:
            raise DataError(
                f"windows of {steps} steps do not fit in the trajectories of {short} steps: use 1 … {min(lengths.values())}, "
                "or leave these sets out of the mixture"
            )
        self.data = mixture
        self.steps = steps
        self.sets = [data.windows(steps) for data in mixture.sets.values()]
        self.counts = tuple(map(len, self.sets))
        self.count = sum(self.counts)
        self._ends = list(accumulate(self.counts))
        self._weights = None if mixture.weights is None else tuple(mixture.weights.values())

    def __len__(self) -> int:
        return self.count

    def shuffled(self, number: int, size: int, seed: int) -> Batch:
        """Batch `number` of `size` windows of an endless sequence, at random.

        An epoch has as many windows as there are. Without weights it visits every window once. With weights, each set gives
        its share of them, and visits none of its windows twice before all others were visited once.

        Args:
            number: of the batch, from 0; it and the seed alone decide which windows it has.
            size: windows per batch; those left over at the end of an epoch are left out.
            seed: of the order.
        """
        epoch, position = divmod(number, self.count // size)
        return self.gather(_epoch(self.counts, self._weights, seed, epoch)[position * size : (position + 1) * size])

    def gather(self, numbers: torch.Tensor) -> Batch:
        """The windows of these numbers `(window,)`, in their order, as one batch."""
        owners = torch.bucketize(numbers, torch.tensor(self._ends), right=True)
        places = [(owners == n).nonzero().flatten() for n in range(len(self.sets))]
        starts = [end - count for end, count in zip(self._ends, self.counts)]
        parts = [w.gather(numbers[p] - start) for w, p, start in zip(self.sets, places, starts) if len(p)]
        order = torch.cat(places).argsort()
        mixed = collate(parts)
        states, inputs = (tuple(t[order] for t in part) for part in (mixed.states, mixed.inputs))
        return Batch(states, inputs, mixed.layouts, self.data.scale)

    def __getitem__(self, index: int) -> Batch:
        """Window `index` as a batch of one, counted from the end if negative."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        index %= len(self)
        own = bisect_right(self._ends, index)
        window = self.sets[own][index - self._ends[own] + self.counts[own]]
        return Batch(window.states, window.inputs, window.layouts, self.data.scale)

    def collate(self, windows: Sequence[Batch]) -> Batch:
        """Joins windows to one batch."""
        return collate(windows)


@lru_cache(maxsize=8)
def _epoch(counts: tuple[int, ...], weights: tuple[float, ...] | None, seed: int, epoch: int) -> torch.Tensor:
    """Numbers of the windows of one epoch, in their order; without weights, and of one set, the order of `Windows`."""
    generator = epoch_generator(seed, epoch)
    order = torch.randperm(sum(counts), generator=generator)
    if weights is None:
        return order
    chosen, first = [], 0
    for count, quota in zip(counts, _quotas(sum(counts), weights, generator)):
        whole, rest = divmod(quota, count)
        numbers = [torch.arange(count)] * whole + [torch.randperm(count, generator=generator)[:rest]]
        chosen.append(first + torch.cat(numbers))
        first += count
    return torch.cat(chosen)[order]


def _quotas(total: int, weights: Sequence[float], generator: torch.Generator) -> list[int]:
    """How many of `total` windows each set gives: its share, rounded so that it is exact in the mean over all epochs."""
    shift = float(torch.rand((), generator=generator, dtype=torch.float64))
    shares = (weight / sum(weights) for weight in weights)
    ends = [min(total, math.floor(total * share + shift)) for share in accumulate(shares)]
    ends[-1] = total  # whatever the rounding of the sum
    return [end - start for start, end in zip([0, *ends], ends)]
