"""The small convolutional encoder and decoder of VQ-VAE (van den Oord et al. 2017, section 4.1), for any depth.

No normalisation and no attention: a code depends on the pixels near it and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """ReLU, 3x3, ReLU, 1x1, and the input added; [B, channels, h, w] in and out."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv1 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return x + self.conv1(self.conv3(x.relu()).relu_())


def _residual_stack(channels: int, blocks: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels, hidden) for _ in range(blocks)))


class SmallEncoder(nn.Module):
    """Pixels [B, 3, H, W] to latents [B, dim, H / 2^L, W / 2^L], L = len(channels).

    Args:
        channels: width after each halving, finest first; the paper has (256, 256).
        residual_blocks: blocks after each halving; the paper has (0, 2).
        residual_ratio: hidden width of a block as a share of its width.
        dim: channels of the latents.
        in_channels: channels of the pixels.

    >>> import torch
    >>> SmallEncoder(channels=(8, 16), residual_blocks=(0, 2), dim=4)(torch.zeros(1, 3, 32, 48)).shape
    torch.Size([1, 4, 8, 12])
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        residual_blocks: Sequence[int],
        dim: int,
        residual_ratio: float = 0.5,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 4, stride=2, padding=1),
                _residual_stack(after, blocks, int(after * residual_ratio)),
                nn.ReLU(inplace=True),
            )
            for (before, after), blocks in zip(pairwise((in_channels, *channels)), residual_blocks, strict=True)
        )
        self.conv_out = nn.Conv2d(channels[-1], dim, 1)
        self.reach = 0  # see `vqtok.networks.reach`: each block adds a position, each halving doubles and adds one
        for blocks in reversed(residual_blocks):
            self.reach = 2 * (self.reach + blocks) + 1

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, 3, H, W]; H and W are multiples of 2^L."""
        x = pixels.contiguous(memory_format=torch.channels_last)  # convolutions are faster so, and nothing else is here
        for level in self.levels:
            x = level(x)
        return self.conv_out(x)


class SmallDecoder(nn.Module):
    """Latents [B, dim, h, w] to pixels [B, 3, h * 2^L, w * 2^L], L = len(channels).

    Args:
        channels: width at each scale, finest first, as in the encoder.
        residual_blocks: blocks at each scale, finest first.
        residual_ratio: hidden width of a block as a share of its width.
        dim: channels of the latents.
        out_channels: channels of the pixels.

    >>> import torch
    >>> SmallDecoder(channels=(8, 16), residual_blocks=(0, 2), dim=4)(torch.zeros(1, 4, 8, 12)).shape
    torch.Size([1, 3, 32, 48])
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        residual_blocks: Sequence[int],
        dim: int,
        residual_ratio: float = 0.5,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(dim, channels[-1], 3, padding=1)
        self.reach = 0
        for blocks in residual_blocks:
            self.reach = self.reach // 2 + 1 + blocks
        self.reach += 1
        coarse_to_fine = tuple(reversed(channels))
        self.levels = nn.ModuleList(
            nn.Sequential(
                _residual_stack(before, blocks, int(before * residual_ratio)),
                nn.ReLU(inplace=True),
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1),
            )
            for (before, after), blocks in zip(
                pairwise((*coarse_to_fine, out_channels)), reversed(residual_blocks), strict=True
            )
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents [B, dim, h, w]."""
        x = self.conv_in(latents.contiguous(memory_format=torch.channels_last))
        for level in self.levels:
            x = level(x)
        return x
