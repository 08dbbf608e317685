"""Training in several processes, each with its share of the windows of every update; `torchrun script.py` starts them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import distributed

from phi_hybrid.data import Batch
from phi_hybrid.errors import StateError

_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextlib.contextmanager
def each_alone() -> Iterator[None]:
    """Trainings that are begun within are those of one process, whichever others there are."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def join_group(device: torch.device) -> tuple[int, int]:
    """Rank of this process and number of all. Under `torchrun`, the process group is made here unless there is one."""
    if _alone.get():
        return 0, 1
    launched = distributed.is_available() and distributed.is_torchelastic_launched()
    if launched and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    together = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)


class Processes:
    """The processes that train together: those of `torch.distributed`, or this one alone.

    Under `torchrun`, they talk through gloo on the CPU and nccl on GPUs, unless the script has made a process group.

    Args:
        device: of the weights.

    Attributes:
        rank: number of this process, from 0.
        count: of all processes.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.count = join_group(device)
        self._device = device

    def check(self, size: int, optimizer: torch.optim.Optimizer) -> None:
        """Raises StateError unless all processes can have equal shares of a batch, and the optimizer works with gradients."""
        if size % self.count:
            raise StateError(
                f"{size} windows of an update cannot be shared equally by {self.count} processes; choose a batch_size that is "
                f"a multiple of {self.count}, e.g. {size + self.count - size % self.count}"
            )
        if self.count > 1 and getattr(optimizer, "takes_outputs", False):
            raise StateError(
                f"{type(optimizer).__name__} looks at the outputs of all windows at once, which {self.count} processes do not "
                "have; train in one process, or with an optimizer that takes gradients"
            )

    def check_together(self) -> None:
        """Raises StateError if these processes train together, but now is the time for each to train alone."""
        if self.count > 1 and _alone.get():
            raise StateError(
                f"this trainer was made for {self.count} processes together, but fits within `parallel_map`, where each trains "
                "alone: make solver and trainer in the function that is mapped"
            )

    def share(self, batch: Batch) -> Batch:
        """The windows of this process."""
        return batch.parts(self.count)[self.rank]

    @torch.no_grad()
    def make_same(self, tensors: Iterable[torch.Tensor]) -> None:
        """Gives all processes the values of the first."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    @torch.no_grad()
    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Means over the processes, in place."""
        if self.count == 1:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        distributed.all_reduce(flat)
        for tensor, mean in zip(tensors, flat.div_(self.count).split([t.numel() for t in tensors])):
            tensor.copy_(mean.view_as(tensor))

    def filled(self, tensors: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Zeros in place of each `None` where another process has a tensor."""
        there = self.any(*(tensor is not None for tensor in tensors))
        pairs = zip(tensors, there, like)
        return [torch.zeros_like(model) if own is None and needed else own for own, needed, model in pairs]

    def any(self, *flags: bool) -> list[bool]:
        """Whether a flag is raised in any process, for each."""
        if self.count == 1:
            return list(flags)
        numbers = torch.tensor(flags, dtype=torch.int32, device=self._device)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        return [bool(n) for n in numbers.tolist()]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            self.any(False)

    def seed_for(self, seed: int, update: int) -> int | None:
        """Seed of the random numbers of an update in this process; the first one goes on with its own."""
        return None if self.rank == 0 else ((seed * 1_000_003 + update) * self.count + self.rank) % 2**64
