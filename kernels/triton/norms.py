"""Norms of codebooks, to the last bit, and latents of unit length.

Legend: N latents (rows), K codes, D dimensions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import loaded_rows, row_offsets


@triton.jit(do_not_specialize=["K"])
def codebook_norms(
    codebook: tl.tensor,
    out: tl.tensor,
    K: tl.tensor,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNIT: tl.constexpr,
) -> None:
    """Write half of each row's squared norm, or the row over its length: summed in float64 over d = 0..D-1.

    Args:
        codebook: float32 [K, D].
        out: float32 [K], or [K, D] for UNIT; rounded once.
        K: codes.
        D: dimensions.
        BLOCK_K: codes a program.
        UNIT: whether rows are wanted; those of zeros stay zero.
    """
    codes = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    exist = codes < K
    rows = codebook + codes.to(tl.int64) * D
    squared = tl.zeros([BLOCK_K], tl.float64)
    for d in tl.range(D, loop_unroll_factor=4):
        x = tl.load(rows + d, mask=exist, other=0.0).to(tl.float64)
        squared += x * x  # exact, so it is the same whether it is fused or not
    if UNIT:
        length = tl.sqrt(tl.where(squared > 0, squared, 1.0))
        for d in range(D):
            x = tl.load(rows + d, mask=exist, other=0.0).to(tl.float64)
            tl.store(out + codes.to(tl.int64) * D + d, (x / length).to(tl.float32), mask=exist)
    else:
        tl.store(out + codes, (squared / 2).to(tl.float32), mask=exist)


@triton.jit(do_not_specialize=["size1", "size2", "N"])
def unit_rows(
    latents: tl.tensor,
    size1: tl.tensor,
    size2: tl.tensor,
    stride0: tl.tensor,
    stride1: tl.tensor,
    stride2: tl.tensor,
    stride_d: tl.tensor,
    unit: tl.tensor,
    N: tl.tensor,
    LEAST: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Write latents over their length, or over LEAST where they are shorter.

    Args:
        latents: rows of any floating dtype, laid out as `row_offsets` reads them.
        size1: length of the middle axis.
        size2: length of the last axis of rows.
        stride0: elements between neighbours of the first axis.
        stride1: of the middle axis.
        stride2: of the last axis of rows.
        stride_d: of the space.
        unit: float32 or float64 [N, D], written.
        N: rows.
        LEAST: the smallest divisor.
        D: dimensions.
        BLOCK_N: rows a program.
        BLOCK_D: dimensions read at a time.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exist = rows < N
    offsets = row_offsets(rows, size1, size2, stride0, stride1, stride2)
    squared = tl.zeros([BLOCK_N], tl.float64)
    for start in range(0, D, BLOCK_D):
        z = loaded_rows(latents, offsets, stride_d, start + tl.arange(0, BLOCK_D), exist, D).to(tl.float64)
        squared += tl.sum(z * z, axis=1)
    length = tl.maximum(tl.sqrt(squared), tl.full([], LEAST, tl.float64))  # bare, LEAST would be a float32
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        z = loaded_rows(latents, offsets, stride_d, d, exist, D).to(tl.float64)
        place = unit + rows.to(tl.int64)[:, None] * D + d[None, :]
        tl.store(place, (z / length[:, None]).to(unit.dtype.element_ty), mask=exist[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["g_size1", "g_size2", "size1", "size2", "N"])
def unit_rows_back(
    gradient: tl.tensor,
    g_size1: tl.tensor,
    g_size2: tl.tensor,
    g_stride0: tl.tensor,
    g_stride1: tl.tensor,
    g_stride2: tl.tensor,
    g_stride_d: tl.tensor,
    latents: tl.tensor,
    size1: tl.tensor,
    size2: tl.tensor,
    stride0: tl.tensor,
    stride1: tl.tensor,
    stride2: tl.tensor,
    stride_d: tl.tensor,
    of_latents: tl.tensor,
    N: tl.tensor,
    LEAST: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Write ``(g - u (u.g)) / |z|``, or ``g / LEAST`` where z is not longer, in float64.

    Args as in `unit_rows`, and:
        gradient: rows of any floating dtype, laid out by the arguments that begin with ``g_``.
        of_latents: [N, D] of any floating dtype, written.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exist = rows < N
    offsets = row_offsets(rows, size1, size2, stride0, stride1, stride2)
    g_offsets = row_offsets(rows, g_size1, g_size2, g_stride0, g_stride1, g_stride2)
    squared = tl.zeros([BLOCK_N], tl.float64)
    zg = squared
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        z = loaded_rows(latents, offsets, stride_d, d, exist, D).to(tl.float64)
        g = loaded_rows(gradient, g_offsets, g_stride_d, d, exist, D).to(tl.float64)
        squared += tl.sum(z * z, axis=1)
        zg += tl.sum(z * g, axis=1)
    length = tl.sqrt(squared)
    least = tl.full([], LEAST, tl.float64)
    by = 1 / tl.maximum(length, least)
    along = tl.where(length > least, zg * by * by, 0.0)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        z = loaded_rows(latents, offsets, stride_d, d, exist, D).to(tl.float64)
        g = loaded_rows(gradient, g_offsets, g_stride_d, d, exist, D).to(tl.float64)
        out = (g - along[:, None] * z) * by[:, None]
        if of_latents.dtype.element_ty != tl.float64:
            out = out.to(tl.float32)
        place = of_latents + rows.to(tl.int64)[:, None] * D + d[None, :]
        tl.store(place, out.to(of_latents.dtype.element_ty), mask=exist[:, None] & (d < D)[None, :])
