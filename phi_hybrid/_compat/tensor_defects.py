"""Defects of PhiML's tensors on torch, mended on import, for eager code as well as for captured code.

* `math.mean` and `math.std` over dims that a tensor lacks reduce all of its dims instead;
* padding beside an antisymmetric side leaves the sign of a value that is constant along the padded dim.

`tests/compat/test_tensor_defects.py` has one test per workaround that fails as soon as upstream has mended the defect.
"""

from __future__ import annotations

from typing import Any

from phiml.backend.torch._torch_backend import TorchBackend
from phiml.math import extrapolation

_mean_over_all = TorchBackend.mean
_std_over_all = TorchBackend.std


def _mean(self: TorchBackend, value: Any, axis: Any = None, keepdims: bool = False) -> Any:
    if axis is not None and axis in ((), []):  # which torch understands as all
        return value if self.dtype(value).kind in (float, complex) else self.to_float(value)
    return _mean_over_all(self, value, axis, keepdims)


def _std(self: TorchBackend, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    if axis is not None and axis in ((), []):
        return self.zeros_like(self.mean(x, ()))
    return _std_over_all(self, x, axis, keepdims)


_NEGATING = extrapolation._AntiSymmetricExtrapolation, extrapolation._AntiReflectExtrapolation
for _kind in _NEGATING:
    _kind._is_dim_separable = property(lambda self: False)  # so that constants are written out before they are padded
TorchBackend.mean = _mean
TorchBackend.std = _std
