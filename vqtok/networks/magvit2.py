"""The image encoder and decoder of MAGVIT-v2 (Yu et al. 2023, appendix A) as Open-MAGVIT2 publishes them.

No attention; the decoder is told the mean and the spread of its latents at every scale, and doubles by depth to space.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.networks.conv3x3 import Conv3x3, Normalize, laid_out, on_a_cpu
from vqtok.ops import group_norm


class PlainBlock(nn.Module):
    """Norm, SiLU, 3x3, twice, and the input added (through a 1x1 when the width changes); no convolution has a bias."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = Normalize(channels)
        self.conv1 = Conv3x3(channels, out_channels, bias=False)
        self.norm2 = Normalize(out_channels)
        self.conv2 = Conv3x3(out_channels, out_channels, bias=False)
        narrow = channels == out_channels
        self.shortcut = nn.Identity() if narrow else nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, h, w] to [B, out_channels, h, w]."""
        h = self.conv1.around(x, self.norm1)
        return self.conv2.around(h, self.norm2, residual=self.shortcut(x))


class AdaptiveNorm(nn.Module):
    """GroupNorm whose scale and shift are linear in the spread and the mean of the latents over all positions.

    The spread is the square root of the unbiased variance and 1e-6; of a single position, whose variance is none, 1e-3.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.scale = nn.Linear(dim, channels)
        self.shift = nn.Linear(dim, channels)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Normalise x [B, channels, h, w] as latents [B, dim, ...] say."""
        flat = latents.flatten(2)
        spread = (flat.var(dim=2, correction=min(1, flat.shape[2] - 1)) + 1e-6).sqrt()
        scale, shift = self.scale(spread), self.shift(flat.mean(dim=2))
        normal = group_norm(x, 32) if on_a_cpu(x) else F.group_norm(x.contiguous(), 32, eps=1e-6)
        return scale[..., None, None] * normal + shift[..., None, None]


class DepthToSpace(nn.Module):
    """Double height and width: 3x3 to four times the channels, of which each quarter is one corner of every 2 x 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to [B, C, 2h, 2w]; channel (2 i + j) C + c goes to row i and column j of channel c."""
        corners = self.conv(x).unflatten(1, (2, 2, -1))
        return corners.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


def _blocks(channels: int, out_channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(PlainBlock(*widths) for widths in pairwise((channels, *(out_channels,) * count))))


class Magvit2Encoder(nn.Module):
    """Pixels [B, 3, H, W] to latents [B, dim, H / f, W / f], f = 2^(levels - 1).

    Args:
        channels: base width; a multiple of 32.
        multipliers: width of each level as a multiple of ``channels``, finest first.
        residual_blocks: blocks a level, and in the middle.
        dim: channels of the latents.
        in_channels: channels of the pixels.

    >>> import torch
    >>> Magvit2Encoder(channels=32, multipliers=(1, 2), residual_blocks=1, dim=8)(torch.zeros(1, 3, 16, 24)).shape
    torch.Size([1, 8, 8, 12])
    """

    def __init__(
        self, *, channels: int, multipliers: Sequence[int], residual_blocks: int, dim: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        widths = [channels, *(channels * m for m in multipliers)]
        self.conv_in = Conv3x3(in_channels, channels, bias=False)
        self.levels = nn.ModuleList(_blocks(*pair, residual_blocks) for pair in pairwise(widths))
        self.downsamples = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for width in widths[1:-1])
        self.middle = _blocks(widths[-1], widths[-1], residual_blocks)
        self.norm_out = Normalize(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], dim, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, 3, H, W]; H and W are multiples of f."""
        x = self.conv_in(laid_out(pixels))
        for level, downsample in zip(self.levels, (*self.downsamples, nn.Identity()), strict=True):
            x = downsample(level(x))
        return self.conv_out(self.norm_out.silu(self.middle(x)))


class Magvit2Decoder(nn.Module):
    """Latents [B, dim, h, w] to pixels [B, 3, h * f, w * f], f = 2^(levels - 1).

    Takes the arguments of `Magvit2Encoder`, levels finest first too, and has as many blocks a level as it.

    >>> import torch
    >>> Magvit2Decoder(channels=32, multipliers=(1, 2), residual_blocks=1, dim=8)(torch.zeros(1, 8, 8, 12)).shape
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
        self.adaptive = nn.ModuleList(AdaptiveNorm(before, dim) for before in widths[1:])
        self.levels = nn.ModuleList(_blocks(before, after, residual_blocks) for after, before in pairwise(widths))
        self.upsamples = nn.ModuleList((nn.Identity(), *(DepthToSpace(width) for width in widths[1:-1])))
        self.norm_out = Normalize(widths[0])
        self.conv_out = Conv3x3(widths[0], out_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents [B, dim, h, w]."""
        x = self.middle(self.conv_in(laid_out(latents)))
        scales = zip(self.adaptive, self.levels, self.upsamples, strict=True)
        for adaptive, level, upsample in reversed([*scales]):
            x = upsample(level(adaptive(x, latents)))
        return self.conv_out.around(x, self.norm_out)
