"""Product quantization: the space cut into groups, each with a quantizer of its own (Jegou, Douze and Schmid 2011)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.quantizers.base import Quantizer
from vqtok.quantizers.composed import check_parts, distinct, join_codes, mean_losses, part_codes
from vqtok.types import Quantized


class ProductQuantizer(Quantizer):
    """Groups of the last axis, quantized each by itself; Q codes a vector.

    Each loss is the mean over the groups, weighted by their lengths, so that ``codebook`` and ``commitment`` are the
    mean squared differences of whole vectors.

    Args:
        quantizers: at least 2, of one vocab_size; the first takes the first ``latent_dim`` elements, and so on. The
            same quantizer repeated is one that all those groups share.

    >>> import torch
    >>> from vqtok import VectorQuantizer
    >>> product = ProductQuantizer([VectorQuantizer(3, 8), VectorQuantizer(5, 8)])
    >>> out = product(torch.zeros(2, 8))
    >>> out.codes.shape, out.vectors.shape, sorted(out.losses)
    (torch.Size([2, 2]), torch.Size([2, 8]), ['codebook', 'commitment'])
    """

    def __init__(self, quantizers: Sequence[Quantizer]) -> None:
        super().__init__()
        check_parts(quantizers)
        self.quantizers = distinct(quantizers)
        self._groups = [[*self.quantizers].index(part) for part in quantizers]
        self.dim, self.latent_dim = sum(x.dim for x in quantizers), sum(x.latent_dim for x in quantizers)
        self.vocab_size, self.codebooks = quantizers[0].vocab_size, sum(x.codebooks for x in quantizers)

    @property
    def groups(self) -> list[Quantizer]:
        """The quantizer of each group."""
        modules: list[Quantizer] = [*self.quantizers]  # pyright: ignore[reportAssignmentType]
        return [modules[i] for i in self._groups]

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [..., Q] of latents [..., D]."""
        groups = self.groups
        parts = zip(groups, self._split(latents), strict=True)
        return join_codes([group.encode(x) for group, x in parts], groups)

    def decode(self, codes: Tensor) -> Tensor:
        """Return vectors [..., D] of codes int64 [..., Q]."""
        if codes.dim() == 0 or codes.shape[-1] != self.codebooks:
            raise ConfigError(f"expected codes [..., {self.codebooks}], got {list(codes.shape)}")
        parts = zip(self.groups, part_codes(codes, self.groups), strict=True)
        return torch.cat([group.decode(x) for group, x in parts], dim=-1)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., D]; losses and gradients are the groups' own."""
        groups = self.groups
        parts = [group(x) for group, x in zip(groups, self._split(latents), strict=True)]
        codes = join_codes([part.codes for part in parts], groups)
        losses = mean_losses(parts, [group.dim for group in groups])
        return Quantized(torch.cat([part.vectors for part in parts], dim=-1), codes, losses)

    def _split(self, latents: Tensor) -> tuple[Tensor, ...]:
        if latents.dim() == 0 or latents.shape[-1] != self.latent_dim:
            raise ConfigError(f"expected latents [..., {self.latent_dim}], got {list(latents.shape)}")
        return latents.split([group.latent_dim for group in self.groups], dim=-1)
