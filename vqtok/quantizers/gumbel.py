"""Gumbel-softmax quantization: codes are drawn by logits while training (Ramesh et al. 2021; VQGAN's variant)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqtok import ops
from vqtok.errors import ConfigError, NonFiniteLatents
from vqtok.quantizers.base import Quantizer, check_space
from vqtok.quantizers.penalties import choose
from vqtok.types import Quantized


class GumbelQuantizer(Quantizer):
    """The code of the greatest logit; while training, a sample of them with the gradient of its relaxation.

    Args:
        latent_dim: length of a latent: the logits themselves (K of them), or what `proj` makes logits of.
        vocab_size: number of codes K.
        dim: length D of a vector.
        projection: whether logits are a linear map of the latents (VQGAN's variant; with its bias), or the latents
            (dVAE).
        relaxed: train on the expectation over the relaxed choice, as dVAE does, instead of on the chosen row. Vectors
            are rows of the codebook in eval mode only.

    Attributes:
        temperature: of the relaxation, above 0; a schedule sets it, see `vqtok.training.schedules`.

    Source:
        Jang et al., "Categorical Reparameterization with Gumbel-Softmax", 2017; Ramesh et al., "Zero-Shot
        Text-to-Image Generation", 2021, section 2.1.

    >>> vq = GumbelQuantizer(latent_dim=4, vocab_size=4, dim=2, projection=False).eval()
    >>> vq(torch.tensor([[0.1, 0.9, 0.9, 0.0]])).codes.tolist()
    [1]
    """

    learns_from_vectors = True

    def __init__(
        self, latent_dim: int, vocab_size: int, dim: int, *, projection: bool = True, relaxed: bool = False
    ) -> None:
        super().__init__()
        check_space(dim, vocab_size)
        check_space(latent_dim, vocab_size)
        if not projection and latent_dim != vocab_size:
            raise ConfigError(f"expected latent_dim {vocab_size}, a logit a code, without projection, got {latent_dim}")
        self.dim, self.latent_dim, self.vocab_size, self.relaxed = dim, latent_dim, vocab_size, relaxed
        self.temperature = 1.0
        self.proj = nn.Linear(latent_dim, vocab_size) if projection else None
        self.codebook = nn.Parameter(torch.randn(vocab_size, dim))

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [...] of latents [..., latent_dim]; of equal logits the lowest."""
        if self.proj is None:
            return _first_greatest(latents)
        # The bias is the weight of one more latent, which is 1: an inner product, so no logits are held.
        ones = latents.new_ones(*latents.shape[:-1], 1)
        rows = torch.cat([self.proj.weight, self.proj.bias[:, None]], dim=1)
        return ops.nearest_code(torch.cat([latents, ones], dim=-1), rows, metric="dot")

    def decode(self, codes: Tensor) -> Tensor:
        """Return codebook rows [..., D]."""
        return self.codebook[codes]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., latent_dim]; loss ``kl``: of the choice from a uniform one, in nats."""
        logits = (latents if self.proj is None else self.proj(latents)).float()
        log_p = logits.log_softmax(dim=-1)
        losses = {"kl": (log_p.exp() * (log_p + torch.tensor(self.vocab_size).log())).sum(dim=-1).mean()}
        if not self.training:
            codes = self.encode(latents)
            return Quantized(self.decode(codes), codes, losses)
        noisy = logits - torch.empty_like(logits).exponential_().log()
        codes = noisy.argmax(dim=-1)
        soft = (noisy / self.temperature).softmax(dim=-1)
        if self.relaxed:
            return Quantized(soft @ self.codebook, codes, losses)
        vectors = choose(soft.flatten(0, -2), self.codebook, codes.flatten())
        return Quantized(vectors.reshape(*codes.shape, self.dim), codes, losses)


def _first_greatest(logits: Tensor) -> Tensor:
    """Return the lowest index of the greatest of logits [..., K]; torch's argmax may give any of equals."""
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        finite = logits.reshape(-1, logits.shape[-1]).isfinite().all(dim=1)
        if not finite.all():
            raise NonFiniteLatents(int(finite.int().argmin()))
    indices = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(logits == logits.amax(dim=-1, keepdim=True), indices, logits.shape[-1]).amin(dim=-1)
