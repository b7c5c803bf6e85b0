"""Index backpropagation quantization: every code learns from every latent, through the softmax (Shi et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqtok import ops
from vqtok.quantizers.base import Quantizer, check_space
from vqtok.quantizers.penalties import Penalty, blocks, check_penalties, choose, penalty_losses
from vqtok.types import Quantized


class IndexBackpropagationQuantizer(Quantizer):
    """The row with the greatest inner product; gradients pass through the softmax of all inner products.

    Its loss of three terms is, by name and with the publisher's weights, ``quantization`` (1): the mean of
    ``(q - z)^2`` with q learning through the softmax; ``commitment`` (1) and ``codebook`` (0.25), as elsewhere.

    Args:
        dim: length D of a vector.
        vocab_size: number of codes K.
        penalties: further losses: ``"entropy"`` gives ``entropy`` and ``diversity``, ``"orthogonality"`` its own.
        temperature: of the entropy penalty's soft choices.

    Source:
        Shi et al., "Scalable Image Tokenization with Index Backpropagation Quantization", 2024, equations 5 to 7.

    >>> vq = IndexBackpropagationQuantizer(dim=2, vocab_size=4)
    >>> sorted(vq(torch.zeros(3, 2)).losses)
    ['codebook', 'commitment', 'quantization']
    """

    def __init__(
        self, dim: int, vocab_size: int, *, penalties: Sequence[Penalty] = (), temperature: float = 0.01
    ) -> None:
        super().__init__()
        check_space(dim, vocab_size)
        self.dim = self.latent_dim = dim
        self.vocab_size = vocab_size
        self.penalties, self.temperature = check_penalties(penalties, temperature), temperature
        self.codebook = nn.Parameter(torch.empty(vocab_size, dim).uniform_(-1 / vocab_size, 1 / vocab_size))

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [...] of latents [..., D]."""
        return ops.nearest_code(latents, self.codebook, metric="dot")

    def decode(self, codes: Tensor) -> Tensor:
        """Return codebook rows [..., D]."""
        return self.codebook[codes]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., D]; losses ``quantization``, ``commitment`` and ``codebook``."""
        codes = self.encode(latents)
        losses = ops.straight_through(latents, self.codebook, codes).losses
        vectors = self._chosen(latents.reshape(-1, self.dim), codes.reshape(-1)).reshape(latents.shape)
        quantization = (vectors - latents).square().mean() if vectors.numel() else vectors.sum()
        penalties = penalty_losses(self.penalties, latents, self.codebook, self.temperature)
        return Quantized(vectors, codes, {"quantization": quantization, **losses, **penalties})

    def _chosen(self, latents: Tensor, codes: Tensor) -> Tensor:
        """Return the rows chosen by latents [N, D], block by block: probabilities are made anew for the gradient."""
        parts = [
            checkpoint(_choose, block, self.codebook, picked, use_reentrant=False)
            for block, picked in zip(blocks(latents, self.vocab_size), blocks(codes, self.vocab_size), strict=True)
        ]
        return torch.cat(parts)


def _choose(latents: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:
    return choose((latents.float() @ codebook.T).softmax(dim=1), codebook, codes)
