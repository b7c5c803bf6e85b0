"""Gumbel-softmax: codes are drawn from the encoder's logits while it trains.

Jang, Gu and Poole 2017 and Maddison, Mnih and Teh 2017; as a tokenizer Ramesh et al. 2021 (DALL-E's dVAE, where latents
are the logits) and Esser et al. 2021 (VQGAN, where a linear map makes them).
"""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok import ops
from vqtok.errors import ConfigError
from vqtok.quantizers.base import Quantizer, check_latents, check_positive, check_space, full_precision
from vqtok.types import Quantized


class GumbelQuantizer(Quantizer):
    """Training draws codes by the logits, eval takes the greatest; a row of the codebook is the vector.

    In training mode a code is the greatest of ``logits + g``, g independent Gumbel noise (torch's own generator),
    and learns as the mixture of rows by ``softmax((logits + g) / temperature)``: the row that was chosen gets the
    gradient of the vector, the logits that of the mixture. In eval mode g is 0.

    Args:
        latent_dim: length of a latent.
        vocab_size: number of codes K.
        dim: length D of a vector.
        projection: logits are ``proj`` of the latents; else latents are the logits, and ``latent_dim`` is K.
        hard: training hands out the row that was drawn; else, as DALL-E's dVAE, the mixture itself. Eval always hands
            out rows.
        temperature: of the mixture: an attribute that a schedule sets (`vqtok.training.schedules`).

    >>> import torch
    >>> gumbel = GumbelQuantizer(latent_dim=3, vocab_size=3, dim=2, projection=False).eval()
    >>> out = gumbel(torch.tensor([[0.0, 5.0, 5.0]]))
    >>> out.codes.tolist(), torch.equal(out.vectors[0], gumbel.codebook[1]), list(out.losses)
    ([1], True, ['kl'])
    """

    def __init__(
        self,
        latent_dim: int,
        vocab_size: int,
        dim: int,
        *,
        projection: bool = True,
        hard: bool = True,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_space(dim, vocab_size)
        if latent_dim < 1 or (not projection and latent_dim != vocab_size):
            raise ConfigError(
                f"expected latent_dim {'>= 1' if projection else f'= vocab_size = {vocab_size} without a projection'}, "
                f"got {latent_dim}"
            )
        self.latent_dim, self.vocab_size, self.dim = latent_dim, vocab_size, dim
        self.hard, self.temperature = hard, check_positive("temperature", temperature)
        self.codebook = nn.Parameter(torch.randn(vocab_size, dim))
        self.proj = nn.Linear(latent_dim, vocab_size) if projection else None

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [...] of latents [..., latent_dim]: the lowest of the greatest logits.

        A projected logit is the product of ``[z, 1]`` and ``[w_k, b_k]``, so `vqtok.ops.nearest_code` finds the
        greatest without holding any logits, and finds the same whatever the batch.
        """
        check_latents(latents, self.latent_dim)
        if self.proj is None:
            return _first_greatest(latents.detach())
        homogeneous = torch.cat([latents, torch.ones_like(latents[..., :1])], dim=-1)
        return ops.nearest_code(homogeneous, torch.cat([self.proj.weight, self.proj.bias[:, None]], dim=1), "dot")

    def decode(self, codes: Tensor) -> Tensor:
        """Return codebook rows [..., D]."""
        return self.codebook[codes]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., latent_dim]; loss ``kl``, of their distributions from the uniform one, in nats."""
        check_latents(latents, self.latent_dim)
        logits = self._logits(latents)
        noisy = logits + _gumbel_noise(logits) if self.training else logits
        codes = _first_greatest(noisy.detach()) if self.training else self.encode(latents)
        mixture = (noisy / self.temperature).softmax(dim=-1)
        if self.hard or not self.training:
            vectors = _Select.apply(mixture, self.codebook, codes)
        else:
            with full_precision(mixture):
                vectors = mixture @ self.codebook.to(mixture.dtype)
        return Quantized(vectors, codes, {"kl": kl_to_uniform(logits)})

    def _logits(self, latents: Tensor) -> Tensor:
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        if self.proj is None:
            return latents
        with full_precision(latents):
            return F.linear(latents, self.proj.weight.to(latents.dtype), self.proj.bias.to(latents.dtype))


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Return the mean over latents of the divergence of softmax(logits) [..., K] from the uniform distribution.

    >>> kl_to_uniform(torch.zeros(5, 8)).item()
    0.0
    """
    logs = logits.log_softmax(dim=-1)
    return (logs.exp() * (logs + log(logits.shape[-1]))).sum() / max(logits.shape[:-1].numel(), 1)


class _Select(torch.autograd.Function):
    """Rows of the codebook by codes; backward as if mixed by the mixture, with the rows' own gradient by codes."""

    @staticmethod
    def forward(mixture: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:
        return codebook[codes]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        codebook, codes = ctx.saved_tensors
        with full_precision(codebook):
            to_mixture = gradients[0].to(ctx.dtype) @ codebook.mT.to(ctx.dtype)
        sums = ops.code_statistics(gradients[0], codes, codebook.shape[0])[1]
        return to_mixture, sums.to(codebook.dtype), None


def _gumbel_noise(logits: Tensor) -> Tensor:
    """Return independent noise in the shape of logits; the least number keeps it finite."""
    return torch.empty_like(logits).exponential_().clamp(min=torch.finfo(logits.dtype).tiny).log().neg()


def _first_greatest(logits: Tensor) -> Tensor:
    """Return the lowest code [...] of the greatest logits [..., K]; argmax leaves the place open on CUDA."""
    places = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(logits == logits.amax(dim=-1, keepdim=True), places, logits.shape[-1]).amin(dim=-1)
