"""Nearest code wherever torch runs: a matrix product proposes, the reference's score decides.

For one latent let S_k be the exact score of code k, m_k what the matrix product makes of it and c_k the float32 chain
that decides. Any order of summation, fused or not, errs by at most n u / (1 - n u) times the sum of magnitudes for n
roundings (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1), and that sum is at most
h_k + |z| |e_k|. So |m_k - c_k| <= error, and the winner w of the chain satisfies

    m_w >= c_w - error >= c_j - error >= m_j - 2 error        for every j,

hence only codes with m_k >= max m - 2 error need the chain. Usually that is one code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqtok.ops import reference
from vqtok.ops.checks import finite_blocks

_BLOCK_SCORES = 1 << 21
_MANY = 32
_ROUNDOFF = 2.0**-24
_TINY = 2.0**-126
"""Below it a matrix product may flush to zero."""
_SAFE = 2.0**120
"""Magnitudes up to it cannot overflow, in whatever order they are summed."""


def nearest_code(latents: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    """Return the lowest code with the largest score for each latent.

    Args:
        latents: [..., D], finite, any floating dtype; rounded once to float32.
        codebook: float32 [K, D].
        half_norms: float32 [K].

    Returns:
        int64 [...].
    """
    rows_a_block = max(1, _BLOCK_SCORES // codebook.shape[0])
    codes = torch.empty(latents.shape[:-1].numel(), dtype=torch.int64, device=latents.device)
    longest, heaviest = codebook.double().norm(dim=1).amax(), half_norms.double().amax()
    # Autocast would reach into the product from outside and round its inputs to half precision.
    with torch.autocast(latents.device.type, enabled=False):
        for n, block in finite_blocks(latents, rows_a_block):
            error = _error(block, longest, heaviest)
            codes[n : n + len(block)] = _decide(block, codebook, half_norms, error)
    return codes.reshape(latents.shape[:-1])


def _error(rows: Tensor, longest: Tensor, heaviest: Tensor) -> Tensor:
    """Return float64 [n]: a bound on |m_k - c_k| for every k; infinite where the product might overflow."""
    lengths, dim = rows.double().norm(dim=1), rows.shape[1]
    magnitude = heaviest + lengths * longest
    # D + 1 roundings for the product with its bias, D for the chain; 2^-10 covers n u's second order and the norms.
    relative = (2 * dim + 1) * _ROUNDOFF * (1 + 2.0**-10)
    relative /= 1 - (dim + 1) * _ROUNDOFF
    absolute = _TINY * (4 * dim + dim**0.5 * (lengths + longest))
    return torch.where(magnitude < _SAFE, relative * magnitude + absolute, torch.inf)


def _decide(rows: Tensor, codebook: Tensor, half_norms: Tensor, error: Tensor) -> Tensor:
    """Return int64 [n] for one block of latents."""
    scores = _product(rows, codebook, half_norms)
    top, codes = scores.max(dim=1)
    least = torch.nextafter((top.double() - 2 * error).to(scores.dtype), top.new_tensor(-torch.inf))
    candidates = scores >= least[:, None]
    counts = candidates.sum(dim=1, dtype=torch.int32)
    # Not a number compares false, so rows that overflowed are told by their bound.
    dense = (error == torch.inf) | (counts > _MANY)
    few = ~dense & (counts > 1)
    if dense.any():
        codes[dense] = reference.nearest_code(rows[dense], codebook, half_norms)
    if few.any():
        row, code = candidates[few].nonzero(as_tuple=True)
        codes[few] = _winners(rows[few], row, code, codebook, half_norms)
    return codes


def _product(rows: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    """Return the approximate scores [n, K]: float32, or float64 where torch was told to round inputs of products."""
    dtype = torch.float32 if _products_are_float32(rows.device.type) else torch.float64
    return torch.addmm(-half_norms.to(dtype), rows.to(dtype), codebook.to(dtype).t())


def _products_are_float32(device_type: str) -> bool:
    """Return whether a float32 matrix product keeps its inputs, or torch was told that TF32 or bfloat16 will do."""
    backend = torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn
    settings = (torch.backends, backend, getattr(backend, "matmul", None))
    if not any(hasattr(setting, "fp32_precision") for setting in settings):  # torch before 2.9
        return torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32
    return {getattr(setting, "fp32_precision", "none") for setting in settings} <= {"ieee", "none"}


def _winners(rows: Tensor, row: Tensor, code: Tensor, codebook: Tensor, half_norms: Tensor) -> Tensor:
    """Return int64 [n]: of the candidate pairs (row, code), each row's best, ties to the lowest code."""
    pairs_a_chunk = max(1, _BLOCK_SCORES // rows.shape[1])
    scores = torch.cat(
        [
            reference.score(rows[r], codebook[k], half_norms[k])
            for r, k in zip(row.split(pairs_a_chunk), code.split(pairs_a_chunk), strict=True)
        ]
    )
    best = scores.new_full(rows.shape[:1], -torch.inf).scatter_reduce_(0, row, scores, "amax")
    winning = torch.where(scores == best[row], code, codebook.shape[0])
    return code.new_full(rows.shape[:1], codebook.shape[0]).scatter_reduce_(0, row, winning, "amin")
