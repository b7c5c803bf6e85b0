"""The encoder and decoder of Emu3's vision tokenizer (Wang et al. 2024), for images: clips that stand still.

The publisher repeats an image over the frames that one latent stands for, and keeps the first frame of what is decoded.
Frames that are equal are computed once here, and later frames are not computed: the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, zip_longest
from math import log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.errors import ConfigError
from vqtok.networks.conv import Downsample, Upsample
from vqtok.networks.conv3x3 import Conv3x3, Normalize, laid_out
from vqtok.networks.transformer import attend

Triple = tuple[int, int, int]


class SpatialNorm(nn.Module):
    """GroupNorm; in the decoder also scaled and shifted, at each place, by what the codes there say.

    Args:
        channels: of what is normalised.
        dim: channels of the codes' vectors; 0 for none, as in the encoder.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.norm = Normalize(channels)
        self.scale = nn.Conv2d(dim, channels, 1) if dim else None
        self.shift = nn.Conv2d(dim, channels, 1) if dim else None

    def forward(self, x: Tensor, vectors: Tensor | None) -> Tensor:
        """Normalise x [B, channels, h, w]; vectors [B, dim, ...] are repeated to its size."""
        x = self.norm(x)
        if self.scale is None or self.shift is None or vectors is None:
            return x
        # A 1x1 convolution may come before the repetition: that is cheaper by the factor squared.
        scale, shift = (F.interpolate(f(vectors), size=x.shape[-2:]) for f in (self.scale, self.shift))
        return x * scale + shift

    def silu(self, x: Tensor, vectors: Tensor | None) -> Tensor:
        """Normalise, then SiLU."""
        return self.norm.silu(x) if self.scale is None else F.silu(self(x, vectors))


class Emu3Block(nn.Module):
    """Norm, SiLU, 3x3, twice, and the input added (through a 1x1 when the width changes)."""

    def __init__(self, channels: int, out_channels: int, dim: int) -> None:
        super().__init__()
        self.norm1 = SpatialNorm(channels, dim)
        self.conv1 = Conv3x3(channels, out_channels)
        self.norm2 = SpatialNorm(out_channels, dim)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, vectors: Tensor | None) -> Tensor:
        """Map [B, channels, h, w] to [B, out_channels, h, w]."""
        h = self.conv1(self.norm1.silu(x, vectors))
        return self.conv2.around(self.norm2.silu(h, vectors), residual=self.shortcut(x))


class Emu3Attention(nn.Module):
    """Self-attention over all positions, and the input added; [B, channels, h, w] in and out."""

    def __init__(self, channels: int, heads: int, dim: int) -> None:
        super().__init__()
        if channels % heads:
            raise ConfigError(f"expected heads that divide {channels} channels, got {heads}")
        self.heads = heads
        self.norm = SpatialNorm(channels, dim)
        self.query, self.key = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.value, self.proj = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor, vectors: Tensor | None) -> Tensor:
        """Attend."""
        h = self.norm(x, vectors).flatten(2).transpose(1, 2)
        attended = self.proj(attend(self.query(h), self.key(h), self.value(h), self.heads))
        return x + attended.transpose(1, 2).unflatten(2, x.shape[2:])


class Emu3Level(nn.Module):
    """Residual blocks of one scale, each followed by attention or none."""

    def __init__(self, channels: int, out_channels: int, blocks: int, heads: int, dim: int) -> None:
        super().__init__()
        widths = pairwise((channels, *(out_channels,) * blocks))
        self.blocks = nn.ModuleList(Emu3Block(before, after, dim) for before, after in widths)
        attentions = blocks if heads else 0
        self.attentions = nn.ModuleList(Emu3Attention(out_channels, heads, dim) for _ in range(attentions))

    def forward(self, x: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Apply the blocks."""
        for block, attention in zip_longest(self.blocks, self.attentions):
            x = block(x, vectors)
            if attention is not None:
                x = attention(x, vectors)
        return x


class CausalConv(nn.Conv3d):
    """A convolution over frames, height and width that sees two frames of zeros before the first, and none after."""

    def __init__(self, channels: int, out_channels: int, kernel: Triple, stride: int = 1) -> None:
        super().__init__(channels, out_channels, kernel, (stride, 1, 1))
        self.around = (kernel[2] // 2, kernel[2] // 2, kernel[1] // 2, kernel[1] // 2, 2, 0)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve [B, channels, T, h, w]."""
        return super().forward(F.pad(input, self.around))


class FixedNorm(nn.Module):
    """BatchNorm whose statistics stand still: published weights are used with those that they have."""

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, channels, ...]."""
        return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, training=False)


class FrameBlock(nn.Module):
    """FixedNorm, SiLU, a causal 3x3x3, twice, and the input added; [B, channels, T, h, w] in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = FixedNorm(channels), FixedNorm(channels)
        self.conv1, self.conv2 = (CausalConv(channels, channels, (3, 3, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def _steps(frames: int) -> int:
    if frames < 1 or frames & (frames - 1):
        raise ConfigError(f"expected a power of two of frames, got {frames}")
    return int(log2(frames))


class Emu3Encoder(nn.Module):
    """Pixels [B, 3, H, W] to latents [B, dim, H / f, W / f], f = 2^(levels - 1).

    Args:
        channels: base width; a multiple of 32.
        multipliers: width of each level as a multiple of ``channels``, finest first.
        residual_blocks: blocks a level, and blocks over frames.
        attention_levels: levels (0 = finest) whose blocks are followed by attention.
        z_channels: channels over which frames are mixed.
        heads: heads of every attention.
        frames: frames that one latent stands for; a power of two.
        dim: channels of the latents.

    >>> encoder = Emu3Encoder(channels=32, multipliers=(1, 2), residual_blocks=1, attention_levels=(1,), z_channels=4,
    ...                       heads=1, frames=4, dim=4)
    >>> encoder(torch.zeros(1, 3, 16, 24)).shape
    torch.Size([1, 4, 8, 12])
    """

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        residual_blocks: int,
        attention_levels: Sequence[int],
        z_channels: int,
        heads: int,
        frames: int,
        dim: int,
    ) -> None:
        super().__init__()
        self.frames = frames
        widths = [channels, *(channels * m for m in multipliers)]
        self.conv_in = Conv3x3(3, channels)
        self.levels = nn.ModuleList(
            Emu3Level(before, after, residual_blocks, heads * (i in attention_levels), dim=0)
            for i, (before, after) in enumerate(pairwise(widths))
        )
        self.downsamples = nn.ModuleList(Downsample(width) for width in widths[1:-1])
        self.middle = _middle(widths[-1], heads, dim=0)
        self.norm_out = Normalize(widths[-1])
        self.conv_out = Conv3x3(widths[-1], z_channels)
        self.joins = nn.ModuleList(
            CausalConv(z_channels, z_channels, (4, 3, 3), stride=2) for _ in range(_steps(frames))
        )
        self.over_frames = nn.ModuleList(FrameBlock(z_channels) for _ in range(residual_blocks))
        self.to_latents = CausalConv(z_channels, dim, (3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, 3, H, W]; H and W are multiples of f."""
        x = self.conv_in(laid_out(pixels))
        for level, downsample in zip(self.levels, (*self.downsamples, nn.Identity()), strict=True):
            x = downsample(level(x))
        for part in self.middle:
            x = part(x, None)
        x = self.conv_out.around(x, self.norm_out)
        x = x[:, :, None].expand(-1, -1, self.frames, -1, -1)
        for join in self.joins:
            x = F.silu(join(x))
        for block in self.over_frames:
            x = block(x)
        return self.to_latents(x)[:, :, 0]


class Emu3Decoder(nn.Module):
    """Latents [B, dim, h, w] to pixels [B, 3, h * f, w * f], f = 2^(levels - 1): the first frame.

    Takes the arguments of `Emu3Encoder`, levels finest first too; each level has one block more than the encoder's.
    ``z_channels`` equals ``dim``, since the codes' vectors go through the same blocks as what is decoded from them.

    >>> decoder = Emu3Decoder(channels=32, multipliers=(1, 2), residual_blocks=1, attention_levels=(1,), z_channels=4,
    ...                       heads=1, frames=4, dim=4)
    >>> decoder(torch.zeros(1, 4, 8, 12)).shape
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
        heads: int,
        frames: int,
        dim: int,
    ) -> None:
        super().__init__()
        if z_channels != dim:
            raise ConfigError(f"expected z_channels equal to dim, got {z_channels} and {dim}")
        widths = [channels * m for m in multipliers]
        widths.append(widths[-1])
        self.from_latents = CausalConv(dim, z_channels, (3, 1, 1))
        self.over_frames = nn.ModuleList(FrameBlock(z_channels) for _ in range(residual_blocks))
        self.splits = nn.ModuleList(CausalConv(z_channels, z_channels, (3, 3, 3)) for _ in range(_steps(frames)))
        self.conv_in = Conv3x3(z_channels, widths[-1])
        self.middle = _middle(widths[-1], heads, dim)
        self.levels = nn.ModuleList(
            Emu3Level(before, after, residual_blocks + 1, heads * (i in attention_levels), dim)
            for i, (after, before) in enumerate(pairwise(widths))
        )
        self.upsamples = nn.ModuleList((nn.Identity(), *(Upsample(width) for width in widths[1:-1])))
        self.norm_out = SpatialNorm(widths[0], dim)
        self.conv_out = Conv3x3(widths[0], 3)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents [B, dim, h, w]."""
        vectors = latents[:, :, None]
        both = torch.cat((self.from_latents(vectors), vectors))
        for block in self.over_frames:
            both = block(both)
        for split in self.splits:
            both = F.silu(split(both.repeat_interleave(2, dim=2)))
        x, vectors = both[:, :, 0].unflatten(0, (2, -1)).unbind()  # chunk is none for tracers of any batch
        x = self.conv_in(laid_out(x))
        for part in self.middle:
            x = part(x, vectors)
        for level, upsample in zip(reversed(self.levels), reversed(self.upsamples), strict=True):
            x = upsample(level(x, vectors))
        return self.conv_out(self.norm_out.silu(x, vectors))


def _middle(channels: int, heads: int, dim: int) -> nn.ModuleList:
    block = lambda: Emu3Block(channels, channels, dim)  # noqa: E731
    return nn.ModuleList((block(), Emu3Attention(channels, heads, dim), block()))
