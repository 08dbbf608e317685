"""Linear and convolutional layers: their inputs when the outputs were computed, and the sensitivities of the outputs.

The weights of a layer act on inputs a as z_t = W·a_t + w, t running over all its applications: spatial positions, calls in
an unrolled rollout, places where the weights are shared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


@dataclass
class Layer:
    """One weight with its bias and all applications."""

    module: torch.nn.Module
    arguments: list[torch.Tensor] = field(default_factory=list)
    """Argument of each call, `(sample, …)`."""
    outputs: list[torch.Tensor] = field(default_factory=list)
    """Result z of each call."""
    half_shared: bool = False
    """Another layer has the same weight but another bias."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Trained ones of weight and bias."""
        both = (self.module.weight, self.module.bias)
        return [p for p in both if p is not None and p.requires_grad]

    def inputs(self) -> torch.Tensor:
        """Inputs a of the weights, `(sample, application, input)`, in double precision."""
        return torch.cat([_patches(self.module, a.detach().double()) for a in self.arguments], 1)

    def sensitivities(self, deltas: list[torch.Tensor]) -> torch.Tensor:
        """∂y/∂z of each call, `(output, sample, …)` → `(sample, output, application, unit)` in double precision."""
        flat = []
        for delta in deltas:
            if isinstance(self.module, _CONVOLUTIONS):
                delta = delta.movedim(2, -1)
            flat.append(delta.reshape(*delta.shape[:2], -1, delta.shape[-1]).double())
        return torch.cat(flat, 2).transpose(0, 1)

    @property
    def least_dims(self) -> int:
        """Number of axes of inputs that have a sample axis."""
        return 2 if isinstance(self.module, torch.nn.Linear) else 2 + len(self.module.kernel_size)

    @property
    def units(self) -> int:
        """Entries of z of one application."""
        return self.module.weight.shape[0]

    @property
    def applications(self) -> int:
        """t of one sample, all calls together."""
        return sum(z.numel() // z.shape[0] // self.units for z in self.outputs)

    @property
    def inputs_per_unit(self) -> int:
        """Entries of a of one application."""
        return self.module.weight[0].numel()


@contextlib.contextmanager
def recorded(module: torch.nn.Module) -> Iterator[dict[int, Layer]]:
    """Within it, applications of layers are recorded: id of the weight → layer."""
    layers: dict[int, Layer] = {}

    def record(part: torch.nn.Module, arguments: tuple, output: torch.Tensor) -> None:
        layer = layers.setdefault(id(part.weight), Layer(part))
        layer.half_shared |= part.bias is not layer.module.bias
        layer.arguments.append(arguments[0])
        layer.outputs.append(output)

    handles = [part.register_forward_hook(record) for part in module.modules() if _is_covered(part)]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def _is_covered(part: torch.nn.Module) -> bool:
    if type(part).forward not in [kind.forward for kind in (torch.nn.Linear, *_CONVOLUTIONS)]:
        return False  # others, among them layers that are derived from these and do something else
    if isinstance(part, torch.nn.Linear):
        return True
    return isinstance(part, _CONVOLUTIONS) and part.groups == 1 and set(part.dilation) == {1}


def _patches(module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Numbers that the weights are multiplied with, `(sample, application, input)`."""
    if isinstance(module, torch.nn.Linear):
        return inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
    padded = _padded(module, inputs)
    for axis, (size, stride) in enumerate(zip(module.kernel_size, module.stride)):
        padded = padded.unfold(2 + axis, size, stride)
    dims = len(module.kernel_size)  # (sample, channel, *positions, *kernel)
    return padded.movedim(1, 1 + dims).flatten(1, dims).flatten(2)


def _padded(module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    if isinstance(module.padding, str):
        widths = [(0, 0)] * len(module.kernel_size)
        if module.padding == "same":
            widths = [((k - 1) // 2, k - 1 - (k - 1) // 2) for k in module.kernel_size]
    else:
        widths = [(p, p) for p in module.padding]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    flat = [w for pair in reversed(widths) for w in pair]
    return torch.nn.functional.pad(inputs, flat, mode=mode)
