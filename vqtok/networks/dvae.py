"""The convolutional encoder and decoder of DALL-E's discrete VAE (Ramesh et al. 2021, appendix A.1), for any depth.

Bottleneck blocks without normalisation, maximum pooling on the way down, nearest neighbours on the way up. The encoder
gives a logit a code. The paper's decoder begins with a 1x1 convolution of a one-hot map, which is a codebook's row and
a bias: the codebook is the quantizer's, the bias stays here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_DOWN, _UP = (3, 3, 3, 1), (1, 3, 3, 3)


class BottleneckBlock(nn.Module):
    """Four times ReLU and convolution at a quarter of the width; the input plus that times a gain.

    Args:
        channels: width of the input.
        out_channels: width of the output; the input goes through a 1x1 convolution where the two differ.
        kernels: sides of the four convolutions, (3, 3, 3, 1) in an encoder and (1, 3, 3, 3) in a decoder.
        gain: weight of the residual path, 1 / (blocks of the network)^2 in the paper.
    """

    def __init__(self, channels: int, out_channels: int, kernels: Sequence[int], gain: float) -> None:
        super().__init__()
        hidden = out_channels // 4
        widths = pairwise((channels, *(hidden,) * (len(kernels) - 1), out_channels))
        self.gain = gain
        self.shortcut = nn.Identity() if channels == out_channels else _conv(channels, out_channels, 1)
        self.convs = nn.ModuleList(
            _conv(before, after, side) for (before, after), side in zip(widths, kernels, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, h, w] to [B, out_channels, h, w]."""
        h = x
        for conv in self.convs:
            h = conv(h.relu())
        return self.shortcut(x) + self.gain * h


class DvaeEncoder(nn.Module):
    """Pixels [B, 3, H, W] to logits [B, dim, H / f, W / f], f = 2^(len(multipliers) - 1).

    Args:
        channels: base width, at least 4; the paper has 256.
        multipliers: width of each group as a multiple of ``channels``, finest first; the paper has (1, 2, 4, 8).
        residual_blocks: blocks a group; the paper has 2.
        dim: number of codes.
        in_channels: channels of the pixels.

    >>> import torch
    >>> encoder = DvaeEncoder(channels=8, multipliers=(1, 2), residual_blocks=1, dim=16)
    >>> encoder(torch.full((1, 3, 8, 12), 0.5)).shape
    torch.Size([1, 16, 4, 6])
    """

    def __init__(
        self, *, channels: int, multipliers: Sequence[int], residual_blocks: int, dim: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        widths = [channels, *(channels * m for m in multipliers)]
        self.conv_in = _conv(in_channels, channels, 7)
        self.groups = _groups(widths, residual_blocks, _DOWN)
        self.conv_out = _conv(widths[-1], dim, 1)
        self.reach = 3 * residual_blocks  # see `vqtok.networks.reach`: three 3x3 a block, a 7x7 before them all
        for _ in multipliers[1:]:
            self.reach = 2 * self.reach + 3 * residual_blocks
        self.reach += 3

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, 3, H, W]; H and W are multiples of f."""
        x = self.conv_in(pixels.contiguous(memory_format=torch.channels_last))
        for i, group in enumerate(self.groups):
            x = group(F.max_pool2d(x, 2) if i else x)
        return self.conv_out(x.relu_())


class DvaeDecoder(nn.Module):
    """Codebook vectors [B, dim, h, w] to [B, 6, h * f, w * f], f = 2^(len(multipliers) - 1).

    Args:
        channels: base width, as in the encoder.
        multipliers: width of each group as a multiple of ``channels``, finest first, as in the encoder.
        residual_blocks: blocks a group.
        dim: length of a codebook vector; the paper has 128.
        out_channels: mean and logarithm of the scale of a logit-Laplace distribution for three colours.

    >>> import torch
    >>> decoder = DvaeDecoder(channels=8, multipliers=(1, 2), residual_blocks=1, dim=4)
    >>> mean, log_scale = decoder(torch.zeros(1, 4, 4, 6)).chunk(2, dim=1)
    >>> mean.sigmoid().shape
    torch.Size([1, 3, 8, 12])
    """

    def __init__(
        self, *, channels: int, multipliers: Sequence[int], residual_blocks: int, dim: int, out_channels: int = 6
    ) -> None:
        super().__init__()
        widths = [dim, *(channels * m for m in reversed(multipliers))]
        self.bias = nn.Parameter(torch.zeros(dim))
        self.groups = _groups(widths, residual_blocks, _UP)
        self.conv_out = _conv(widths[-1], out_channels, 1)
        self.reach = 3 * residual_blocks  # in latents: of the positions beyond a cell, half are left a level further up
        for _ in multipliers[1:]:
            self.reach = (self.reach + 1) // 2 + 3 * residual_blocks

    def forward(self, latents: Tensor) -> Tensor:
        """Decode codebook vectors [B, dim, h, w]."""
        x = latents.contiguous(memory_format=torch.channels_last) + self.bias[:, None, None]
        for i, group in enumerate(self.groups):
            x = group(F.interpolate(x, scale_factor=2.0, mode="nearest") if i else x)
        return self.conv_out(x.relu_())


def _groups(widths: Sequence[int], blocks: int, kernels: Sequence[int]) -> nn.ModuleList:
    """Return a group of blocks for each step from width to width; the first block of a group takes it."""
    gain = 1 / ((len(widths) - 1) * blocks) ** 2
    return nn.ModuleList(
        nn.Sequential(*(BottleneckBlock(a, b, kernels, gain) for a, b in pairwise((before, *(after,) * blocks))))
        for before, after in pairwise(widths)
    )


def _conv(channels: int, out_channels: int, side: int) -> nn.Conv2d:
    """Return a convolution that keeps height and width, with unit variance at the start."""
    conv = nn.Conv2d(channels, out_channels, side, padding=side // 2)
    nn.init.normal_(conv.weight, std=(channels * side**2) ** -0.5)
    nn.init.zeros_(cast(Tensor, conv.bias))
    return conv
