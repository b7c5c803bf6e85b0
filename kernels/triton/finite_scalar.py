"""Finite scalar quantization by comparison with thresholds.

Legend: N latents (rows), D dimensions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import row_offsets


@triton.jit(do_not_specialize=["size1", "size2", "N"])
def round_to_levels(
    latents: tl.tensor,
    size1: tl.tensor,
    size2: tl.tensor,
    stride0: tl.tensor,
    stride1: tl.tensor,
    stride2: tl.tensor,
    stride_d: tl.tensor,
    thresholds: tl.tensor,
    levels: tl.tensor,
    codes: tl.tensor,
    vectors: tl.tensor,
    N: tl.tensor,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
) -> None:
    """Write each row's code and the levels that it has reached, as a vector.

    Args:
        latents: rows of any floating dtype, laid out as `row_offsets` reads them; rounded once to float32.
        size1: length of the middle axis.
        size2: length of the last axis of rows.
        stride0: elements between neighbours of the first axis.
        stride1: of the middle axis.
        stride2: of the last axis of rows.
        stride_d: of the space.
        thresholds: float32 [D, BLOCK_L], from where on a latent has the next level; not a number behind the last.
        levels: int32 [D].
        codes: int64 [N], written; the first digit is the fastest.
        vectors: float32 [N, D], written.
        N: rows.
        D: dimensions.
        BLOCK_N: rows a program.
        BLOCK_L: room for the thresholds of a dimension.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exist = rows < N
    offsets = row_offsets(rows, size1, size2, stride0, stride1, stride2)
    code, place = tl.zeros([BLOCK_N], tl.int64), tl.full([], 1, tl.int64)
    for d in range(D):
        row = tl.load(latents + offsets + tl.cast(d, tl.int64) * stride_d, mask=exist, other=0.0).to(tl.float32)
        ends = tl.load(thresholds + d * BLOCK_L + tl.arange(0, BLOCK_L))
        digit = tl.sum((row[:, None] >= ends[None, :]).to(tl.int32), axis=1)
        count = tl.load(levels + d)
        half = count // 2
        code += digit.to(tl.int64) * place
        place *= count
        vector = tl.div_rn((digit - half).to(tl.float32), tl.zeros([BLOCK_N], tl.float32) + half)
        tl.store(vectors + rows.to(tl.int64) * D + d, vector, mask=exist)
    tl.store(codes + rows, code, mask=exist)
