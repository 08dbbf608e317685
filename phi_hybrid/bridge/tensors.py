"""PhiML tensors of a state, collected as native torch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from phi import math
from phi.math import Tensor

from phi_hybrid import _compat
from phi_hybrid.bridge.axes import Axis, axis_of, sorted_axes
from phi_hybrid.bridge.kinds import TensorLayout
from phi_hybrid.errors import StateError


class Natives:
    """Native tensors of a state while it is taken apart, of whatever backend."""

    def __init__(self) -> None:
        self._found: list[Any] = []
        self._real: set[int] = set()

    def append(self, native: Any, real: bool = False) -> None:
        """Adds a tensor; integers become real numbers on demand."""
        if real:
            self._real.add(len(self._found))
        self._found.append(native)

    def as_torch(self) -> tuple[torch.Tensor, ...]:
        """Contiguous torch tensors. NumPy values take precision and device from the torch values beside them."""
        torch_natives = [n for n in self._found if isinstance(n, torch.Tensor)]
        floats = [n.dtype for n in torch_natives if n.dtype.is_floating_point]
        device = torch_natives[0].device if torch_natives else torch.device(_compat.TORCH.get_default_device().ref)
        precision = floats[0] if floats else (torch.float64 if math.get_precision() == 64 else torch.float32)

        def convert(number: int, native: Any) -> torch.Tensor:
            given = isinstance(native, torch.Tensor)
            tensor = native.contiguous() if given else torch.as_tensor(np.array(native, order="C"), device=device)
            whole = number in self._real and not (tensor.is_floating_point() or tensor.is_complex())
            return tensor.to(precision) if whole or (not given and tensor.is_floating_point()) else tensor

        return tuple(convert(number, native) for number, native in enumerate(self._found))


def describe_tensor(tensor: Tensor, natives: Natives, order: Sequence[str] = (), real: bool = False) -> TensorLayout:
    """Layout of a dense tensor, whose native tensors go to `natives`.

    Args:
        tensor: of numbers; spatial dims stay in their order.
        natives: takes the values.
        order: names of spatial dims that come first, in this order.
        real: whether integers become real numbers.
    """
    if tensor.dtype.kind is object:
        raise StateError(f"a tensor of shape {tensor.shape} holds Python objects; pass numbers")
    split = tensor.shape.dual if tensor.shape.is_uniform else tensor.shape.non_uniform_shape
    precision = tensor.dtype.precision if tensor.dtype.kind in (float, complex) else math.get_precision()
    with math.precision(precision):  # PhiML casts natives to the global precision otherwise
        if len(split) == 1:
            parts = math.unstack(tensor, split)
            return TensorLayout(tuple(_append(part, natives, order, real) for part in parts), axis_of(split))
        return TensorLayout((_append(tensor, natives, order, real),))


def _append(tensor: Tensor, natives: Natives, order: Sequence[str], real: bool) -> tuple[Axis, ...]:
    if not tensor.shape.is_uniform:
        raise StateError(f"tensor of non-uniform shape {tensor.shape}; split it into a tuple of uniform tensors")
    axes = sorted_axes([axis_of(dim) for dim in tensor.shape.only(order, reorder=True) & tensor.shape.without(order)])
    natives.append(tensor.native([a.phi_name for a in axes]) if axes else tensor.native(), real)
    return tuple(axes)
