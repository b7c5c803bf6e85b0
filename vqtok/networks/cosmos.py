"""The encoder and decoder of Cosmos' image tokenizers (NVIDIA 2025, section 4): VQGAN's backbone over wavelets.

Pixels first become patches of a quarter of the size or less, by Haar's wavelets or as they are; so only some levels of
the backbone halve what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.errors import ConfigError
from vqtok.networks.conv import Downsample, Level, Normalize, Upsample, middle_blocks

Patching: TypeAlias = Literal["haar", "rearrange"]


def haar(x: Tensor) -> Tensor:
    """Return one step of Haar's wavelets, of half the size, scaled so that the means of 2 x 2 come first.

    Args:
        x: [B, C, 2h, 2w].

    Returns:
        [B, 4C, h, w]: means over 2 x 2, then half differences of rows, of columns, and of both, C channels each.

    Source:
        Haar 1910; each channel goes through, those of an earlier step too.

    >>> haar(torch.tensor([[[[4.0, 2.0], [0.0, 2.0]]]])).flatten().tolist()
    [2.0, 1.0, 0.0, 1.0]
    """
    left, right = x[..., 0::2], x[..., 1::2]
    bands = []
    for half in ((left + right) / 2, (left - right) / 2):
        top, bottom = half[..., 0::2, :], half[..., 1::2, :]
        bands += [(top + bottom) / 2, (top - bottom) / 2]
    return torch.cat(bands, dim=1)


def inverse_haar(x: Tensor) -> Tensor:
    """Return [B, C, 2h, 2w] of one step of wavelets [B, 4C, h, w]; the inverse of `haar`.

    >>> inverse_haar(torch.tensor([2.0, 1.0, 0.0, 1.0]).view(1, 4, 1, 1))[0, 0].tolist()
    [[4.0, 2.0], [0.0, 2.0]]
    """
    mean, rows, columns, both = x.chunk(4, dim=1)
    halves = [torch.stack([a + b, a - b], dim=3).flatten(2, 3) for a, b in ((mean, rows), (columns, both))]
    return torch.stack([halves[0] + halves[1], halves[0] - halves[1]], dim=4).flatten(3, 4)


class Patches(nn.Module):
    """Pixels [B, C, H, W] to patches [B, C p^2, H / p, W / p], and back; there is nothing to learn.

    Args:
        patch: pixels p of a patch, each way; a power of 2 for wavelets.
        patching: ``"haar"``: wavelets, as many steps as halve p to 1. ``"rearrange"``: the pixels, row by row.

    Raises:
        ConfigError: no such patching, or a patch that it cannot make.

    >>> patches = Patches(4, "haar")
    >>> pixels = torch.arange(64.0).view(1, 1, 8, 8)
    >>> torch.equal(patches.inverse(patches(pixels)), pixels)
    True
    """

    def __init__(self, patch: int, patching: Patching) -> None:
        super().__init__()
        if patching not in ("haar", "rearrange") or patch < 1 or (patching == "haar" and patch & (patch - 1)):
            raise ConfigError(
                f"expected patching 'rearrange', or 'haar' of a patch that is a power of 2, got {patching!r} of {patch}"
            )
        self.patch, self.patching = patch, patching

    def forward(self, pixels: Tensor) -> Tensor:
        """Return patches."""
        if self.patching == "rearrange":
            return F.pixel_unshuffle(pixels, self.patch)
        for _ in range(self.patch.bit_length() - 1):
            pixels = haar(pixels)
        return pixels

    def inverse(self, patches: Tensor) -> Tensor:
        """Return pixels."""
        if self.patching == "rearrange":
            return F.pixel_shuffle(patches, self.patch)
        for _ in range(self.patch.bit_length() - 1):
            patches = inverse_haar(patches)
        return patches


class CosmosEncoder(nn.Module):
    """Pixels [B, 3, H, W] to latents [B, dim, H / f, W / f], f = patch * 2^halvings.

    Args:
        channels: base width; a multiple of 32.
        multipliers: width of each level as a multiple of ``channels``, finest first.
        residual_blocks: blocks a level.
        attention_levels: levels (0 = finest) whose blocks are followed by attention.
        z_channels: width of the bottleneck before the 1x1 convolution to ``dim``.
        dim: channels of the latents.
        patch: pixels of a patch, each way.
        patching: see `Patches`.
        halvings: after how many levels, the finest first, height and width are halved.

    Raises:
        ConfigError: more halvings than levels, or a patch that cannot be made.

    >>> encoder = CosmosEncoder(channels=32, multipliers=(1, 2), residual_blocks=1, attention_levels=(),
    ...                         z_channels=16, dim=6, patch=4, halvings=1)
    >>> encoder(torch.zeros(1, 3, 16, 24)).shape
    torch.Size([1, 6, 2, 3])
    """

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        residual_blocks: int,
        attention_levels: Sequence[int],
        z_channels: int,
        dim: int,
        patch: int,
        halvings: int,
        patching: Patching = "haar",
    ) -> None:
        super().__init__()
        _check_halvings(halvings, multipliers)
        widths = [channels * m for m in (1, *multipliers)]
        self.patches = Patches(patch, patching)
        self.conv_in = nn.Conv2d(3 * patch**2, channels, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(before, after, residual_blocks, i in attention_levels, 32)
            for i, (before, after) in enumerate(pairwise(widths))
        )
        self.downsamples = nn.ModuleList(
            Downsample(width) if i < halvings else nn.Identity() for i, width in enumerate(widths[1:])
        )
        self.middle = middle_blocks(widths[-1], True, 32)
        self.norm_out = Normalize(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)
        self.to_latents = nn.Conv2d(z_channels, dim, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, 3, H, W]; H and W are multiples of f."""
        x = self.conv_in(self.patches(pixels))
        for level, downsample in zip(self.levels, self.downsamples, strict=True):
            x = downsample(level(x))
        return self.to_latents(self.conv_out(F.silu(self.norm_out(self.middle(x)))))


class CosmosDecoder(nn.Module):
    """Latents [B, dim, h, w] to pixels [B, 3, h * f, w * f], f = patch * 2^halvings.

    Takes the arguments of `CosmosEncoder`, levels finest first too; each level has one block more than the encoder's,
    and height and width are doubled after the coarsest levels, not after the finest.

    >>> decoder = CosmosDecoder(channels=32, multipliers=(1, 2), residual_blocks=1, attention_levels=(),
    ...                         z_channels=16, dim=6, patch=4, halvings=1)
    >>> decoder(torch.zeros(1, 6, 2, 3)).shape
    torch.Size([1, 3, 16, 24])
    """

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        residual_blocks: int,
        attention_levels: Sequence[int],
        z_channels: int,
        dim: int,
        patch: int,
        halvings: int,
        patching: Patching = "haar",
    ) -> None:
        super().__init__()
        _check_halvings(halvings, multipliers)
        widths = [channels * m for m in multipliers]
        first = len(widths) - halvings  # the finest level that is doubled
        self.from_latents = nn.Conv2d(dim, z_channels, 1)
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.middle = middle_blocks(widths[-1], True, 32)
        self.levels = nn.ModuleList(
            Level(before, after, residual_blocks + 1, i in attention_levels, 32)
            for i, (after, before) in enumerate(pairwise((*widths, widths[-1])))
        )
        self.upsamples = nn.ModuleList(
            Upsample(width) if i >= first else nn.Identity() for i, width in enumerate(widths)
        )
        self.norm_out = Normalize(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3 * patch**2, 3, padding=1)
        self.patches = Patches(patch, patching)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents [B, dim, h, w]."""
        x = self.middle(self.conv_in(self.from_latents(latents)))
        for level, upsample in zip(reversed(self.levels), reversed(self.upsamples), strict=True):
            x = upsample(level(x))
        return self.patches.inverse(self.conv_out(F.silu(self.norm_out(x))))


def _check_halvings(halvings: int, multipliers: Sequence[int]) -> None:
    if not 0 <= halvings <= len(multipliers):
        raise ConfigError(f"expected 0 to {len(multipliers)} halvings, one a level at most, got {halvings}")
