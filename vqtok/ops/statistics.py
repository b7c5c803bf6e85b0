"""code_statistics: how often each code was taken, and by which latents; what EMA codebooks and k-means live on."""

from __future__ import annotations

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.ops.checks import FLOATS, check_codes, check_range
from vqtok.ops.registration import register
from vqtok.ops.table import CODE_STATISTICS


def code_statistics(latents: Tensor, codes: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return how many latents have each code, and their sum.

    The sums are added in float64 in row order and rounded once, so the same batch gives the same bits, whatever the
    threads. Memory is O(N + K D): there is no one-hot matrix.

    Args:
        latents: [..., D], any leading shape and strides; float16, bfloat16, float32 or float64.
        codes: int64 [...], each in 0..vocab_size-1.
        vocab_size: K.

    Returns:
        counts int64 [K] and sums float32 [K, D]; zeros where no latent has the code.

    Raises:
        ConfigError: shapes or dtypes do not fit, or a code is out of range (only checked on the CPU).
        BackendUnavailable: the backend asked for cannot run.

    Source:
        van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning", 2017, appendix A.1.

    >>> counts, sums = code_statistics(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1, 0, 1]), vocab_size=3)
    >>> counts.tolist(), sums.flatten().tolist()
    ([1, 2, 0], [2.0, 5.0, 0.0])
    """
    if latents.dim() == 0 or latents.shape[-1] == 0 or latents.dtype not in FLOATS:
        raise ConfigError(f"expected float latents [..., D], got {latents.dtype} {list(latents.shape)}")
    if vocab_size < 1:
        raise ConfigError(f"expected a vocab_size of at least 1, got {vocab_size}")
    check_codes(latents, codes)
    return torch.ops.vqtok.code_statistics.default(latents.detach(), codes, vocab_size)


def _compute(latents: Tensor, codes: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    check_range(codes, vocab_size)
    return CODE_STATISTICS.choose(latents)(latents, codes, vocab_size)


def _fake(latents: Tensor, codes: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    counts = codes.new_empty((vocab_size,))
    return counts, latents.new_empty((vocab_size, latents.shape[-1]), dtype=torch.float32)


register("code_statistics(Tensor latents, Tensor codes, SymInt vocab_size) -> (Tensor, Tensor)", _compute, _fake)
