"""What dynamic tokens need of the C++ library: kept rows moved together and apart, of any dtype."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vqtok.ops.native import call


class _Grid(ctypes.Structure):
    """As ``VqtokGrid`` of csrc/include/vqtok_cpu.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("B", "N", "D", "stride_b", "stride_n", "stride_d", "bytes")),
    )


def compact(values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kept values [T, ...] and how many each row has, int64 [B]; see `reference.compact`.

    Args:
        values: [B, N, ...] on the CPU, any dtype and strides; copied first only where the trailing dimensions cannot
            be one.
        keep: bool [B, N].
    """
    keep, flat = keep.contiguous(), values.reshape(*values.shape[:2], values.shape[2:].numel())
    kept = torch.empty(int(keep.sum()), *values.shape[2:], dtype=values.dtype, device="cpu")
    lengths = torch.empty(len(keep), dtype=torch.int64, device="cpu")
    grid = _Grid(flat.data_ptr(), *flat.shape, *flat.stride(), values.element_size())
    pointers = keep.data_ptr(), kept.data_ptr(), lengths.data_ptr()
    call("compact", ctypes.byref(grid), *pointers, torch.get_num_threads())
    return kept, lengths


def pad(values: Tensor, lengths: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Return runs of values as rows of equal length and where the values are; see `reference.pad`."""
    longest = int(lengths.max()) if len(lengths) else 0
    mask = torch.arange(longest, device="cpu") < lengths[:, None]
    return spread(values, mask, fill), mask


def spread(values: Tensor, mask: Tensor, fill: float) -> Tensor:
    """Return [B, N, ...] with values [T, ...] in order where the mask is true; see `reference.spread`."""
    values, mask = values.contiguous(), mask.contiguous()
    filler = torch.full(values.shape[1:], fill, dtype=values.dtype, device="cpu")
    rows = torch.empty(*mask.shape, *values.shape[1:], dtype=values.dtype, device="cpu")
    call(
        "spread",
        values.data_ptr(),
        mask.data_ptr(),
        filler.data_ptr(),
        *mask.shape,
        filler.numel() * values.element_size(),
        rows.data_ptr(),
        torch.get_num_threads(),
    )
    return rows
