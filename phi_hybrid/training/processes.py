"""Training in several processes, each with its share of the windows of every update; `torchrun script.py` starts them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import distributed

from phi_hybrid.data import Batch
from phi_hybrid.errors import StateError


class Processes:
    """The processes that train together: those of `torch.distributed`, or this one alone.

    Under `torchrun`, the process group is made here unless the script has made one, with gloo on the CPU, nccl on GPUs.

    Args:
        device: of the weights.

    Attributes:
        rank: number of this process, from 0.
        count: of all processes.
    """

    def __init__(self, device: torch.device) -> None:
        launched = distributed.is_available() and distributed.is_torchelastic_launched()
        if launched and not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.count = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
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
        return None if self.rank == 0 else (seed * 1_000_003 + update) * self.count + self.rank
