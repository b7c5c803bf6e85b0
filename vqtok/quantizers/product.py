"""Product quantization: groups of the last axis, each quantized by itself (Jegou et al. 2011)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqtok.quantizers.base import Quantizer
from vqtok.quantizers.residual import check_alike, join_codes, mean_losses, split_codes
from vqtok.types import Quantized


class ProductQuantizer(Quantizer):
    """Groups of a latent side by side, each with a quantizer of its own; losses are averaged over them by name.

    Args:
        quantizers: one for each group, in the order of the last axis.

    Source:
        Jegou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", 2011, section III; Baevski et al.,
        "wav2vec 2.0", 2020 (groups of codes).

    >>> from vqtok import VectorQuantizer
    >>> vq = ProductQuantizer([VectorQuantizer(dim=2, vocab_size=4) for _ in range(3)])
    >>> vq.dim, vq(torch.zeros(5, 6)).codes.shape
    (6, torch.Size([5, 3]))
    """

    def __init__(self, quantizers: Sequence[Quantizer]) -> None:
        super().__init__()
        first = check_alike(quantizers)
        self.quantizers = nn.ModuleList(quantizers)
        self.dim, self.latent_dim = (len(quantizers) * x for x in (first.dim, first.latent_dim))
        self.vocab_size, self.codebooks = first.vocab_size, len(quantizers) * first.codebooks
        self.learns_from_vectors = any(x.learns_from_vectors for x in quantizers)

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [..., Q] of latents [..., latent_dim], group after group."""
        return self._joined([x.encode(part) for x, part in zip(self.quantizers, self._parts(latents), strict=True)])  # pyright: ignore[reportCallIssue]

    def decode(self, codes: Tensor) -> Tensor:
        """Return vectors [..., D] of codes int64 [..., Q]."""
        groups = [codes] if self.codebooks == 1 else split_codes(codes, self.codebooks // len(self.quantizers))
        return torch.cat([x.decode(part) for x, part in zip(self.quantizers, groups, strict=True)], dim=-1)  # pyright: ignore[reportCallIssue]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., latent_dim]; each loss of the groups, averaged over them."""
        found = [x(part) for x, part in zip(self.quantizers, self._parts(latents), strict=True)]
        vectors = torch.cat([x.vectors for x in found], dim=-1)
        return Quantized(vectors, self._joined([x.codes for x in found]), mean_losses([x.losses for x in found]))

    def _parts(self, latents: Tensor) -> Sequence[Tensor]:
        return latents.chunk(len(self.quantizers), dim=-1)

    def _joined(self, codes: list[Tensor]) -> Tensor:
        return codes[0] if self.codebooks == 1 else join_codes(codes, self.codebooks // len(self.quantizers))
