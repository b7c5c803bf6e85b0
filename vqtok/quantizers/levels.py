"""Two levels of codes on one grid, the fine one's r x r cells beside the coarse one's codes (VQ-VAE-2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.quantizers.base import Quantizer
from vqtok.types import Quantized


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Something of both levels: codes, latents or vectors.

    Attributes:
        top: [B, h, w, ...].
        bottom: [B, r h, r w, ...].
    """

    top: Tensor
    bottom: Tensor


def pack_levels(levels: Levels) -> Tensor:
    """Return both levels on the top's grid: [B, h, w, 1 + r^2, ...], first the top, then its cell from the top left.

    Args:
        levels: top [B, h, w, ...] and bottom [B, r h, r w, ...] of one dtype.

    Raises:
        ConfigError: the bottom's grid is no multiple of the top's.

    >>> pack_levels(Levels(torch.tensor([[[9]]]), torch.tensor([[[1, 2], [3, 4]]]))).tolist()
    [[[[9, 1, 2, 3, 4]]]]
    """
    top, bottom = levels.top, levels.bottom
    ratio = bottom.shape[1] // max(1, top.shape[1])
    if bottom.shape != (top.shape[0], ratio * top.shape[1], ratio * top.shape[2], *top.shape[3:]) or not ratio:
        raise ConfigError(f"expected a bottom r times as fine as the top {[*top.shape]}, got {[*bottom.shape]}")
    return torch.cat([top.unsqueeze(3), to_cells(bottom, ratio)], dim=3)


def unpack_levels(packed: Tensor, ratio: int) -> Levels:
    """Return the two levels of what `pack_levels` gave: its exact inverse.

    Args:
        packed: [B, h, w, 1 + r^2, ...].
        ratio: r.

    Raises:
        ConfigError: another number of entries a position.

    >>> unpack_levels(torch.tensor([[[[9, 1, 2, 3, 4]]]]), ratio=2).bottom.tolist()
    [[[1, 2], [3, 4]]]
    """
    if packed.ndim < 4 or packed.shape[3] != 1 + ratio**2:
        raise ConfigError(f"expected [B, h, w, {1 + ratio**2}, ...], got {[*packed.shape]}")
    cells = packed[:, :, :, 1:].unflatten(3, (ratio, ratio)).transpose(2, 3)
    return Levels(packed[:, :, :, 0], cells.flatten(3, 4).flatten(1, 2))


def to_cells(fine: Tensor, ratio: int) -> Tensor:
    """Return [B, r h, r w, ...] as [B, h, w, r^2, ...]: each r x r cell row by row."""
    return fine.unflatten(2, (-1, ratio)).unflatten(1, (-1, ratio)).transpose(2, 3).flatten(3, 4)


class LevelsQuantizer(Quantizer):
    """The quantizers of both levels as one, of latents packed on the top's grid.

    Args:
        top: quantizer of the top level; one code a latent.
        bottom: quantizer of the bottom level, of as many codes and channels.
        ratio: r; a position has 1 + r^2 codes.

    >>> from vqtok import VectorQuantizer
    >>> quantizer = LevelsQuantizer(VectorQuantizer(4, 8), VectorQuantizer(4, 8))
    >>> quantizer.dim, quantizer.codebooks, quantizer.decode(torch.zeros(1, 2, 3, 5, dtype=torch.int64)).shape
    (20, 5, torch.Size([1, 2, 3, 20]))
    """

    def __init__(self, top: Quantizer, bottom: Quantizer, ratio: int = 2) -> None:
        super().__init__()
        kinds = [(x.vocab_size, x.dim, x.latent_dim, x.codebooks) for x in (top, bottom)]
        if kinds[0] != kinds[1] or top.codebooks != 1:
            raise ConfigError(
                "expected levels of one vocab_size and dim, and of one code a latent, "
                f"got (vocab_size, dim, latent_dim, codebooks) {kinds[0]} and {kinds[1]}"
            )
        self.top, self.bottom, self.ratio = top, bottom, ratio
        self.vocab_size, self.codebooks = top.vocab_size, 1 + ratio**2
        self.dim, self.latent_dim = self.codebooks * top.dim, self.codebooks * top.latent_dim

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [..., Q] of packed latents [..., Q * D]."""
        parts = latents.unflatten(-1, (self.codebooks, -1))
        codes = self.top.encode(parts[..., :1, :]), self.bottom.encode(parts[..., 1:, :])
        return torch.cat(codes, dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return packed vectors [..., Q * D] of codes int64 [..., Q]."""
        vectors = self.top.decode(codes[..., :1]), self.bottom.decode(codes[..., 1:])
        return torch.cat(vectors, dim=-2).flatten(-2)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize packed latents [..., Q * D]; of each loss the sum over the levels."""
        parts = latents.unflatten(-1, (self.codebooks, -1))
        return self.join(self.top(parts[..., 0, :]), self.bottom(parts[..., 1:, :]))

    def join(self, top: Quantized, bottom: Quantized) -> Quantized:
        """Return as one what the quantizers gave of the top's latents [..., D] and the bottom's [..., r^2, D]."""
        vectors = torch.cat([top.vectors.unsqueeze(-2), bottom.vectors], dim=-2).flatten(-2)
        codes = torch.cat([top.codes.unsqueeze(-1), bottom.codes], dim=-1)
        return Quantized(vectors, codes, {name: loss + bottom.losses[name] for name, loss in top.losses.items()})
