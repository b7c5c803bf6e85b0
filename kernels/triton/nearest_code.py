"""Nearest code on tensor cores, exact: a float16 product proposes groups of codes, the specified score decides.

Legend: N latents (rows), K codes, D dimensions. Codes are taken in tiles of BLOCK_K, and a tile falls into 4 groups of
BLOCK_K / 4 neighbouring codes. Only group maxima are formed, so a score costs a comparison and no index.

The certificate. For one latent let s_k be the product's score of code k (in units of its own power of two) and c_k the
float32 chain that decides. Everything known of |s_k - c_k| is at most `slack` / 2, hence the winner w of the chain has

    s_w >= c_w - slack / 2 >= c_j - slack / 2 >= s_j - slack        for every j,

and lies in a group whose maximum is at least the largest maximum less the slack. `measure` finds the slack, `screen`
keeps the two best groups and the third best value. If that third value falls short, `decide` runs the chain over the
one or two groups that do not; otherwise, and where the product overflowed, the row is listed and `search` runs the
chain over all codes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import fused_multiply_add, loaded_rows, power_of_two, row_offsets


@triton.jit
def _weight(exponent: tl.tensor, exponents: tl.tensor) -> tl.tensor:
    """Return float32 [rows]: what a bias is multiplied by to be in the unit of the row's scores."""
    of_vectors, of_biases = tl.load(exponents), tl.load(exponents + 1)
    return power_of_two(tl.minimum(tl.maximum(of_vectors + exponent - of_biases, -24), 15))


@triton.jit
def _ranked(
    value: tl.tensor,
    group: tl.tensor,
    best1: tl.tensor,
    best2: tl.tensor,
    best3: tl.tensor,
    group1: tl.tensor,
    group2: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return the list of two groups and three values with one group more; which of two equal ones leads is open."""
    beats1, beats2 = value > best1, value > best2
    group2 = tl.where(beats1, group1, tl.where(beats2, group, group2))
    group1 = tl.where(beats1, group, group1)
    best3 = tl.maximum(best3, tl.minimum(value, best2))
    best2 = tl.maximum(best2, tl.minimum(value, best1))
    return tl.maximum(best1, value), best2, best3, group1, group2


@triton.jit
def _slack(
    of_operand: tl.tensor,
    of_residual: tl.tensor,
    of_row: tl.tensor,
    scale: tl.tensor,
    weight: tl.tensor,
    unit: tl.tensor,
    bounds: tl.tensor,
    D: tl.constexpr,
) -> tl.tensor:
    """Return twice the bound on |s_k - c_k| over all codes, rounded up; infinity where a chain might overflow.

    Args:
        of_operand: length of the row's operand before its rounding to float16.
        of_residual: length of what that rounding took.
        of_row: length of the row itself, in the operand's unit.
        scale: the operand's power of two.
        weight: what biases are multiplied by.
        unit: exponent of the scores' unit.
        bounds: as in `measure`.
        D: dimensions.
    """
    vector, vector_residual = tl.load(bounds), tl.load(bounds + 1)
    code, half_norm = tl.load(bounds + 2), tl.load(bounds + 3)
    bias_residual, bias = tl.load(bounds + 4), tl.load(bounds + 5)
    tiny: tl.constexpr = 2.0**-24
    # The squares that the lengths were summed from may have vanished below 2^-126.
    of_operand, of_residual, of_row = of_operand + 2.0**-50, of_residual + 2.0**-50, of_row + 2.0**-50
    # What rounding the operands to float16 took, by Cauchy and Schwarz; the centre came off with one rounding.
    rounding = (of_residual + tiny * of_operand) * (vector + vector_residual) + (
        of_operand + of_residual
    ) * vector_residual
    rounding += weight * bias_residual
    # Tensor cores add up to a few truncated bits at a time.
    product = ((D + 64) / 4 + 5) * (4 * tiny) * ((of_operand + of_residual) * vector + weight * bias)
    magnitude = half_norm * scale + of_row * code
    smallest = power_of_two(tl.minimum(tl.maximum(unit - 149, -126), 127))
    chain = D * (1.001 * tiny * magnitude + smallest)
    # Float32's end, in this unit: beyond it the chain overflows and the product knows nothing of that.
    end = tl.where(unit < -250, 0.0, power_of_two(tl.minimum(tl.maximum(unit + 125, -126), 127)))
    return tl.where(magnitude < end, 2.0 * 1.001 * (rounding + product + chain), float("inf"))


@triton.jit(do_not_specialize=["size1", "size2", "first", "end"])
def measure(
    latents: tl.tensor,
    size1: tl.tensor,
    size2: tl.tensor,
    stride0: tl.tensor,
    stride1: tl.tensor,
    stride2: tl.tensor,
    stride_d: tl.tensor,
    centre: tl.tensor,
    exponents: tl.tensor,
    bounds: tl.tensor,
    operands: tl.tensor,
    scales: tl.tensor,
    slack: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Round latents to float16, each row in its own power of two, and bound the error of its scores.

    Args:
        latents: rows of any floating dtype, laid out as `row_offsets` reads them.
        size1: length of the middle axis.
        size2: length of the last axis of rows.
        stride0: elements between neighbours of the first axis.
        stride1: of the middle axis.
        stride2: of the last axis of rows.
        stride_d: of the space.
        centre: float32 [D], taken off the latents.
        exponents: int32 [4]: of the vectors' scale, of the biases' scale, the lowest and the highest of a row's scale.
        bounds: float32 [6], of the scaled codebook: the longest vector, the longest residual, the longest code, the
            heaviest half norm, the largest residual of a bias, the largest bias.
        operands: float16 [end - first, WIDTH], written: the product's left side.
        scales: int32 [N], written: the exponent of a row's scale.
        slack: float32 [N], written: twice the bound; not finite where the product cannot be trusted.
        first: the first row that is looked at.
        end: the row after the last.
        D: dimensions.
        WIDTH: dimensions of an operand, a multiple of BLOCK_D; from D + 2 on the bias has two of them.
        BLOCK_N: rows a program.
        BLOCK_D: dimensions read at a time.
    """
    rows = first + tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exist = rows < end
    offsets = row_offsets(rows, size1, size2, stride0, stride1, stride2)
    largest = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        row = loaded_rows(latents, offsets, stride_d, d, exist, D).to(tl.float32)
        moved = row - tl.load(centre + d, mask=d < D, other=0.0)[None, :]
        largest = tl.maximum(largest, tl.max(tl.abs(moved), axis=1))
    # It brings the row's largest element to 2^5..2^6, in the middle of what float16 holds.
    exponent = 132 - ((largest.to(tl.int32, bitcast=True) >> 23) & 255)
    exponent = tl.minimum(tl.maximum(exponent, tl.load(exponents + 2)), tl.load(exponents + 3))
    exponent = tl.minimum(tl.maximum(exponent, -126), 127)
    scale, weight = power_of_two(exponent), _weight(exponent, exponents)

    of_operand = tl.zeros([BLOCK_N], tl.float32)
    of_residual, of_row = of_operand, of_operand
    place = operands + (rows - first).to(tl.int64)[:, None] * WIDTH
    for start in range(0, WIDTH, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        row = loaded_rows(latents, offsets, stride_d, d, exist, D).to(tl.float32)
        scaled = (row - tl.load(centre + d, mask=d < D, other=0.0)[None, :]) * scale[:, None]
        operand = scaled.to(tl.float16)
        residual = scaled - operand.to(tl.float32)
        row *= scale[:, None]
        of_operand += tl.sum(scaled * scaled, axis=1)
        of_residual += tl.sum(residual * residual, axis=1)
        of_row += tl.sum(row * row, axis=1)
        operand = tl.where(((d == D) | (d == D + 1))[None, :], weight[:, None].to(tl.float16), operand)
        tl.store(place + d[None, :], operand, mask=exist[:, None])
    unit = tl.load(exponents) + exponent
    bound = _slack(tl.sqrt(of_operand), tl.sqrt(of_residual), tl.sqrt(of_row), scale, weight, unit, bounds, D)
    tl.store(scales + rows, exponent, mask=exist)
    tl.store(slack + rows, bound, mask=exist)


@triton.jit(do_not_specialize=["first", "end", "N", "K", "tiles", "tiles_a_split"])
def screen(
    operands: tl.tensor,
    exponents: tl.tensor,
    scales: tl.tensor,
    vectors: tl.tensor,
    biases: tl.tensor,
    values: tl.tensor,
    groups: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    tiles: tl.tensor,
    tiles_a_split: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,
    FOLDED: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Keep each row's best two groups of codes and the third best value; one program a block of rows and a split.

    Args as in `measure`, which wrote the ``operands`` and ``scales``, and:
        vectors: float16 [tiles * BLOCK_K, CHUNKS * BLOCK_D], scaled; in a tile codes stand 8 i + 2 q + r for group q.
        biases: float16 [tiles * BLOCK_K, 16], read unless FOLDED into columns D and D + 1 of the vectors.
        values: float32 [splits, 3, N], written.
        groups: int32 [splits, 2, N], written.
        N: rows.
        K: codes.
        tiles: tiles of codes.
        tiles_a_split: tiles that one program looks through.
        BLOCK_K: codes a tile.
        BLOCK_D: dimensions a product.
        CHUNKS: products a score.
        FOLDED: whether the bias has room in the vectors.
        STAGES: tiles on their way from memory.
    """
    rows = first + tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exist = rows < end
    weight = _weight(tl.load(scales + rows, mask=exist, other=0), exponents)
    of_bias = tl.where((tl.arange(0, 16) < 2)[None, :], weight[:, None], 0.0).to(tl.float16)
    d = tl.arange(0, BLOCK_D)
    of_row = operands + (rows - first).to(tl.int64)[:, None] * (CHUNKS * BLOCK_D) + d[None, :]
    operand = tl.load(of_row, mask=exist[:, None], other=0.0)

    best1 = tl.full([BLOCK_N, 4], float("-inf"), tl.float32)
    best2, best3 = best1, best1
    group1 = tl.zeros([BLOCK_N, 4], tl.int32)
    group2 = group1
    lane = tl.arange(0, 4)[None, :]
    start = tl.program_id(1) * tiles_a_split
    column = tl.arange(0, BLOCK_K)[None, :]
    for tile in tl.range(start, tl.minimum(start + tiles_a_split, tiles), num_stages=STAGES):
        code = tl.cast(tile, tl.int64) * BLOCK_K
        scores = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        if not FOLDED:
            bias = tl.load(biases + code * 16 + (column * 16 + tl.arange(0, 16)[:, None]))
            scores = tl.dot(of_bias, bias, scores)
        pointers = vectors + code * (CHUNKS * BLOCK_D) + (column * (CHUNKS * BLOCK_D) + d[:, None])
        if CHUNKS == 1:
            scores = tl.dot(operand, tl.load(pointers), scores)
        else:
            for chunk in tl.range(CHUNKS, num_stages=STAGES):
                operand = tl.load(of_row + chunk * BLOCK_D, mask=exist[:, None], other=0.0)
                scores = tl.dot(operand, tl.load(pointers + chunk * BLOCK_D), scores)
        # Groups are spread over the columns as tensor cores spread them over threads: no shuffle.
        spread = tl.reshape(scores, [BLOCK_N, BLOCK_K // 8, 4, 2])
        top = tl.max(tl.max(spread, axis=3), axis=1)
        group = tile * 4 + lane
        top = tl.where(group * (BLOCK_K // 4) < K, top, float("-inf"))
        best1, best2, best3, group1, group2 = _ranked(top, group, best1, best2, best3, group1, group2)

    # Of the four lanes' lists, the best three values: take the largest head, let its list move up, again.
    split = tl.program_id(1).to(tl.int64)
    for place in tl.static_range(3):
        head = tl.max(best1, axis=1)
        taken = lane == tl.min(tl.where(best1 == head[:, None], lane, 3), axis=1)[:, None]
        tl.store(values + (split * 3 + place) * N + rows, head, mask=exist)
        if place < 2:
            number = tl.sum(tl.where(taken, group1, 0), axis=1)
            tl.store(groups + (split * 2 + place) * N + rows, number, mask=exist)
        best1 = tl.where(taken, best2, best1)
        group1 = tl.where(taken, group2, group1)
        best2 = tl.where(taken, best3, best2)


@triton.jit
def _scores(
    latents: tl.tensor,
    offsets: tl.tensor,
    stride_d: tl.tensor,
    columns: tl.tensor,
    half_norms: tl.tensor,
    codes: tl.tensor,
    exist: tl.tensor,
    K: tl.tensor,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    EMULATED: tl.constexpr,
) -> tl.tensor:
    """Return the scores that decide, float32 [ROWS, CODES], of ``codes`` [ROWS or 1, CODES]; -inf where none exists."""
    scores = -tl.load(half_norms + codes, mask=exist, other=float("inf"))
    scores = tl.broadcast_to(scores, [ROWS, CODES])
    for d in tl.range(D, loop_unroll_factor=4):
        element = tl.load(latents + tl.cast(d, tl.int64) * stride_d + offsets).to(tl.float32)
        vector = tl.load(columns + tl.cast(d, tl.int64) * K + codes, mask=exist, other=0.0)
        scores = fused_multiply_add(element[:, None], vector, scores, EMULATED)
    return scores


@triton.jit
def _first_largest(scores: tl.tensor, codes: tl.tensor, K: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return the largest score of each row and the lowest of the codes that have it."""
    top = tl.max(scores, axis=1)
    return top, tl.min(tl.where(scores == top[:, None], codes, K), axis=1)


@triton.jit(do_not_specialize=["size1", "size2", "N", "K", "splits"])
def decide(
    latents: tl.tensor,
    size1: tl.tensor,
    size2: tl.tensor,
    stride0: tl.tensor,
    stride1: tl.tensor,
    stride2: tl.tensor,
    stride_d: tl.tensor,
    columns: tl.tensor,
    half_norms: tl.tensor,
    values: tl.tensor,
    groups: tl.tensor,
    slack: tl.tensor,
    codes: tl.tensor,
    pending: tl.tensor,
    pending_count: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    splits: tl.tensor,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EMULATED: tl.constexpr,
) -> None:
    """Decide each row among its one or two groups, or list it for `search`; one program a block of rows.

    Args as in `measure` and `screen`, and:
        columns: float32 [D, K], the codebook's columns.
        half_norms: float32 [K].
        codes: int64 [N], written.
        pending: int32 [N], written: the listed rows, in any order.
        pending_count: int32 [1], zero before: how many they are.
        splits: how many lists of groups there are.
        GROUP: codes a group.
        EMULATED: whether the fused multiply-add is, as in the interpreter.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exist = rows < N
    rows = tl.minimum(rows, N - 1)
    offsets = row_offsets(rows, size1, size2, stride0, stride1, stride2)

    best1 = tl.full([BLOCK_N], float("-inf"), tl.float32)
    best2, best3 = best1, best1
    group1 = tl.zeros([BLOCK_N], tl.int32)
    group2 = group1
    for split in range(splits):
        value, group = (
            values + tl.cast(split, tl.int64) * 3 * N + rows,
            groups + tl.cast(split, tl.int64) * 2 * N + rows,
        )
        for place in tl.static_range(2):
            best1, best2, best3, group1, group2 = _ranked(
                tl.load(value + place * N), tl.load(group + place * N), best1, best2, best3, group1, group2
            )
        best3 = tl.maximum(best3, tl.load(value + 2 * N))  # its list has two that are not smaller
    row_slack = tl.load(slack + rows)
    least = best1 - row_slack
    decided = exist & (row_slack < float("inf")) & (best3 < least)

    own = group1[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    scores = _scores(
        latents,
        offsets,
        stride_d,
        columns,
        half_norms,
        own,
        decided[:, None] & (own < K),
        K,
        D,
        BLOCK_N,
        GROUP,
        EMULATED,
    )
    top, code = _first_largest(scores, own, K)
    both = decided & (best2 >= least)
    if tl.max(both.to(tl.int32), axis=0) > 0:
        own = group2[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        scores = _scores(
            latents,
            offsets,
            stride_d,
            columns,
            half_norms,
            own,
            both[:, None] & (own < K),
            K,
            D,
            BLOCK_N,
            GROUP,
            EMULATED,
        )
        other_top, other = _first_largest(scores, own, K)
        better = both & ((other_top > top) | ((other_top == top) & (other < code)))
        code = tl.where(better, other, code)
    tl.store(codes + rows, code.to(tl.int64), mask=decided)

    listed = (exist & ~decided).to(tl.int32)
    count = tl.sum(listed, axis=0)
    if count > 0:
        place = tl.atomic_add(pending_count, count) + tl.cumsum(listed, axis=0) - 1
        tl.store(pending + place, rows, mask=listed > 0)


@triton.jit(do_not_specialize=["size1", "size2", "K"])
def search(
    latents: tl.tensor,
    size1: tl.tensor,
    size2: tl.tensor,
    stride0: tl.tensor,
    stride1: tl.tensor,
    stride2: tl.tensor,
    stride_d: tl.tensor,
    columns: tl.tensor,
    half_norms: tl.tensor,
    codes: tl.tensor,
    pending: tl.tensor,
    pending_count: tl.tensor,
    K: tl.tensor,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EMULATED: tl.constexpr,
) -> None:
    """Score every code for the listed rows; programs share the list, and without one they end at once.

    Args as in `decide`; ``pending`` and ``pending_count`` are read.
    """
    count = tl.load(pending_count)
    for first in range(tl.program_id(0) * BLOCK_N, count, tl.num_programs(0) * BLOCK_N):
        place = first + tl.arange(0, BLOCK_N)
        rows = tl.load(pending + tl.minimum(place, count - 1))
        offsets = row_offsets(rows, size1, size2, stride0, stride1, stride2)
        best = tl.full([BLOCK_N], float("-inf"), tl.float32)
        best_code = tl.zeros([BLOCK_N], tl.int32)
        for k in range(0, K, BLOCK_K):
            own = k + tl.arange(0, BLOCK_K)[None, :]
            scores = _scores(
                latents, offsets, stride_d, columns, half_norms, own, own < K, K, D, BLOCK_N, BLOCK_K, EMULATED
            )
            top, code = _first_largest(scores, own, K)
            best_code = tl.where(top > best, code, best_code)
            best = tl.maximum(best, top)
        tl.store(codes + rows, best_code.to(tl.int64), mask=place < count)
