"""The gradient of latents that were rotated and scaled to their code vectors.

Legend: N latents (rows), K codes, D dimensions; z a latent, q its code vector, u and v the two over their lengths.

Source:
    Fifty et al., "Restructuring Vector Quantization with the Rotation Trick", 2024, section 4.2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import loaded_rows, row_offsets


@triton.jit(do_not_specialize=["g_size1", "g_size2", "size1", "size2", "N", "K"])
def rotate_back(
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
    SHORTEST: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Write ``|q| / |z| (g - s (2 s.g / s.s) + u (2 v.g)) - weight (q - z)`` with s = u + v, in float64.

    Args as in `straight_through.pass_back`, and:
        SHORTEST: where z is shorter than this part of q, or s than this, the gradient passes straight through.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exist = rows < N
    offsets = row_offsets(rows, size1, size2, stride0, stride1, stride2)
    g_offsets = row_offsets(rows, g_size1, g_size2, g_stride0, g_stride1, g_stride2)
    code = tl.load(codes + rows, mask=exist, other=0)
    known = exist & (code >= 0) & (code < K)

    zz = tl.zeros([BLOCK_N], tl.float64)
    qq, qg = zz, zz
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        q = loaded_rows(codebook, code * D, 1, d, known, D).to(tl.float64)
        z = loaded_rows(latents, offsets, stride_d, d, exist, D).to(tl.float64)
        g = loaded_rows(gradient, g_offsets, g_stride_d, d, exist, D).to(tl.float64)
        zz += tl.sum(z * z, axis=1)
        qq += tl.sum(q * q, axis=1)
        qg += tl.sum(q * g, axis=1)
    length, target = tl.sqrt(zz), tl.sqrt(qq)
    shortest = tl.full([], SHORTEST, tl.float64)  # bare, SHORTEST would be a float32
    rotates = (target > 0) & (length > shortest * target)
    to_u, to_v = 1 / tl.where(rotates, length, 1.0), 1 / tl.where(rotates, target, 1.0)

    # The bisector is summed by itself: of nearly opposite vectors 2 + 2 u.v would keep nothing.
    ss = tl.zeros([BLOCK_N], tl.float64)
    sg = ss
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        q = loaded_rows(codebook, code * D, 1, d, known, D).to(tl.float64)
        z = loaded_rows(latents, offsets, stride_d, d, exist, D).to(tl.float64)
        g = loaded_rows(gradient, g_offsets, g_stride_d, d, exist, D).to(tl.float64)
        s = z * to_u[:, None] + q * to_v[:, None]
        ss += tl.sum(s * s, axis=1)
        sg += tl.sum(s * g, axis=1)
    rotates &= ss > shortest * shortest
    of_s, of_u = 2 * sg / tl.where(rotates, ss, 1.0), 2 * qg * to_v
    scale, share = target * to_u, tl.load(weight).to(tl.float64)

    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        q = loaded_rows(codebook, code * D, 1, d, known, D).to(tl.float64)
        z = loaded_rows(latents, offsets, stride_d, d, exist, D).to(tl.float64)
        g = loaded_rows(gradient, g_offsets, g_stride_d, d, exist, D).to(tl.float64)
        u = z * to_u[:, None]
        turned = (g - (u + q * to_v[:, None]) * of_s[:, None] + u * of_u[:, None]) * scale[:, None]
        out = tl.where(rotates[:, None], turned, g) - share * (q - z)
        if of_latents.dtype.element_ty != tl.float64:
            out = out.to(tl.float32)
        place = of_latents + rows.to(tl.int64)[:, None] * D + d[None, :]
        tl.store(place, out.to(of_latents.dtype.element_ty), mask=exist[:, None] & (d < D)[None, :])
