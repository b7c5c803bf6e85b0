"""The inputs of cases: seeded, so that every run and every contender has the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .protocol import Shape


@dataclass(frozen=True, slots=True)
class Lookup:
    """Latents float32 [N, D] and a codebook float32 [K, D]."""

    latents: Tensor
    codebook: Tensor


def gaussian_lookup(shape: Shape, device: str) -> Lookup:
    """Return Gaussian latents and codes: no structure that a lookup could make use of."""
    rows, vocab_size, dim = shape
    generator = torch.Generator().manual_seed(0)
    latents, codebook = (torch.randn(n, dim, generator=generator) for n in (rows, vocab_size))
    return Lookup(latents.to(device), codebook.to(device))
