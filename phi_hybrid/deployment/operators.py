"""Operators that a file may name: torch's own, which compute tensors from tensors and do nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

from phi_hybrid import _compat
from phi_hybrid.deployment.program import GETITEM, function_of

OPERATOR = type(torch.ops.aten.add.Tensor)
_NAME = re.compile(r"aten\.[a-z_][a-z0-9_]*\.[A-Za-z][A-Za-z0-9_]*")
_TAGS = {torch.Tag.core, torch.Tag.pointwise}
"""Operators with these tags are functions of tensors and numbers, documented by torch as such."""
_OTHERS = frozenset(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _conj _fft_c2c _fft_c2r _fft_r2c _linalg_solve_ex _log_softmax
    _native_batch_norm_legit _native_batch_norm_legit_no_training _native_multi_head_attention _neg_view _prelu_kernel _reshape_copy
    _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_fused_attention_overrideable _softmax _stack _to_copy _unsafe_view _upsample_bicubic2d_aa
    _upsample_bilinear2d_aa adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d
    adaptive_max_pool3d addbmm addcdiv addcmul addmv addr alias all amax amin any arange argmax argmin argsort
    as_strided avg_pool1d avg_pool2d avg_pool3d baddbmm bernoulli bmm broadcast_to cat channel_shuffle clone col2im
    complex constant_pad_nd contiguous convolution copy cross cumprod cumsum detach diag_embed diagonal dot einsum
    embedding empty empty_like empty_strided expand expand_as fft_fftfreq fft_rfftfreq flip full full_like gather glu
    grid_sampler_2d grid_sampler_3d group_norm hardswish im2col imag index index_add index_copy index_fill index_put
    index_select instance_norm lift_fresh lift_fresh_copy linalg_inv_ex linalg_matrix_norm linalg_vector_norm linear
    linspace logcumsumexp logsumexp masked_fill masked_scatter matmul max max_pool1d max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices mean median min mish mm mode movedim mv narrow
    native_batch_norm native_channel_shuffle native_group_norm native_layer_norm new_empty new_empty_strided new_full
    new_ones new_zeros norm ones ones_like permute pixel_shuffle pixel_unshuffle prod rand rand_like randn randn_like
    real reflection_pad1d reflection_pad2d reflection_pad3d repeat replication_pad1d replication_pad2d
    replication_pad3d reshape resolve_conj resolve_neg roll rot90 rsub scalar_tensor scatter scatter_add
    scatter_reduce searchsorted select select_scatter slice slice_scatter sort split split_with_sizes squeeze stack
    std std_mean sub sum sym_size t tanh topk trace transpose tril triu unbind unfold unsqueeze upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d var var_mean view view_as view_as_complex view_as_real where zeros zeros_like
    """.split()
)
"""Further ones by name, some of which have these tags in other versions of torch. None reads memory unchecked."""


def is_allowed(target: str) -> bool:
    """Tells if a file may name this operator. Those in place count as those out of place."""
    if target == GETITEM:
        return True
    if not _NAME.fullmatch(target) or "backward" in target:
        return False
    _, name, overload = target.split(".")
    plain = name.removesuffix("_")
    try:
        operator, out_of_place = (function_of(f"aten.{n}.{overload}") for n in (name, plain))
    except AttributeError:  # of another version of torch
        return False
    if _compat.is_mutable(operator) and plain == name:  # which writes to one of the last arguments
        return False
    return plain in _OTHERS or (not plain.startswith("_") and bool(_TAGS & set(out_of_place.tags)))


def is_in_place(function: Callable) -> bool:
    """Tells if a function of a program writes into its first argument."""
    return isinstance(function, OPERATOR) and _compat.is_mutable(function)


def argument_names(target: str) -> set[str]:
    """Names of the arguments of an operator that is allowed."""
    return set() if target == GETITEM else _compat.argument_names(function_of(target))
