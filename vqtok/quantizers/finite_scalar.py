"""Finite scalar quantization: every dimension rounded to a few levels (Mentzer et al. 2023, "VQ-VAE Made Simple")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import numpy as np
import torch
from torch import Tensor

from vqtok import ops
from vqtok.errors import ConfigError
from vqtok.quantizers.base import Quantizer, check_codes, check_latents
from vqtok.types import Quantized

_LARGEST = 1 << 62


class FiniteScalarQuantizer(Quantizer):
    """A few levels a dimension, straight-through gradient; neither codebook, lookup nor losses.

    A code's digits are the levels, the first dimension's the fastest. Codes come from comparisons with the points
    between levels and so depend on no device's tanh.

    Args:
        levels: number of levels of each dimension; their product is the vocabulary's size. At least 3 each, at least 2
            with ``symmetric``.
        symmetric: L levels evenly from -1 to 1, digit ``floor((L - 1) (tanh z + 1) / 2 + 1 / 2)`` (Parker et al. 2024,
            "Scaling Transformers for Low-Bitrate High-Quality Speech Coding", section 3.2), instead of the paper's
            bound, for which see `vqtok.ops.finite_scalar`.

    >>> import torch
    >>> fsq = FiniteScalarQuantizer(levels=(8, 5, 5, 5))
    >>> out = fsq(torch.zeros(3, 4))
    >>> fsq.vocab_size, out.codes.tolist(), out.vectors[0].tolist()
    (1000, [500, 500, 500], [0.0, 0.0, 0.0, 0.0])
    >>> FiniteScalarQuantizer((2, 4), symmetric=True)(torch.tensor([[0.3, -9.0]])).vectors.tolist()
    [[1.0, -1.0]]
    """

    def __init__(self, levels: Sequence[int], symmetric: bool = False) -> None:
        super().__init__()
        self.levels, self.symmetric = tuple(levels), symmetric
        least = 2 if symmetric else 3
        if not self.levels or any(type(count) is not int or count < least for count in self.levels):
            raise ConfigError(f"expected levels as whole numbers of at least {least}, one a dimension, got {levels}")
        self.dim = self.latent_dim = len(self.levels)
        self.vocab_size = math.prod(self.levels)
        if self.vocab_size > _LARGEST:
            raise ConfigError(f"expected levels whose product fits in int64, got {self.vocab_size}")
        self._ends = [symmetric_thresholds(count) for count in self.levels] if symmetric else []

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [...] of latents [..., D]."""
        if not self.symmetric:
            return ops.finite_scalar(latents.detach(), self.levels).codes
        check_latents(latents, self.dim)
        places = accumulate(self.levels[:-1], mul, initial=1)
        columns = latents.detach().float().movedim(-1, 0).contiguous()
        codes = torch.zeros(latents.shape[:-1], dtype=torch.int64, device=latents.device)
        for column, ends, place in zip(columns, self._ends, places, strict=True):
            reached = torch.tensor(ends, dtype=torch.float32, device=latents.device)
            codes = codes + place * torch.bucketize(column, reached, right=True)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Return vectors float32 [..., D] in [-1, 1] of codes int64 [...]."""
        if not self.symmetric:
            return ops.finite_scalar_vectors(codes, self.levels)
        check_codes(codes, self.vocab_size)
        columns = []
        for count in self.levels:
            columns.append((2 * (codes % count) - (count - 1)).float() / (count - 1))
            codes = codes // count
        return torch.stack(columns, dim=-1)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., D] with the gradient of the bound, as if nothing had been rounded; no losses."""
        if not self.symmetric:
            return ops.finite_scalar(latents, self.levels)
        codes = self.encode(latents)
        bound = latents.to(torch.promote_types(latents.dtype, torch.float32)).tanh()
        return Quantized(ops.pass_through(self.decode(codes), bound), codes, {})


def symmetric_thresholds(count: int) -> tuple[float, ...]:
    """Return for each of the symmetric levels but the lowest the least float32 latent that reaches it."""
    return tuple(_float32_from(math.atanh((2 * level - 1) / (count - 1) - 1)) for level in range(1, count))


def _float32_from(x: float) -> float:
    """Return the least float32 that is not below x."""
    nearest = np.float32(x)
    return float(nearest if float(nearest) >= x else np.nextafter(nearest, np.float32(np.inf)))
