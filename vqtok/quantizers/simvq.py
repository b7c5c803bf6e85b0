"""SimVQ: a frozen codebook seen through one linear map that learns.

Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok import ops
from vqtok.quantizers.base import (
    Gradient,
    Quantizer,
    check_gradient,
    check_positive,
    check_space,
    full_precision,
    passage,
)
from vqtok.quantizers.penalties import Penalty, check_penalties, penalty_losses
from vqtok.types import Quantized


class SimQuantizer(Quantizer):
    """Nearest row of ``C W^T``: C is Gaussian and never learns, W does, and moves all rows at once.

    Losses are those of `VectorQuantizer`; published weights are ``codebook`` 1 and ``commitment`` 0.25
    (vector-quantize-pytorch).

    Args:
        dim: length D of a vector.
        vocab_size: number of codes K.
        bias: the map adds a vector to all rows.
        gradient: ``"straight-through"`` or ``"rotation"``, as of `VectorQuantizer`.
        penalties: further losses, for which see `penalty_losses`.
        entropy_temperature: of the softmax over codes in ``entropy`` and ``diversity``.

    >>> import torch
    >>> vq = SimQuantizer(dim=2, vocab_size=4)
    >>> out = vq(torch.zeros(3, 5, 2))
    >>> out.codes.shape, sorted(out.losses), [name for name, _ in vq.named_parameters()]
    (torch.Size([3, 5]), ['codebook', 'commitment'], ['proj.weight'])
    """

    codebook: Tensor

    def __init__(
        self,
        dim: int,
        vocab_size: int,
        *,
        bias: bool = False,
        gradient: Gradient = "straight-through",
        penalties: Sequence[Penalty] = (),
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        check_space(dim, vocab_size)
        self.dim = self.latent_dim = dim
        self.vocab_size = vocab_size
        self.gradient: Gradient = check_gradient(gradient)
        self.penalties = check_penalties(penalties)
        self.entropy_temperature = check_positive("entropy_temperature", entropy_temperature)
        self.register_buffer("codebook", torch.randn(vocab_size, dim, dtype=torch.float32) * dim**-0.5)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [...] of latents [..., D]."""
        return ops.nearest_code(latents, self.rows())

    def decode(self, codes: Tensor) -> Tensor:
        """Return rows [..., D] of the codebook behind the map."""
        return self.rows()[codes]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., D]; losses ``codebook``, which moves the map, ``commitment``, and penalties."""
        rows = self.rows()
        codes = ops.nearest_code(latents, rows)
        quantized = passage(self.gradient)(latents, rows, codes)
        further = penalty_losses(self.penalties, latents, rows, "l2", self.entropy_temperature)
        return Quantized(quantized.vectors, codes, {**quantized.losses, **further})

    def rows(self) -> Tensor:
        """Return the codebook behind the map, float32 [K, D]: always all of it, so that a row is always the same."""
        bias = None if self.proj.bias is None else self.proj.bias.float()
        with full_precision(self.codebook):
            return F.linear(self.codebook.float(), self.proj.weight.float(), bias)
