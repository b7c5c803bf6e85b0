"""What each op means. Slow, short, and what every other backend is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from vqtok.ops.arithmetic import fused_multiply_add
from vqtok.ops.checks import finite_blocks

_BLOCK_SCORES = 1 << 18
"""Scores held at a time, in float64 with a handful of temporaries: some tens of megabytes."""


def score(latents: Tensor, vectors: Tensor, half_norms: Tensor) -> Tensor:
    """Return the score of code vectors for latents: one fused multiply-add over d = 0..D-1, from ``-half_norms`` on.

    Args:
        latents: float32 [..., D].
        vectors: float32 [..., D], broadcastable with ``latents``.
        half_norms: float32 [...], broadcastable with the leading dimensions.

    Returns:
        float32 [...]. The larger, the nearer: it is half of ``|z|^2 - |z - e|^2``.
    """
    scores = -half_norms
    for d in range(latents.shape[-1]):
        scores = fused_multiply_add(latents[..., d], vectors[..., d], scores)
    return scores


def nearest_code(latents: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    """Return the lowest code with the largest score for each latent.

    Args:
        latents: [..., D], finite, any floating dtype; rounded once to float32.
        codebook: float32 [K, D].
        half_norms: float32 [K].

    Returns:
        int64 [...].
    """
    codes_a_block = min(codebook.shape[0], _BLOCK_SCORES)
    rows_a_block = max(1, _BLOCK_SCORES // codes_a_block)
    codes = torch.empty(latents.shape[:-1].numel(), dtype=torch.int64, device=latents.device)
    for n, rows in finite_blocks(latents, rows_a_block):
        block = rows[:, None]
        best = block.new_full(block.shape[:1], -torch.inf)
        best_code = torch.zeros(block.shape[:1], dtype=torch.int64, device=block.device)
        for k in range(0, codebook.shape[0], codes_a_block):
            scores = score(block, codebook[k : k + codes_a_block], half_norms[k : k + codes_a_block])
            top, at = _first_largest(scores)
            best_code = torch.where(top > best, at + k, best_code)
            best = torch.maximum(top, best)
        codes[n : n + len(rows)] = best_code
    return codes.reshape(latents.shape[:-1])


def code_statistics(latents: Tensor, codes: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return how many latents have each code, and their sum: added in float64 in row order, rounded once.

    Args:
        latents: [..., D], any floating dtype.
        codes: int64 [...], each in 0..vocab_size-1.
        vocab_size: K.

    Returns:
        counts int64 [K] and sums float32 [K, D].
    """
    rows, codes = latents.reshape(-1, latents.shape[-1]).double(), codes.reshape(-1)
    order = codes.sort(stable=True).indices
    # bincount is not deterministic on CUDA; where the sorted codes change is.
    ends = torch.searchsorted(codes[order], torch.arange(vocab_size, device=codes.device), right=True)
    counts = ends.diff(prepend=ends.new_zeros(1))
    sums = torch.segment_reduce(rows[order], "sum", lengths=counts, axis=0, initial=0)
    return counts, sums.float()


def straight_through(latents: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codebook's rows, bit for bit, and the mean squared difference from the latents.

    Args:
        latents: [..., D], any floating dtype.
        codebook: [K, D], any floating dtype.
        codes: int64 [...].

    Returns:
        vectors [..., D] of the codebook's dtype, and a scalar: float64 where an input is, else float32; 0 for N = 0.
    """
    vectors = codebook[codes.contiguous()]  # else in the memory order of the codes
    return vectors, difference(vectors, latents).square_().sum() / max(latents.numel(), 1)


def difference(vectors: Tensor, latents: Tensor) -> Tensor:
    """Return ``vectors - latents`` in at least float32."""
    dtype = torch.promote_types(torch.promote_types(vectors.dtype, latents.dtype), torch.float32)
    return vectors.to(dtype) - latents.to(dtype)


def _first_largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of each row and the first place where it stands; argmax leaves the place open on CUDA."""
    top = scores.amax(dim=1)
    places = torch.arange(scores.shape[1], device=scores.device)
    return top, torch.where(scores == top[:, None], places, scores.shape[1]).amin(dim=1)
