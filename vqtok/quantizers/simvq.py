"""SimVQ: a frozen random codebook seen through one linear map that learns (Zhu et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok import ops
from vqtok.quantizers.base import Gradient, Quantizer, check_gradient, check_space, pass_rows
from vqtok.types import Quantized


class SimQuantizer(Quantizer):
    """Nearest row of a frozen codebook times a square matrix: when the matrix learns, all codes move at once.

    Args:
        dim: length D of a vector.
        vocab_size: number of codes K.
        gradient: ``"straight-through"``, or ``"rotation"`` (Fifty et al. 2024), see `vqtok.ops.rotate`.

    Source:
        Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer", 2024,
        equation 5; the publisher weighs ``codebook`` 1 and ``commitment`` 0.25.

    >>> vq = SimQuantizer(dim=2, vocab_size=4)
    >>> sorted(vq(torch.zeros(3, 2)).losses), [name for name, _ in vq.named_parameters()]
    (['codebook', 'commitment'], ['transform'])
    """

    frozen: Tensor

    def __init__(self, dim: int, vocab_size: int, *, gradient: Gradient = "straight-through") -> None:
        super().__init__()
        check_space(dim, vocab_size)
        self.dim = self.latent_dim = dim
        self.vocab_size = vocab_size
        self.gradient: Gradient = check_gradient(gradient)
        self.register_buffer("frozen", torch.randn(vocab_size, dim) * dim**-0.5)
        self.transform = nn.Parameter(torch.empty(dim, dim).uniform_(-(dim**-0.5), dim**-0.5))

    @property
    def codebook(self) -> Tensor:
        """The rows [K, D] that latents are compared with."""
        return F.linear(self.frozen, self.transform)

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [...] of latents [..., D]."""
        return ops.nearest_code(latents, self.codebook)

    def decode(self, codes: Tensor) -> Tensor:
        """Return codebook rows [..., D]."""
        return self.codebook[codes]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., D]; losses ``codebook`` and ``commitment``."""
        codebook = self.codebook
        return pass_rows(self.gradient, latents, codebook, ops.nearest_code(latents, codebook))
