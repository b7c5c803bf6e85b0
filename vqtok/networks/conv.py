"""The convolutional encoder and decoder of VQGAN (Esser et al. 2021, appendix table 7), free of any image size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, zip_longest

from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.errors import ConfigError
from vqtok.networks.conv3x3 import Conv3x3, Normalize, laid_out


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3, twice, and the input added (through a 1x1 when the width changes)."""

    def __init__(self, channels: int, out_channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm1 = Normalize(channels, groups)
        self.conv1 = Conv3x3(channels, out_channels)
        self.norm2 = Normalize(out_channels, groups)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, h, w] to [B, out_channels, h, w]."""
        h = self.conv1.around(x, self.norm1)
        return self.conv2.around(h, self.norm2, residual=self.shortcut(x))


class Attention(nn.Module):
    """One head of self-attention over all positions, and the input added; [B, channels, h, w] in and out."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = Normalize(channels, groups)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        h = self.norm(x)
        query, key, value = (f(h).flatten(2).transpose(1, 2) for f in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj(attended.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halve height and width: one row and one column of zeros at the bottom and right, then 3x3 with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to [B, C, h / 2, w / 2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, h, w] to [B, C, 2h, 2w]."""
        return self.conv.around(x, doubled=True)


class Level(nn.Module):
    """Residual blocks of one scale, each followed by attention or none; [B, channels, h, w] to [B, out_channels, h, w].

    Blocks and attentions are numbered apart, as publishers number them, so that names say nothing of what lies between.
    """

    def __init__(self, channels: int, out_channels: int, blocks: int, attention: bool, groups: int) -> None:
        super().__init__()
        widths = pairwise((channels, *(out_channels,) * blocks))
        self.blocks = nn.ModuleList(ResidualBlock(before, after, groups) for before, after in widths)
        self.attentions = nn.ModuleList(Attention(out_channels, groups) for _ in range(blocks * attention))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks."""
        for block, attention in zip_longest(self.blocks, self.attentions):
            x = block(x)
            if attention is not None:
                x = attention(x)
        return x


def middle_blocks(channels: int, attention: bool, groups: int) -> nn.Sequential:
    """Return what lies between encoder and decoder: a residual block, attention or none, a residual block."""
    return nn.Sequential(
        ResidualBlock(channels, channels, groups),
        Attention(channels, groups) if attention else nn.Identity(),
        ResidualBlock(channels, channels, groups),
    )


class ConvEncoder(nn.Module):
    """Pixels [B, 3, H, W] to latents [B, dim, H / f, W / f], f = 2^(levels - 1).

    Args:
        channels: base width; a multiple of ``groups``, as every width here.
        multipliers: width of each level as a multiple of ``channels``, finest first.
        residual_blocks: blocks a level.
        attention_levels: levels (0 = finest) whose blocks are followed by attention. The publishers' configurations
            give resolutions instead: attention at 16 for images of 256 is level 4.
        z_channels: width of the bottleneck before the 1x1 convolution to ``dim``.
        dim: channels of the latents.
        groups: groups of every GroupNorm.
        middle_attention: whether there is attention between the two blocks at the coarsest scale.
        stem: width of the first convolution as a multiple of ``channels``.
        in_channels: channels of the pixels.

    >>> import torch
    >>> encoder = ConvEncoder(channels=32, multipliers=(1, 2), residual_blocks=1, attention_levels=(1,),
    ...                       z_channels=32, dim=8)
    >>> encoder(torch.zeros(1, 3, 16, 24)).shape
    torch.Size([1, 8, 8, 12])
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
        groups: int = 32,
        middle_attention: bool = True,
        stem: int = 1,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in (stem, *multipliers)]
        self.conv_in = Conv3x3(in_channels, widths[0])
        self.levels = nn.ModuleList(
            Level(before, after, residual_blocks, i in attention_levels, groups)
            for i, (before, after) in enumerate(pairwise(widths))
        )
        self.downsamples = nn.ModuleList(Downsample(width) for width in widths[1:-1])
        self.middle = middle_blocks(widths[-1], middle_attention, groups)
        self.norm_out = Normalize(widths[-1], groups)
        self.conv_out = Conv3x3(widths[-1], z_channels)
        self.to_latents = nn.Conv2d(z_channels, dim, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, 3, H, W]; H and W are multiples of f."""
        x = self.conv_in(laid_out(pixels))
        for level, downsample in zip(self.levels, (*self.downsamples, nn.Identity()), strict=True):
            x = downsample(level(x))
        x = self.middle(x)
        return self.to_latents(self.conv_out.around(x, self.norm_out))


class ConvDecoder(nn.Module):
    """Latents [B, dim, h, w] to pixels [B, 3, h * f, w * f], f = 2^(levels - 1).

    Takes the arguments of `ConvEncoder`, levels finest first too; each level has one block more than the encoder's, and
    the last convolution takes what the finest level gives, whatever ``stem`` is.

    >>> import torch
    >>> decoder = ConvDecoder(channels=32, multipliers=(1, 2), residual_blocks=1, attention_levels=(1,),
    ...                       z_channels=32, dim=8)
    >>> decoder(torch.zeros(1, 8, 8, 12)).shape
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
        groups: int = 32,
        middle_attention: bool = True,
        stem: int = 1,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in multipliers]
        widths.append(widths[-1])
        self.from_latents = nn.Conv2d(dim, z_channels, 1)
        self.conv_in = Conv3x3(z_channels, widths[-1])
        self.middle = middle_blocks(widths[-1], middle_attention, groups)
        # Level i of the list is the publisher's level i: the finest comes first, and the forward runs from the last.
        self.levels = nn.ModuleList(
            Level(before, after, residual_blocks + 1, i in attention_levels, groups)
            for i, (after, before) in enumerate(pairwise(widths))
        )
        self.upsamples = nn.ModuleList((nn.Identity(), *(Upsample(width) for width in widths[1:-1])))
        self.norm_out = Normalize(widths[0], groups)
        self.conv_out = Conv3x3(widths[0], out_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents [B, dim, h, w]."""
        x = self.middle(self.conv_in(self.from_latents(laid_out(latents))))
        for level, upsample in zip(reversed(self.levels), reversed(self.upsamples), strict=True):
            x = upsample(level(x))
        return self.conv_out.around(x, self.norm_out)


class AbsentDecoder(nn.Module):
    """The place of a decoder that was not published: no more of it than its first projection, and it refuses to run.

    Args:
        dim: channels of the codebook vectors.
        z_channels: channels of what the missing decoder takes.
        factor: pixels a vector, each way, that it would give.

    >>> AbsentDecoder(dim=4, z_channels=6, factor=16).from_latents.weight.shape
    torch.Size([6, 4, 1, 1])
    """

    def __init__(self, *, dim: int, z_channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.from_latents = nn.Conv2d(dim, z_channels, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """Refuse.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "expected a tokenizer with a decoder, but this checkpoint was published without one: it can tokenize only. "
            "Load a checkpoint that has the decoder"
        )
