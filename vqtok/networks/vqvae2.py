"""The two-level encoder and decoder of VQ-VAE-2 (Razavi et al. 2019, section 3.1 and figure 2a).

The top level is half as fine as the bottom level, and its codes are decoded to condition the bottom's latents: so the
bottom need only say what the top did not. Blocks are those of VQ-VAE, without normalisation and attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqtok.networks.small import ResidualBlock


class Vqvae2Network(nn.Module):
    """Encoders and decoders of both levels; a top latent stands for 8 x 8 pixels, a bottom latent for 4 x 4.

    Args:
        channels: width, at least 2; the paper has 128.
        residual_blocks: blocks of each encoder and decoder; the paper has 2.
        residual_channels: hidden width of a block; the paper has 32.
        dim: channels of the latents of both levels; the paper has 64.
        pixel_channels: channels of the pixels.

    Attributes:
        ratio: bottom latents along an edge of a top latent's cell, 2.

    >>> import torch
    >>> network = Vqvae2Network(channels=8, residual_blocks=1, residual_channels=4, dim=6)
    >>> features = network.features(torch.zeros(1, 3, 32, 48))
    >>> top = network.top_latents(features)
    >>> bottom = network.bottom_latents(features, top)
    >>> top.shape, bottom.shape, network.decode(top, bottom).shape
    (torch.Size([1, 6, 4, 6]), torch.Size([1, 6, 8, 12]), torch.Size([1, 3, 32, 48]))
    """

    ratio = 2

    def __init__(
        self, *, channels: int, residual_blocks: int, residual_channels: int, dim: int, pixel_channels: int = 3
    ) -> None:
        super().__init__()
        half = channels // 2
        # See `vqtok.networks.reach`. A bottom latent sees the top's codes in residual_blocks + 2 cells, each of which
        # sees 2 residual_blocks + 3 features beyond its own two, and these what two halvings and their blocks see.
        features = 2 * (residual_blocks + 2) + 2 * residual_blocks + 3 + residual_blocks + 1
        self.encoder_reach = 4 * features + 3
        self.decoder_reach = (residual_blocks + 2) // 2 + 1

        def blocks() -> nn.Sequential:
            stack = (ResidualBlock(channels, residual_channels) for _ in range(residual_blocks))
            return nn.Sequential(*stack, nn.ReLU())

        self.encode_bottom = nn.Sequential(
            _down(pixel_channels, half),
            nn.ReLU(),
            _down(half, channels),
            nn.ReLU(),
            _conv3(channels, channels),
            blocks(),
        )
        self.encode_top = nn.Sequential(_down(channels, half), nn.ReLU(), _conv3(half, channels), blocks())
        self.to_top = nn.Conv2d(channels, dim, 1)
        self.decode_top = nn.Sequential(_conv3(dim, channels), blocks(), _up(channels, dim))
        self.to_bottom = nn.Conv2d(dim + channels, dim, 1)
        self.upsample_top = _up(dim, dim)
        self.decode_both = nn.Sequential(
            _conv3(2 * dim, channels), blocks(), _up(channels, half), nn.ReLU(), _up(half, pixel_channels)
        )

    def features(self, pixels: Tensor) -> Tensor:
        """Return what both levels see of pixels [B, 3, H, W], multiples of 8: [B, channels, H / 4, W / 4]."""
        return self.encode_bottom(pixels.contiguous(memory_format=torch.channels_last))

    def top_latents(self, features: Tensor) -> Tensor:
        """Return the top level's latents [B, dim, H / 8, W / 8] of features."""
        return self.to_top(self.encode_top(features))

    def bottom_latents(self, features: Tensor, top: Tensor) -> Tensor:
        """Return the bottom level's latents [B, dim, H / 4, W / 4] of features and quantized top vectors."""
        return self.to_bottom(torch.cat([self.decode_top(top), features], dim=1))

    def decode(self, top: Tensor, bottom: Tensor) -> Tensor:
        """Return pixels [B, 3, H, W] of vectors top [B, dim, H / 8, W / 8] and bottom [B, dim, H / 4, W / 4]."""
        return self.decode_both(torch.cat([self.upsample_top(top), bottom], dim=1))


def _conv3(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1)


def _down(channels: int, out_channels: int) -> nn.Conv2d:
    """Halve height and width."""
    return nn.Conv2d(channels, out_channels, 4, stride=2, padding=1)


def _up(channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """Double height and width."""
    return nn.ConvTranspose2d(channels, out_channels, 4, stride=2, padding=1)
