"""The convolutional encoder and decoder of MaskGIT's VQGAN (Chang et al. 2022), as its PyTorch port has them.

No attention, averages instead of strided convolutions, and a shortcut that is taken of what the block gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.networks.conv import Upsample
from vqtok.networks.conv3x3 import Conv3x3, Normalize, laid_out


class MaskgitBlock(nn.Module):
    """Norm, SiLU, 3x3 without bias, twice; then the input is added, or, where the width changes, the block's own 1x1.

    The 1x1 is taken of the second convolution's result and not of the input: so the published weights were trained.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = Normalize(channels)
        self.conv1 = Conv3x3(channels, out_channels, bias=False)
        self.norm2 = Normalize(out_channels)
        self.conv2 = Conv3x3(out_channels, out_channels, bias=False)
        self.shortcut = None if channels == out_channels else nn.Conv2d(out_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, h, w] to [B, out_channels, h, w]."""
        h = self.conv1.around(x, self.norm1)
        if self.shortcut is None:
            return self.conv2.around(h, self.norm2, residual=x)
        h = self.conv2.around(h, self.norm2)
        return h + self.shortcut(h)


def _blocks(channels: int, out_channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(MaskgitBlock(*widths) for widths in pairwise((channels, *(out_channels,) * count))))


class MaskgitEncoder(nn.Module):
    """Pixels [B, 3, H, W] to latents [B, dim, H / f, W / f], f = 2^(levels - 1).

    Args:
        channels: base width; a multiple of 32.
        multipliers: width of each level as a multiple of ``channels``, finest first.
        residual_blocks: blocks a level, and in the middle.
        dim: channels of the latents.
        in_channels: channels of the pixels.

    >>> import torch
    >>> MaskgitEncoder(channels=32, multipliers=(1, 2), residual_blocks=1, dim=8)(torch.zeros(1, 3, 16, 24)).shape
    torch.Size([1, 8, 8, 12])
    """

    def __init__(
        self, *, channels: int, multipliers: Sequence[int], residual_blocks: int, dim: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        widths = [channels, *(channels * m for m in multipliers)]
        self.conv_in = Conv3x3(in_channels, channels, bias=False)
        self.levels = nn.ModuleList(_blocks(*pair, residual_blocks) for pair in pairwise(widths))
        self.middle = _blocks(widths[-1], widths[-1], residual_blocks)
        self.norm_out = Normalize(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], dim, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, 3, H, W]; H and W are multiples of f."""
        x = self.conv_in(laid_out(pixels))
        for i, level in enumerate(self.levels):
            x = level(x if i == 0 else F.avg_pool2d(x, 2))
        return self.conv_out(self.norm_out.silu(self.middle(x)))


class MaskgitDecoder(nn.Module):
    """Latents [B, dim, h, w] to pixels [B, 3, h * f, w * f], f = 2^(levels - 1).

    Takes the arguments of `MaskgitEncoder`, levels finest first too, and has as many blocks a level as it.

    >>> import torch
    >>> MaskgitDecoder(channels=32, multipliers=(1, 2), residual_blocks=1, dim=8)(torch.zeros(1, 8, 8, 12)).shape
    torch.Size([1, 3, 16, 24])
    """

    def __init__(
        self, *, channels: int, multipliers: Sequence[int], residual_blocks: int, dim: int, out_channels: int = 3
    ) -> None:
        super().__init__()
        widths = [channels * m for m in multipliers]
        widths.append(widths[-1])
        self.conv_in = Conv3x3(dim, widths[-1])
        self.middle = _blocks(widths[-1], widths[-1], residual_blocks)
        self.levels = nn.ModuleList(_blocks(before, after, residual_blocks) for after, before in pairwise(widths))
        self.upsamples = nn.ModuleList((nn.Identity(), *(Upsample(width) for width in widths[1:-1])))
        self.norm_out = Normalize(widths[0])
        self.conv_out = Conv3x3(widths[0], out_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents [B, dim, h, w]."""
        x = self.middle(self.conv_in(laid_out(latents)))
        for level, upsample in zip(reversed(self.levels), reversed(self.upsamples), strict=True):
            x = upsample(level(x))
        return self.conv_out.around(x, self.norm_out)
