"""What linear and convolutional layers saw, from which their part of J·Jᵀ follows without J.

The weights of a layer act on inputs a as z_t = W·a_t + w, t running over all its applications: spatial positions, calls in
an unrolled rollout, places where the weights are shared. With the sensitivities δ = ∂y/∂z, sample i and output p have
∂y_ip/∂W = Σ_t δ_ipt ⊗ a_it.
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
    inputs: list[torch.Tensor] = field(default_factory=list)
    """Of each call, `(sample, …)`."""
    outputs: list[torch.Tensor] = field(default_factory=list)
    half_shared: bool = False
    """Whether another layer has the same weight but another bias."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Trained ones of weight and bias."""
        both = (self.module.weight, self.module.bias)
        return [p for p in both if p is not None and p.requires_grad]

    def seen(self) -> torch.Tensor:
        """Inputs of the weights, `(sample, application, input)`, in double precision."""
        return torch.cat([_patches(self.module, a.detach().double()) for a in self.inputs], 1)

    @staticmethod
    def felt(sensitivities: list[torch.Tensor], convolution: bool) -> torch.Tensor:
        """∂y/∂z of each call, `(output, sample, …)` → `(output, sample, application, unit)` in double precision."""
        flat = []
        for delta in sensitivities:
            if convolution:
                delta = delta.movedim(2, -1)
            flat.append(delta.reshape(*delta.shape[:2], -1, delta.shape[-1]).double())
        return torch.cat(flat, 2)

    @property
    def is_convolution(self) -> bool:
        return isinstance(self.module, _CONVOLUTIONS)


@contextlib.contextmanager
def recorded(module: torch.nn.Module) -> Iterator[dict[int, Layer]]:
    """Within it, applications of layers are recorded: id of the weight → layer."""
    layers: dict[int, Layer] = {}

    def record(part: torch.nn.Module, arguments: tuple, output: torch.Tensor) -> None:
        layer = layers.setdefault(id(part.weight), Layer(part))
        layer.half_shared |= part.bias is not layer.module.bias
        layer.inputs.append(arguments[0])
        layer.outputs.append(output)

    handles = [part.register_forward_hook(record) for part in module.modules() if _is_covered(part)]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def gram(seen: torch.Tensor, felt: torch.Tensor, weight: bool, bias: bool) -> torch.Tensor:
    """The layer's part of J·Jᵀ, rows `sample, output`.

    K[(i,p), (j,q)] = Σ_ts (a_it·a_js + [bias])·(δ_ipt·δ_jqs), or by way of the layer's part of J where that is cheaper.

    Args:
        seen: a, `(sample, application, input)`.
        felt: δ, `(output, sample, application, unit)`.
        weight: whether the weight is trained.
        bias: whether there is a bias and it is trained.
    """
    delta = felt.transpose(0, 1)  # (sample, output, application, unit)
    samples, outputs, applications, units = delta.shape
    rows, inputs = samples * outputs, seen.shape[2]
    if applications**2 * units < units * inputs + applications * units * inputs / rows:
        return _by_products(seen, delta, weight, bias)
    parts = []
    if weight:
        parts.append(torch.einsum("iptu,itk->ipuk", delta, seen).reshape(rows, -1))
    if bias:
        parts.append(delta.sum(2).reshape(rows, -1))
    jacobian = torch.cat(parts, 1)
    return jacobian @ jacobian.mT


def _by_products(seen: torch.Tensor, delta: torch.Tensor, weight: bool, bias: bool) -> torch.Tensor:
    samples, outputs, applications, _ = delta.shape
    total = delta.new_zeros(samples, outputs, samples, outputs)
    flat = delta.reshape(samples * outputs, applications, -1)
    for t in range(applications):
        for s in range(applications):
            inputs = seen[:, t] @ seen[:, s].mT if weight else delta.new_zeros(samples, samples)
            sensitivities = (flat[:, t] @ flat[:, s].mT).view_as(total)
            total.addcmul_(sensitivities, (inputs + float(bias))[:, None, :, None])
    return total.view(samples * outputs, -1)


def _is_covered(part: torch.nn.Module) -> bool:
    if isinstance(part, torch.nn.Linear):
        return True
    return isinstance(part, _CONVOLUTIONS) and part.groups == 1 and set(part.dilation) == {1}


def _patches(module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What the weights are multiplied with, `(sample, application, input)`."""
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
