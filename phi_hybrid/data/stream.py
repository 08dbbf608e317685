"""Training data that the reference solver produces while a network trains."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from phi_hybrid.bridge.checks import require_callable, require_count
from phi_hybrid.bridge.layout import Layout, TreeLayout, flatten, unflatten
from phi_hybrid.data.batch import Batch, DataLayout
from phi_hybrid.data.trajectories import Trajectories
from phi_hybrid.data.windows import epoch_generator, gather, seed_of
from phi_hybrid.errors import DataError, StateError


class Stream(IterableDataset):
    """Trajectories drawn from distributions of states and parameters and computed when they are needed, without end.

    Block b holds `trajectories` trajectories. It starts from `step`'s arguments `draw(trajectories)`, drawn with random
    numbers that seed and b alone decide, so that a block is the same whenever it is computed. A `Trainer` takes a stream in
    the place of `Trajectories`; update u draws its windows at random from the blocks

        ⌊u / reuse⌋, …, ⌊u / reuse⌋ + keep − 1,

    which, beside those of the first update, are all that is in memory. By default each update sees new trajectories.
    `reuse` makes a slow reference affordable: it does not run in every update.

        def draw(count):
            return CenteredGrid(Noise(batch(trajectory=count)), PERIODIC, x=256), math.random_uniform(batch(trajectory=count))

        stream = ph.data.Stream(ph.capture(step), draw, steps=16, trajectories=8, coarsen=4)
        ph.Trainer(solver, stream, ph.Unrolled(16), optimizer=optimizer).fit(10_000)

    Iterated over, it gives every block as one `Batch`, whole trajectories, for training loops of your own and for networks
    that come after the solver. In a torch `DataLoader(stream, batch_size=None)`, its workers share the blocks.

    Args:
        step: reference `state, *inputs -> state`, captured for speed.
        draw: `count -> (state, *inputs)`, or the state alone, with batch dims of `count` entries in all, e.g.
            `batch(trajectory=count)`; inputs without batch dims are the same for a block. Draws from the generators of
            PhiFlow, torch, NumPy or Python.
        steps: number of stored steps of each trajectory.
        trajectories: of a block.
        keep: number of blocks in memory.
        reuse: number of updates before a new block takes the place of the oldest.
        seed: of the random numbers.
        coarsen: as for `Trajectories.generate`.
        every: as for `Trajectories.generate`.
        device: where the reference runs and the blocks are, e.g. that of the training.

    Attributes:
        computed: number of blocks that have been computed so far.

    Raises:
        StateError: for settings out of range, or if `draw` gives another number of trajectories.
        DataError: if the reference diverges, naming the block.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        draw: Callable[[int], Any],
        steps: int,
        *,
        trajectories: int = 8,
        keep: int = 1,
        reuse: int = 1,
        seed: int = 0,
        coarsen: int | Callable[[Any], Any] = 1,
        every: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        require_callable("draw", draw, "a function count -> (state, *inputs) of random arguments of the step")
        for name, count in {"steps": steps, "trajectories": trajectories, "keep": keep, "reuse": reuse}.items():
            require_count(name, count)
        require_count("seed", seed, None)
        self.step, self.draw, self.steps = step, draw, steps
        self.trajectories, self.keep, self.reuse, self.seed = trajectories, keep, reuse, seed
        self.device = torch.device(device)
        self.computed = 0
        self._generate = partial(Trajectories.generate, steps=steps, coarsen=coarsen, every=every, progress=False)
        self._held: dict[int, Trajectories] = {}  # number of the oldest block → all `keep` of them
        self._repeatable = False

    @property
    def first(self) -> Trajectories:
        """The trajectories of the first update, by which scales are estimated; once computed, they stay in memory."""
        return self.at(0)

    @cached_property
    def layouts(self) -> DataLayout:
        """Layouts of states and inputs."""
        return self.first.layouts

    @property
    def state_layout(self) -> Layout:
        """Of one state, without batch dims."""
        return self.layouts.state

    @property
    def input_layout(self) -> TreeLayout:
        """Of the inputs without `trajectory`."""
        return self.layouts.inputs

    @cached_property
    def scale(self) -> tuple[float, ...]:
        """Standard deviation of each state tensor in the trajectories of the first update, for windows of all updates."""
        return self.first.scale

    def block(self, number: int) -> Trajectories:
        """The trajectories of one block, computed anew."""
        require_count("number", number, 0)
        if not self._repeatable:
            self._require_repeatable(number)
        with _seeded(seed_of(self.seed, number)):
            state, *inputs = self._drawn()
            if self.device.type != "cpu":
                state, *inputs = _moved((state, *inputs), self.device)
            try:
                found = self._generate(self.step, state, inputs=tuple(inputs))
            except DataError as error:
                raise DataError(f"block {number} of the stream with seed {self.seed}: {error}") from error
        if len(found) != self.trajectories:
            raise StateError(
                f"draw({self.trajectories}) gave {len(found)} trajectories; give its states batch dims of as many entries as "
                "it is asked for, e.g. batch(trajectory=count)"
            )
        self.computed += 1
        return found

    def _drawn(self) -> tuple:
        drawn = self.draw(self.trajectories)
        return drawn if isinstance(drawn, tuple) else (drawn,)

    def _require_repeatable(self, number: int) -> None:
        """Raises StateError if the same block would be another when it is drawn again."""
        found = []
        for _ in range(2):
            with _seeded(seed_of(self.seed, number)):
                found.append(flatten(self._drawn()))
        (first, layout), (second, again) = found
        if layout != again or not all(map(torch.equal, first, second)):
            raise StateError(
                f"draw = {self.draw!r} gives other numbers for the same seed, so that no block could be computed again: draw from "
                "the global generators, e.g. torch.rand or np.random.rand, not from one of your own such as default_rng()"
            )
        self._repeatable = True

    def stored(self, blocks: int) -> Trajectories:
        """The first blocks as a data set, to be looked at or saved: the samples that a training sees."""
        require_count("blocks", blocks)
        return Trajectories.concat(*map(self.block, range(blocks)))

    def windows(self, steps: int) -> StreamWindows:
        """Windows of `steps` steps, drawn as `Trajectories.windows` does."""
        return StreamWindows(self, steps)

    def at(self, update: int) -> Trajectories:
        """The trajectories that are in memory at an update, those of its oldest block first."""
        first = update // self.reuse
        if first not in self._held:
            found = Trajectories.concat(*map(self._kept, range(first, first + self.keep)))
            # The first ones stay, by which every checkpoint knows its data; a look at them does not end the others.
            self._held = {n: data for n, data in self._held.items() if 0 in (n, first)} | {first: found}
        return self._held[first]

    def _kept(self, number: int) -> Trajectories:
        """A block, out of memory if it is there."""
        for first, data in self._held.items():
            if first <= number < first + self.keep:
                start = (number - first) * self.trajectories
                return data[start : start + self.trajectories]
        return self.block(number)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while True:
            yield self.block(number).whole()
            number += step

    def __repr__(self) -> str:
        return (
            f"Stream(blocks of {self.trajectories} trajectories of {self.steps} steps; {self.keep} in memory, each new one "
            f"after {self.reuse} updates; seed {self.seed})"
        )


class StreamWindows:
    """Windows of `steps` steps in the blocks of a stream that are in memory.

    Raises:
        DataError: if the trajectories are shorter than a window.
    """

    def __init__(self, stream: Stream, steps: int) -> None:
        require_count("steps", steps, None, "e.g. stream.windows(16)")
        if not 1 <= steps <= stream.steps:
            raise DataError(
                f"windows of {steps} steps do not fit in trajectories of {stream.steps}; use 1 … {stream.steps}, or "
                f"Stream(…, steps={steps})"
            )
        self.stream, self.steps = stream, steps

    def __len__(self) -> int:
        """Number of windows in memory at once."""
        return self.stream.trajectories * self.stream.keep * (self.stream.steps - self.steps + 1)

    def shuffled(self, number: int, size: int, seed: int) -> Batch:
        """`size` of the windows that are in memory at update `number`, at random.

        Args:
            number: of the update, from 0; it and the seed alone decide which windows it has.
            size: windows of the batch.
            seed: of the choice.
        """
        chosen = torch.randperm(len(self), generator=epoch_generator(seed, number))[:size]
        return gather(self.stream.at(number), self.steps, chosen, self.stream.scale)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python that the seed decides; what was drawn outside goes on afterwards."""
    arrays, numbers = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**64)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(arrays)
            random.setstate(numbers)


def _moved(arguments: tuple, device: torch.device) -> tuple:
    tensors, layout = flatten(arguments)
    return unflatten(layout, tuple(t.to(device) for t in tensors))
