"""Code vectors for latents, the squared error between them, and the gradient that passes straight through.

Legend: N latents (rows), K codes, D dimensions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import loaded_rows, row_offsets


@triton.jit(do_not_specialize=["size1", "size2", "N", "K"])
def gather(
    latents: tl.tensor,
    size1: tl.tensor,
    size2: tl.tensor,
    stride0: tl.tensor,
    stride1: tl.tensor,
    stride2: tl.tensor,
    stride_d: tl.tensor,
    codebook: tl.tensor,
    codes: tl.tensor,
    vectors: tl.tensor,
    errors: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOUBLE: tl.constexpr,
) -> None:
    """Copy each row's code vector and add up its squared difference from the latents.

    Args:
        latents: rows of any floating dtype, laid out as `row_offsets` reads them.
        size1: length of the middle axis.
        size2: length of the last axis of rows.
        stride0: elements between neighbours of the first axis.
        stride1: of the middle axis.
        stride2: of the last axis of rows.
        stride_d: of the space.
        codebook: [K, D], any floating dtype.
        codes: int64 [N].
        vectors: [N, D] of the codebook's dtype, written; not a number where there is no such code.
        errors: float64 [programs], written: each program's part of the sum.
        N: rows.
        K: codes.
        D: dimensions.
        BLOCK_N: rows a program.
        BLOCK_D: dimensions read at a time.
        DOUBLE: whether differences are taken in float64, else in float32.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exist = rows < N
    offsets = row_offsets(rows, size1, size2, stride0, stride1, stride2)
    code = tl.load(codes + rows, mask=exist, other=0)
    known = exist & (code >= 0) & (code < K)  # a wrong code must not read what lies beside the codebook
    wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    total = tl.zeros([BLOCK_N], wide)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = exist[:, None] & (d < D)[None, :]
        vector = tl.load(
            codebook + code[:, None] * D + d[None, :], mask=known[:, None] & (d < D)[None, :], other=float("nan")
        )
        tl.store(vectors + rows.to(tl.int64)[:, None] * D + d[None, :], vector, mask=inside)
        row = tl.load(latents + offsets[:, None] + d[None, :].to(tl.int64) * stride_d, mask=inside, other=0.0)
        difference = tl.where(inside, vector.to(wide) - row.to(wide), 0.0)
        total += tl.sum(difference * difference, axis=1)
    tl.store(errors + tl.program_id(0), tl.sum(total.to(tl.float64), axis=0))


@triton.jit(do_not_specialize=["g_size1", "g_size2", "size1", "size2", "N", "K"])
def pass_back(
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
    codebook: tl.tensor,
    codes: tl.tensor,
    weight: tl.tensor,
    of_latents: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOUBLE: tl.constexpr,
) -> None:
    """Write ``g - weight (q - z)``. To be launched without fusion: three roundings, as torch has them.

    Args as in `gather`, and:
        gradient: rows of any floating dtype, laid out by the arguments that begin with ``g_``.
        weight: one number of any floating dtype.
        of_latents: [N, D], written; rounded once.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exist = rows < N
    offsets = row_offsets(rows, size1, size2, stride0, stride1, stride2)
    g_offsets = row_offsets(rows, g_size1, g_size2, g_stride0, g_stride1, g_stride2)
    code = tl.load(codes + rows, mask=exist, other=0)
    known = exist & (code >= 0) & (code < K)
    wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    vector = loaded_rows(codebook, code * D, 1, d, known, D).to(wide)
    row = loaded_rows(latents, offsets, stride_d, d, exist, D).to(wide)
    out = loaded_rows(gradient, g_offsets, g_stride_d, d, exist, D).to(wide)
    out -= tl.load(weight).to(wide) * (vector - row)
    place = of_latents + rows.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(place, out.to(of_latents.dtype.element_ty), mask=exist[:, None] & (d < D)[None, :])
