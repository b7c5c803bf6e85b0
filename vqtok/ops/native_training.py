"""What training computes with the C++ library: passages both ways, sums by code, norms, averages, scalar levels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from vqtok.ops.levels import level_thresholds
from vqtok.ops.native import call, rows_of


def code_statistics(latents: Tensor, codes: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return counts int64 [K] and sums float32 [K, D], added in float64 in row order and rounded once.

    Args:
        latents: [..., D] on the CPU, at most float32, any strides.
        codes: int64 [...], each in 0..vocab_size-1.
        vocab_size: K.
    """
    # Not torch's defaults, which callers can change: C++ writes int64 and float32 into host memory.
    counts = torch.empty(vocab_size, dtype=torch.int64, device="cpu")
    sums = torch.empty(vocab_size, latents.shape[-1], dtype=torch.float32, device="cpu")
    codes = codes.contiguous()
    call(
        "code_statistics",
        ctypes.byref(rows_of(latents)),
        codes.data_ptr(),
        vocab_size,
        counts.data_ptr(),
        sums.data_ptr(),
        torch.get_num_threads(),
    )
    return counts, sums


def straight_through(latents: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codebook's rows, bit for bit, and the mean squared difference, summed in float64 by fixed blocks.

    Args:
        latents: [..., D] on the CPU, at most float32, any strides.
        codebook: float32 [K, D].
        codes: int64 [...], each in 0..K-1.

    Returns:
        vectors float32 [..., D] and a float32 scalar.
    """
    codebook, codes = codebook.contiguous(), codes.contiguous()
    vectors = torch.empty(latents.shape, dtype=torch.float32, device="cpu")
    squared_error = ctypes.c_double()
    call(
        "passage",
        ctypes.byref(rows_of(latents)),
        codebook.data_ptr(),
        codes.data_ptr(),
        vectors.data_ptr(),
        ctypes.byref(squared_error),
        torch.get_num_threads(),
    )
    loss = squared_error.value / max(latents.numel(), 1)
    return vectors, torch.tensor(loss, dtype=torch.float32, device="cpu")


def straight_through_backward(
    gradient: Tensor, latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor
) -> Tensor:
    """Return the gradient [..., D] in the latents' dtype; see `reference.straight_through_backward`."""
    return _passage_backward(gradient, latents, codebook, codes, weight, rotated=False)


def rotate_backward(gradient: Tensor, latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    """Return the rotated gradient [..., D] in the latents' dtype; see `reference.rotate_backward`."""
    return _passage_backward(gradient, latents, codebook, codes, weight, rotated=True)


def codebook_backward(latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    """Return the codebook's gradient float32 [K, D]; see `reference.codebook_backward`."""
    codebook, codes = codebook.contiguous(), codes.contiguous()
    of_codebook = torch.empty(codebook.shape, dtype=torch.float32, device="cpu")
    call(
        "codebook_backward",
        ctypes.byref(rows_of(latents)),
        codebook.data_ptr(),
        codes.data_ptr(),
        codebook.shape[0],
        weight.item(),
        of_codebook.data_ptr(),
        torch.get_num_threads(),
    )
    return of_codebook


def half_squared_norms(codebook: Tensor) -> Tensor:
    """Return half of each row's squared norm, float32 [K], of a codebook float32 [K, D] on the CPU."""
    codebook = codebook.contiguous()
    half_norms = torch.empty(codebook.shape[0], dtype=torch.float32, device="cpu")
    call("half_squared_norms", codebook.data_ptr(), *codebook.shape, half_norms.data_ptr(), torch.get_num_threads())
    return half_norms


def normalize_codebook(codebook: Tensor) -> Tensor:
    """Return the rows over their length, float32 [K, D], of a codebook float32 [K, D] on the CPU."""
    codebook = codebook.contiguous()
    unit_rows = torch.empty(codebook.shape, dtype=torch.float32, device="cpu")
    call("normalize_codebook", codebook.data_ptr(), *codebook.shape, unit_rows.data_ptr(), torch.get_num_threads())
    return unit_rows


def finite_scalar(latents: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return codes int64 [...] and vectors float32 [..., D]; see `reference.finite_scalar`.

    Raises:
        NonFiniteLatents: a row holds NaN or infinity.
    """
    ends = [end for count in levels for end in level_thresholds(count)]
    codes = torch.empty(latents.shape[:-1], dtype=torch.int64, device="cpu")
    vectors = torch.empty(latents.shape, dtype=torch.float32, device="cpu")
    call(
        "finite_scalar",
        ctypes.byref(rows_of(latents)),
        (ctypes.c_float * len(ends))(*ends),
        (ctypes.c_int64 * len(levels))(*levels),
        codes.data_ptr(),
        vectors.data_ptr(),
        torch.get_num_threads(),
    )
    return codes, vectors


def normalize_latents(latents: Tensor) -> Tensor:
    """Return latents over their length, float32 [..., D]; see `reference.normalize_latents`."""
    unit = torch.empty(latents.shape, dtype=torch.float32, device="cpu")
    call("unit_latents", ctypes.byref(rows_of(latents)), unit.data_ptr(), torch.get_num_threads())
    return unit


def normalize_latents_backward(gradient: Tensor, latents: Tensor) -> Tensor:
    """Return the latents' gradient [..., D] in their dtype; see `reference.normalize_latents_backward`."""
    gradient = gradient.float()
    of_latents = torch.empty(latents.shape, dtype=latents.dtype, device="cpu")
    call(
        "unit_latents_backward",
        ctypes.byref(rows_of(gradient)),
        ctypes.byref(rows_of(latents)),
        of_latents.data_ptr(),
        torch.get_num_threads(),
    )
    return of_latents


def update_averages(
    size: Tensor,
    total: Tensor,
    codebook: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    epsilon: float,
    unit: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sizes, sums and codebook after one more batch; see `reference.update_averages`."""
    inputs = [x.float().contiguous() for x in (size, total, codebook, counts, sums)]
    outputs = [torch.empty(x.shape, dtype=torch.float32, device="cpu") for x in inputs[:3]]
    step = _Ema(*(x.data_ptr() for x in (*inputs, *outputs)), *codebook.shape, decay, epsilon, unit)
    call("ema_update", ctypes.byref(step), torch.get_num_threads())
    return outputs[0], outputs[1], outputs[2]


class _Ema(ctypes.Structure):
    """As ``VqtokEma`` of csrc/include/vqtok_cpu.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("size", "sum", "codebook", "counts", "sums")),
        *((name, ctypes.c_void_p) for name in ("new_size", "new_sum", "new_codebook")),
        ("K", ctypes.c_int64),
        ("D", ctypes.c_int64),
        ("decay", ctypes.c_double),
        ("epsilon", ctypes.c_double),
        ("unit", ctypes.c_int64),
    )


def _passage_backward(
    gradient: Tensor, latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor, *, rotated: bool
) -> Tensor:
    gradient, codebook, codes = gradient.float(), codebook.contiguous(), codes.contiguous()
    of_latents = torch.empty(latents.shape, dtype=latents.dtype, device="cpu")
    call(
        "passage_backward",
        ctypes.byref(rows_of(gradient)),
        ctypes.byref(rows_of(latents)),
        codebook.data_ptr(),
        codes.data_ptr(),
        weight.item(),
        rotated,
        of_latents.data_ptr(),
        torch.get_num_threads(),
    )
    return of_latents
