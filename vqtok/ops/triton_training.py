"""What training asks of the Triton kernels: statistics of codes, code vectors and their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from vqtok.ops.levels import level_thresholds
from vqtok.ops.reference import LEAST_LENGTH, SHORTEST, common_dtype
from vqtok.ops.triton import kernel_module, rows_of

_CODES = 64
_ROWS = 32
"""A program's, where it reads 64 dimensions at a time."""


def code_statistics(latents: Tensor, codes: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return counts int64 [K] and sums float32 [K, D], added in float64 in row order and rounded once.

    Args:
        latents: [..., D], any floating dtype.
        codes: int64 [...], each in 0..vocab_size-1.
        vocab_size: K.
    """
    return _summed(latents, codes, vocab_size)


def codebook_backward(latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    """Return the codebook's gradient [K, D] in its dtype; see `reference.codebook_backward`."""
    return (weight * _summed(latents, codes, codebook.shape[0], codebook.contiguous())[1]).to(codebook.dtype)


def _summed(latents: Tensor, codes: Tensor, vocab_size: int, codebook: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return counts and sums of latents, or of what they lack to their rows of a codebook."""
    dim, codes = latents.shape[-1], codes.reshape(-1)
    taken, order = codes.sort(stable=True)
    # bincount is not deterministic on a GPU; where the sorted codes change is.
    ends = torch.searchsorted(taken, torch.arange(vocab_size, device=codes.device, dtype=torch.int64), right=True)
    sums = torch.zeros(vocab_size, dim, dtype=torch.float32, device=latents.device)
    if len(codes):
        rows, block_d = rows_of(latents), min(128, _power_of_two(dim))
        vectors = sums if codebook is None else codebook
        with torch.cuda.device_of(latents):
            kernel_module("code_statistics").sum_rows[(vocab_size, -(-dim // block_d))](
                rows.latents,
                *rows.walk,
                order,
                ends,
                vectors,
                sums,
                D=dim,
                BLOCK_D=block_d,
                DIFFERENCES=codebook is not None,
                DOUBLE=common_dtype(latents, vectors) == torch.float64,
                num_warps=-(-block_d // 32),
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
    programs = -(-codes.numel() // _ROWS)
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
                BLOCK_N=_ROWS,
                BLOCK_D=min(64, _power_of_two(dim)),
                DOUBLE=wide == torch.float64,
                num_warps=4,
            )
    return vectors, (errors.sum() / max(latents.numel(), 1)).to(wide)


def straight_through_backward(
    gradient: Tensor, latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor
) -> Tensor:
    """Return the gradient [..., D] in the latents' dtype; see `reference.straight_through_backward`."""
    dim, block_d = latents.shape[-1], min(64, _power_of_two(latents.shape[-1]))
    of_latents = torch.empty(latents.shape, dtype=latents.dtype, device=latents.device)
    if codes.numel():
        g, z = rows_of(gradient), rows_of(latents)
        with torch.cuda.device_of(latents):
            kernel_module("straight_through").pass_back[(-(-z.count // _ROWS), -(-dim // block_d))](
                g.latents,
                *g.walk,
                z.latents,
                *z.walk,
                codebook.contiguous(),
                codes.contiguous(),
                weight,
                of_latents,
                z.count,
                codebook.shape[0],
                D=dim,
                BLOCK_N=_ROWS,
                BLOCK_D=block_d,
                DOUBLE=common_dtype(latents, codebook) == torch.float64,
                num_warps=4,
                enable_fp_fusion=False,
            )
    return of_latents


def rotate_backward(gradient: Tensor, latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    """Return the rotated gradient [..., D] in the latents' dtype; see `reference.rotate_backward`."""
    of_latents = torch.empty(latents.shape, dtype=latents.dtype, device=latents.device)
    if codes.numel():
        g, z = rows_of(gradient), rows_of(latents)
        with torch.cuda.device_of(latents):
            kernel_module("rotate").rotate_back[(-(-z.count // _ROWS),)](
                g.latents,
                *g.walk,
                z.latents,
                *z.walk,
                codebook.contiguous(),
                codes.contiguous(),
                weight,
                of_latents,
                z.count,
                codebook.shape[0],
                SHORTEST=SHORTEST,
                D=latents.shape[-1],
                BLOCK_N=_ROWS,
                BLOCK_D=min(32, _power_of_two(latents.shape[-1])),
                num_warps=4,
            )
    return of_latents


def half_squared_norms(codebook: Tensor) -> Tensor:
    """Return half of each row's squared norm, float32 [K], of a codebook float32 [K, D]."""
    return _codebook_norms(codebook, torch.empty(codebook.shape[0], dtype=torch.float32, device=codebook.device), False)


def normalize_codebook(codebook: Tensor) -> Tensor:
    """Return the rows over their length, float32 [K, D], of a codebook float32 [K, D]."""
    return _codebook_norms(codebook, torch.empty(codebook.shape, dtype=torch.float32, device=codebook.device), True)


def _codebook_norms(codebook: Tensor, out: Tensor, unit: bool) -> Tensor:
    vocab_size, dim = codebook.shape
    if out.numel():
        with torch.cuda.device_of(codebook):
            kernel_module("norms").codebook_norms[(-(-vocab_size // _CODES),)](
                codebook.contiguous(), out, vocab_size, D=dim, BLOCK_K=_CODES, UNIT=unit, num_warps=1
            )
    return out


def normalize_latents(latents: Tensor) -> Tensor:
    """Return latents over their length, of at least float32 [..., D]; see `reference.normalize_latents`."""
    unit = torch.empty(latents.shape, dtype=common_dtype(latents, latents), device=latents.device)
    if unit.numel():
        rows, dim = rows_of(latents), latents.shape[-1]
        with torch.cuda.device_of(latents):
            kernel_module("norms").unit_rows[(-(-rows.count // _ROWS),)](
                rows.latents,
                *rows.walk,
                unit,
                rows.count,
                LEAST=LEAST_LENGTH,
                D=dim,
                BLOCK_N=_ROWS,
                BLOCK_D=min(64, _power_of_two(dim)),
                num_warps=4,
            )
    return unit


def normalize_latents_backward(gradient: Tensor, latents: Tensor) -> Tensor:
    """Return the latents' gradient [..., D] in their dtype; see `reference.normalize_latents_backward`."""
    of_latents = torch.empty(latents.shape, dtype=latents.dtype, device=latents.device)
    if of_latents.numel():
        g, z, dim = rows_of(gradient), rows_of(latents), latents.shape[-1]
        with torch.cuda.device_of(latents):
            kernel_module("norms").unit_rows_back[(-(-z.count // _ROWS),)](
                g.latents,
                *g.walk,
                z.latents,
                *z.walk,
                of_latents,
                z.count,
                LEAST=LEAST_LENGTH,
                D=dim,
                BLOCK_N=_ROWS,
                BLOCK_D=min(32, _power_of_two(dim)),
                num_warps=4,
            )
    return of_latents


def finite_scalar(latents: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return codes int64 [...] and vectors float32 [..., D]; see `reference.finite_scalar`."""
    codes = torch.empty(latents.shape[:-1], dtype=torch.int64, device=latents.device)
    vectors = torch.empty(latents.shape, dtype=torch.float32, device=latents.device)
    if codes.numel():
        rows, room = rows_of(latents), _power_of_two(max(levels))
        with torch.cuda.device_of(latents):
            kernel_module("finite_scalar").round_to_levels[(-(-rows.count // _CODES),)](
                rows.latents,
                *rows.walk,
                *_level_tables(tuple(levels), room, latents.device),
                codes,
                vectors,
                rows.count,
                D=len(levels),
                BLOCK_N=_CODES,
                BLOCK_L=room,
                num_warps=4,
            )
    return codes, vectors


@cache
def _level_tables(levels: tuple[int, ...], room: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return thresholds float32 [D, room] and levels int32 [D]; kept, so that only a first call copies them over."""
    ends = [(*level_thresholds(count), *[math.nan] * (room - count + 1)) for count in levels]
    thresholds = torch.tensor(ends, dtype=torch.float32, device="cpu").to(device)
    return thresholds, torch.tensor(levels, dtype=torch.int32, device="cpu").to(device)


def _power_of_two(x: int) -> int:
    return 1 << (x - 1).bit_length()
