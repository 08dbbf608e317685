"""What an update will take, said before it is begun."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from phi_hybrid.optim.jacobian import Jacobian

GIB, MIB = 2**30, 2**20
_NODE_SECONDS = 2e-5
"""Of one operation of a backward pass."""
_FLOPS = {"cpu": 1e10, "cuda": 5e12}
"""Floating-point operations in double precision per second, on a CPU of a single thread. Orders of magnitude."""


@dataclass(frozen=True)
class Cost:
    """Estimate of an update's needs.

    Args:
        bytes: memory besides the graph.
        seconds: time; good to a factor of a few.
    """

    bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.bytes / MIB:.1f} MiB, about {self.seconds:.1g} s an update"


def estimate(jacobian: Jacobian, bytes: float, calls: float, passes: float, flops: float, at_once: int = 0) -> Cost:
    """Cost from counts, the same for the same counts on one device.

    Args:
        jacobian: its graph is what backward passes go through.
        bytes: memory.
        calls: how often autograd is called, one call for several passes.
        passes: backward passes.
        flops: of linear algebra.
        at_once: backward passes that are made side by side, each with some of the layers' outputs.
    """
    device = jacobian.outputs.device.type
    rate = _FLOPS.get(device, _FLOPS["cuda"]) * (torch.get_num_threads() if device == "cpu" else 1)
    arithmetic = passes * 4 * jacobian.columns * jacobian.samples
    states = [z.numel() * z.element_size() for layer in jacobian.layers.values() for z in layer.outputs]
    bytes += 3 * at_once * max(states, default=0)
    calls = max(calls, 2)  # one product at least, and the update itself
    return Cost(int(bytes), calls * _nodes(jacobian.outputs) * _NODE_SECONDS + (arithmetic + flops) / rate)


def available(device: torch.device) -> int:
    """Bytes of memory that the device has, on a GPU those that are free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**63


def _nodes(outputs: torch.Tensor) -> int:
    """Number of operations in the graph of the outputs."""
    seen, stack = set(), [outputs.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
    return len(seen)
