"""GroupNorm by the C++ library (csrc/cpu/group_norm.cpp)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vqtok.ops.layout import is_channels_last
from vqtok.ops.native import TYPES, call, instruction_set


class _GroupNorm(ctypes.Structure):
    """As ``VqtokGroupNorm`` of csrc/include/vqtok_cpu.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "y", "weight", "bias", "affine")),
        *((name, ctypes.c_int64) for name in ("B", "pixels", "C", "groups", "channels_last", "silu", "type")),
        ("eps", ctypes.c_double),
    )


def group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    """Return the normalised values; see `reference.group_norm`.

    Args:
        x: float32 or bfloat16 [B, C, ...] on the CPU; copied first where it is neither contiguous nor channels_last.
        weight: [C] or none.
        bias: [C] or none.
        groups: a divisor of C.
        eps: what is added to the variance.
    """
    return _normalized(x, weight, bias, groups, eps, silu=False)


def group_norm_silu(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    """Return SiLU of the normalised values; see `reference.group_norm_silu` and `group_norm`."""
    return _normalized(x, weight, bias, groups, eps, silu=True)


def group_affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    """Return float32 [B, 3, C]; see `reference.group_affine` and `group_norm`."""
    x = x if is_channels_last(x) else x.contiguous()
    affine = torch.empty(len(x), 3, x.shape[1], dtype=torch.float32, device="cpu")
    _run(x, None, affine, weight, bias, groups, eps, silu=False)
    return affine


def _normalized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, *, silu: bool
) -> Tensor:
    x = x if is_channels_last(x) else x.contiguous()
    y = torch.empty_like(x)
    _run(x, y, None, weight, bias, groups, eps, silu=silu)
    return y


def _run(
    x: Tensor,
    y: Tensor | None,
    affine: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    *,
    silu: bool,
) -> None:
    weight, bias = (None if t is None else t.float().contiguous() for t in (weight, bias))
    pointers = (None if t is None else t.data_ptr() for t in (x, y, weight, bias, affine))
    shape = len(x), x.shape[2:].numel(), x.shape[1], groups
    work = _GroupNorm(*pointers, *shape, is_channels_last(x), silu, TYPES[x.dtype], eps)
    call("group_norm", ctypes.byref(work), torch.get_num_threads(), instruction_set())
