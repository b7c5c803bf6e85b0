"""3 x 3 convolutions by the C++ library (csrc/cpu/conv3x3.cpp)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vqtok.errors import BackendUnavailable
from vqtok.ops.native import TYPES, call, instruction_set, library

_CHANNELS, _OUTPUTS = 16, 32  # kChannelMultiple and kOutputs of csrc/cpu/conv3x3.h


class _Conv3x3(ctypes.Structure):
    """As ``VqtokConv3x3`` of csrc/include/vqtok_cpu.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "y", "weights", "bias", "residual", "affine")),
        *((name, ctypes.c_int64) for name in ("B", "H", "W", "C", "N", "doubled", "type", "bfloat16")),
    )


def reason_against() -> str:
    """Return why the library cannot convolve here, or ""."""
    try:
        return "" if _convolves(bfloat16=False) else "needs AVX2 or AVX-512"
    except BackendUnavailable as error:
        return str(error)


def packed(weight: Tensor, products: str) -> Tensor:
    """Return weights float32 [N, C, 3, 3] as the library takes them, or an empty tensor where it does not."""
    outputs, channels = weight.shape[:2]
    if not outputs or not channels or outputs % _OUTPUTS or channels % _CHANNELS or reason_against():
        return torch.empty(0)
    bfloat16 = products == "bfloat16" and _convolves(bfloat16=True)
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    made = torch.empty(16 * weight.shape[:2].numel(), dtype=dtype, device="cpu")
    pointers = (weight.data_ptr(), channels, outputs, bfloat16, made.data_ptr())
    call("pack_conv3x3", *pointers, torch.get_num_threads())
    return made


def conv3x3(
    x: Tensor,
    weight: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    affine: Tensor | None,
    residual: Tensor | None,
    doubled: bool,
) -> Tensor:
    """Return the convolution in channels_last; see `reference.conv3x3`.

    Args:
        x: float32 or bfloat16 [B, C, h, w] on the CPU; copied first unless in channels_last.
        weight: [N, C, 3, 3], of which the shape is read.
        packed: the weights, of `packed`.
        bias: [N] or none.
        affine: float32 [B, 3, C] or none.
        residual: of the result's shape and dtype, or none.
        doubled: repeat every value twice each way first.
    """
    last = torch.channels_last
    shape = (len(x), len(weight), x.shape[2] << doubled, x.shape[3] << doubled)
    y = torch.empty(shape, dtype=x.dtype, device="cpu", memory_format=last)
    x, residual = (
        x.contiguous(memory_format=last),
        None if residual is None else residual.contiguous(memory_format=last),
    )
    bias, affine = (None if t is None else t.float().contiguous() for t in (bias, affine))
    pointers = (None if t is None else t.data_ptr() for t in (x, y, packed, bias, residual, affine))
    sizes = len(x), x.shape[2], x.shape[3], x.shape[1], len(weight)
    work = _Conv3x3(*pointers, *sizes, doubled, TYPES[x.dtype], packed.dtype == torch.bfloat16)
    call("conv3x3", ctypes.byref(work), torch.get_num_threads(), instruction_set())
    return y


def _convolves(*, bfloat16: bool) -> bool:
    return bool(library().vqtok_cpu_convolves(instruction_set(), bfloat16))
