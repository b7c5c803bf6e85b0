"""What training asks of the Triton kernels: statistics of codes, code vectors and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from vqtok.ops.reference import common_dtype
from vqtok.ops.triton import kernel_module, rows_of

_GATHERED_ROWS = 32


def code_statistics(latents: Tensor, codes: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return counts int64 [K] and sums float32 [K, D], added in float64 in row order and rounded once.

    Args:
        latents: [..., D], any floating dtype.
        codes: int64 [...], each in 0..vocab_size-1.
        vocab_size: K.
    """
    dim, codes = latents.shape[-1], codes.reshape(-1)
    taken, order = codes.sort(stable=True)
    # bincount is not deterministic on a GPU; where the sorted codes change is.
    ends = torch.searchsorted(taken, torch.arange(vocab_size, device=codes.device, dtype=torch.int64), right=True)
    sums = torch.zeros(vocab_size, dim, dtype=torch.float32, device=latents.device)
    if len(codes):
        rows, block_d = rows_of(latents), min(128, 1 << (dim - 1).bit_length())
        with torch.cuda.device_of(latents):
            kernel_module("code_statistics").sum_rows[(vocab_size, -(-dim // block_d))](
                rows.latents, *rows.walk, order, ends, sums, D=dim, BLOCK_D=block_d, num_warps=-(-block_d // 32)
            )
    return ends.diff(prepend=ends.new_zeros(1)), sums


def straight_through(latents: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codebook's rows, bit for bit, and the mean squared difference from the latents.

    The difference is summed in a fixed order, so two calls give the same bits.

    Args:
        latents: [..., D], any floating dtype.
        codebook: [K, D], any floating dtype.
        codes: int64 [...].

    Returns:
        vectors [..., D] of the codebook's dtype (not a number for a code out of range), and a scalar: float64 where an
        input is, else float32; 0 for N = 0.
    """
    vocab_size, dim = codebook.shape
    wide = common_dtype(latents, codebook)
    vectors = torch.empty(latents.shape, dtype=codebook.dtype, device=latents.device)
    programs = -(-codes.numel() // _GATHERED_ROWS)
    errors = torch.zeros(max(programs, 1), dtype=torch.float64, device=latents.device)
    if programs:
        rows = rows_of(latents)
        with torch.cuda.device_of(latents):
            kernel_module("straight_through").gather[(programs,)](
                rows.latents,
                *rows.walk,
                codebook.contiguous(),
                codes.contiguous(),
                vectors,
                errors,
                rows.count,
                vocab_size,
                D=dim,
                BLOCK_N=_GATHERED_ROWS,
                BLOCK_D=min(64, 1 << (dim - 1).bit_length()),
                DOUBLE=wide == torch.float64,
                num_warps=4,
            )
    return vectors, (errors.sum() / max(latents.numel(), 1)).to(wide)
