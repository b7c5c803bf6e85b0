"""Vector quantization with a codebook that learns by gradient (van den Oord et al. 2017, equations 1 to 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqtok import ops
from vqtok.quantizers.base import (
    Metric,
    Quantizer,
    check_metric,
    check_space,
    effective_codebook,
    effective_latents,
    nearest_row,
)
from vqtok.types import Quantized


class VectorQuantizer(Quantizer):
    """Nearest codebook row, straight-through gradient, codebook and commitment losses.

    Args:
        dim: length D of a vector.
        vocab_size: number of codes K.
        metric: ``"l2"`` as in the paper, or ``"cosine"``: latents and codebook are normalised
            (ViT-VQGAN, Yu et al. 2021, section 3.2).

    >>> import torch
    >>> vq = VectorQuantizer(dim=2, vocab_size=4)
    >>> out = vq(torch.zeros(3, 5, 2))
    >>> out.codes.shape, sorted(out.losses)
    (torch.Size([3, 5]), ['codebook', 'commitment'])
    """

    def __init__(self, dim: int, vocab_size: int, metric: Metric = "l2") -> None:
        super().__init__()
        check_space(dim, vocab_size)
        self.dim = self.latent_dim = dim
        self.vocab_size = vocab_size
        self.metric: Metric = check_metric(metric)
        self.codebook = nn.Parameter(torch.empty(vocab_size, dim).uniform_(-1 / vocab_size, 1 / vocab_size))

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [...] of latents [..., D]."""
        return ops.nearest_code(latents, self.codebook, metric=self.metric)

    def decode(self, codes: Tensor) -> Tensor:
        """Return codebook rows [..., D]; unit vectors when the metric is cosine."""
        return effective_codebook(self.codebook, self.metric)[codes]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., D]; losses ``codebook`` and ``commitment`` (equation 3, without beta)."""
        codebook = effective_codebook(self.codebook, self.metric)
        codes = nearest_row(latents, codebook, self.metric)
        return ops.straight_through(effective_latents(latents, self.metric), codebook, codes)
