"""Vector quantization with a codebook that learns by gradient (van den Oord et al. 2017, equations 1 to 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqtok import ops
from vqtok.errors import ConfigError
from vqtok.quantizers.base import (
    Gradient,
    Metric,
    Quantizer,
    check_gradient,
    check_metric,
    check_positive,
    check_space,
    effective_codebook,
    effective_latents,
    nearest_row,
    passage,
)
from vqtok.quantizers.penalties import Penalty, check_penalties, penalty_losses
from vqtok.types import Quantized


class VectorQuantizer(Quantizer):
    """Nearest codebook row, straight-through gradient, codebook and commitment losses.

    Args:
        dim: length D of a vector.
        vocab_size: number of codes K.
        metric: ``"l2"`` as in the paper, or ``"cosine"``: latents and codebook are normalised
            (ViT-VQGAN, Yu et al. 2021, section 3.2).
        unit_latents: with ``"l2"``, normalise the latents and not the codebook (LaVIT, Jin et al. 2023).
        unit_vectors: with ``"l2"``, compare with the codebook's rows as they are, and hand them out normalised
            (transformers' Janus).
        gradient: what latents learn from the gradient of their vectors: ``"straight-through"``, that gradient, or
            ``"rotation"``, that gradient turned as the latent is onto its vector (Fifty et al. 2024).
        penalties: further losses, for which see `penalty_losses`; each costs about another lookup, forward and
            backward.
        entropy_temperature: of the softmax over codes in ``entropy`` and ``diversity`` (published: 0.01).

    >>> import torch
    >>> vq = VectorQuantizer(dim=2, vocab_size=4)
    >>> out = vq(torch.zeros(3, 5, 2))
    >>> out.codes.shape, sorted(out.losses)
    (torch.Size([3, 5]), ['codebook', 'commitment'])
    """

    def __init__(
        self,
        dim: int,
        vocab_size: int,
        metric: Metric = "l2",
        *,
        unit_latents: bool = False,
        unit_vectors: bool = False,
        gradient: Gradient = "straight-through",
        penalties: Sequence[Penalty] = (),
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        check_space(dim, vocab_size)
        if metric == "cosine" and (unit_latents or unit_vectors):
            raise ConfigError("expected unit_latents and unit_vectors with metric 'l2' only: cosine normalises both")
        self.dim = self.latent_dim = dim
        self.vocab_size = vocab_size
        self.metric: Metric = check_metric(metric)
        self.unit_latents, self.unit_vectors = unit_latents, unit_vectors
        self.gradient: Gradient = check_gradient(gradient)
        self.penalties = check_penalties(penalties)
        self.entropy_temperature = check_positive("entropy_temperature", entropy_temperature)
        self.codebook = nn.Parameter(torch.empty(vocab_size, dim).uniform_(-1 / vocab_size, 1 / vocab_size))

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [...] of latents [..., D]."""
        return ops.nearest_code(self._compared(latents), self.codebook, metric=self.metric)

    def decode(self, codes: Tensor) -> Tensor:
        """Return codebook rows [..., D]; unit vectors when the metric is cosine, or with ``unit_vectors``."""
        return self._handed_out(effective_codebook(self.codebook, self.metric))[codes]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., D]; losses ``codebook`` and ``commitment`` (equation 3, without beta), and penalties.

        Penalties are of what is compared: latents and rows as they are, or of unit length when the metric is cosine.
        """
        latents = self._compared(latents)
        compared = effective_codebook(self.codebook, self.metric)
        codes = nearest_row(latents, compared, self.metric)
        latents = effective_latents(latents, self.metric)
        quantized = passage(self.gradient)(latents, self._handed_out(compared), codes)
        if not self.penalties:
            return quantized
        further = penalty_losses(self.penalties, latents, compared, "l2", self.entropy_temperature)
        return Quantized(quantized.vectors, codes, {**quantized.losses, **further})

    def _compared(self, latents: Tensor) -> Tensor:
        return ops.normalize_latents(latents) if self.unit_latents else latents

    def _handed_out(self, compared: Tensor) -> Tensor:
        return effective_codebook(compared, "cosine") if self.unit_vectors else compared
