"""The device that benchmarks run on, chosen by `--device`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from phi_hybrid.bridge import flatten, unflatten

_chosen = [torch.device("cpu")]


def choose(name: str) -> None:
    """Makes this the device of all benchmarks."""
    _chosen[0] = torch.device(name)


def device() -> torch.device:
    return _chosen[0]


def there(state: Any) -> Any:
    """A PhiFlow state, or a torch module, on the device of the benchmarks."""
    if isinstance(state, torch.nn.Module):
        return state.to(device())
    tensors, layout = flatten(state)
    return unflatten(layout, [t.to(device()) for t in tensors])


def training_iteration(net: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """One update by Adam, the same for every way to a loss."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)

    def iteration() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return iteration


def finished(work: Callable[[], Any]) -> Callable[[], Any]:
    """The work and, on a GPU, the wait until it is done."""

    def run() -> Any:
        result = work()
        torch.cuda.synchronize(device())
        return result

    return run if device().type == "cuda" else work


def peak_memory(work: Callable[[], Any]) -> float | None:
    """MiB that the work needs on a GPU at most, `None` on the CPU."""
    if device().type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device())
    work()
    return torch.cuda.max_memory_allocated(device()) / 2**20


def saved_bytes(work: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass, each storage counted once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        work()
    return sum(s.nbytes() for s in storages.values())
