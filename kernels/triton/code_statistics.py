"""Sums of the rows of each code, added in row order: one program a code and a part of the space, no atomics.

Legend: N latents (rows), K codes, D dimensions. The rows come sorted by code (stable), so a program walks its own rows
in their order and the sum has the same bits on every device, whatever runs beside it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import row_offsets


@triton.jit(do_not_specialize=["size1", "size2"])
def sum_rows(
    latents: tl.tensor,
    size1: tl.tensor,
    size2: tl.tensor,
    stride0: tl.tensor,
    stride1: tl.tensor,
    stride2: tl.tensor,
    stride_d: tl.tensor,
    order: tl.tensor,
    ends: tl.tensor,
    codebook: tl.tensor,
    sums: tl.tensor,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DIFFERENCES: tl.constexpr,
    DOUBLE: tl.constexpr,
) -> None:
    """Add each code's rows, or what they lack to its vector, in float64, in order, and round the sum once.

    Args:
        latents: rows of any floating dtype, laid out as `row_offsets` reads them.
        size1: length of the middle axis.
        size2: length of the last axis of rows.
        stride0: elements between neighbours of the first axis.
        stride1: of the middle axis.
        stride2: of the last axis of rows.
        stride_d: of the space.
        order: int64 [N], the rows, those of code 0 first.
        ends: int64 [K], where each code's rows end in ``order``.
        codebook: [K, D], any floating dtype; read for DIFFERENCES.
        sums: float32 [K, D], written.
        D: dimensions.
        BLOCK_D: dimensions a program.
        DIFFERENCES: whether ``q - z`` is added instead of ``z``.
        DOUBLE: whether these differences are rounded to float64, else to float32.
    """
    code = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    columns = latents + d.to(tl.int64) * stride_d
    start, end = tl.load(ends + code - 1, mask=code > 0, other=0), tl.load(ends + code)
    total = tl.zeros([BLOCK_D], tl.float64)
    wide: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    vector = tl.zeros([BLOCK_D], wide)
    if DIFFERENCES:
        vector = tl.load(codebook + code * D + d, mask=d < D, other=0.0).to(wide)
    # Unrolled, so that the loads of several rows are on their way while the first is added.
    for place in tl.range(start, end, loop_unroll_factor=8):
        row = tl.load(order + place)
        offset = row_offsets(row, size1, size2, stride0, stride1, stride2)
        element = tl.load(columns + offset, mask=d < D, other=0.0)
        if DIFFERENCES:
            element = vector - element.to(wide)
        total += element.to(tl.float64)
    tl.store(sums + code * D + d, total.to(tl.float32), mask=d < D)
