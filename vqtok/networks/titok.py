"""The encoder and decoder of TiTok (Yu et al. 2024): an image is one row of tokens, which stand for no place in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqtok.errors import ConfigError
from vqtok.networks.maskgit import MaskgitDecoder
from vqtok.networks.transformer import Mlp, SelfAttention


class TitokBlock(nn.Module):
    """Self-attention and a perceptron, each after a LayerNorm and added to its input; [B, N, width] in and out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, "gelu")

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TitokTrunk(nn.Module):
    """A class token, the patches and the latent tokens, each with its position, through one transformer.

    Args:
        width: channels.
        depth: number of blocks.
        heads: heads of attention.
        patches: number of patches.
        tokens: number of latent tokens.
    """

    def __init__(self, width: int, depth: int, heads: int, patches: int, tokens: int) -> None:
        super().__init__()
        self.patches = patches
        self.class_token = nn.Parameter(width**-0.5 * torch.randn(1, width))
        self.positions = nn.Parameter(width**-0.5 * torch.randn(patches + 1, width))
        self.token_positions = nn.Parameter(width**-0.5 * torch.randn(tokens, width))
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(TitokBlock(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, patches: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Map patches [B, P, width] and tokens [B, N, width] to what the last norm makes of both."""
        # len() would fix the batch for tracers.
        first = self.class_token.expand(patches.shape[0], -1, -1)
        x = torch.cat((torch.cat((first, patches), 1) + self.positions, tokens + self.token_positions), 1)
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm_out(x[:, 1:])
        return x[:, : self.patches], x[:, self.patches :]


class TitokEncoder(nn.Module):
    """Pixels [B, 3, size, size] to latents [B, dim, 1, tokens].

    Args:
        width: channels of the transformer.
        depth: number of blocks.
        heads: heads of attention.
        patch: side of a patch in pixels.
        size: side of every image.
        tokens: latent tokens an image.
        legacy: whether a token's channels are taken across tokens, as the first published weights were trained: the
            publisher's reshape without a transposition.
        dim: channels of the latents.

    >>> encoder = TitokEncoder(width=16, depth=1, heads=2, patch=8, size=32, tokens=5, legacy=False, dim=4)
    >>> encoder(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 4, 1, 5])
    """

    def __init__(
        self, *, width: int, depth: int, heads: int, patch: int, size: int, tokens: int, legacy: bool, dim: int
    ) -> None:
        super().__init__()
        self.size, self.legacy = size, legacy
        self.token_grid = (1, tokens)
        self.from_pixels = nn.Conv2d(3, width, patch, stride=patch)
        self.latent_tokens = nn.Parameter(width**-0.5 * torch.randn(tokens, width))
        self.trunk = TitokTrunk(width, depth, heads, (size // patch) ** 2, tokens)
        self.to_latents = nn.Conv2d(width, dim, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, 3, size, size].

        Raises:
            ConfigError: images of another size.
        """
        if pixels.shape[-2:] != (self.size, self.size):
            raise ConfigError(f"expected images of {self.size} x {self.size}, got {tuple(pixels.shape[-2:])}: resize")
        patches = self.from_pixels(pixels).flatten(2).transpose(1, 2)
        _, tokens = self.trunk(patches, self.latent_tokens.expand(pixels.shape[0], -1, -1))
        count, width = tokens.shape[1:]
        tokens = tokens.reshape(-1, width, count) if self.legacy else tokens.transpose(1, 2)
        return self.to_latents(tokens[:, :, None])


class PixelCodes(nn.Module):
    """Each patch's distribution over another tokenizer's codes, their mean vector, and that tokenizer's decoder."""

    def __init__(
        self, width: int, codes: int, dim: int, channels: int, multipliers: Sequence[int], residual_blocks: int
    ) -> None:
        super().__init__()
        self.to_scores = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, codes, 1))
        self.codebook = nn.Parameter(torch.randn(codes, dim))
        self.decoder = MaskgitDecoder(
            channels=channels, multipliers=multipliers, residual_blocks=residual_blocks, dim=dim
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, width, h, w] to pixels [B, 3, H, W]."""
        return self.decoder(torch.einsum("bkhw,kd->bdhw", self.to_scores(x).softmax(1), self.codebook))


class PixelPatches(nn.Module):
    """Each patch's pixels, row by row and each with its three colours, and a 3x3 over the whole image."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.to_patch = nn.Conv2d(width, 3 * patch * patch, 1)
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, width, h, w] to pixels [B, 3, h * patch, w * patch]."""
        x = self.to_patch(x).unflatten(1, (self.patch, self.patch, 3))
        return self.conv_out(x.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3))


class TitokDecoder(nn.Module):
    """Latents [B, dim, 1, tokens] to pixels [B, 3, size, size].

    Args:
        width: channels of the transformer.
        depth: number of blocks.
        heads: heads of attention.
        patch: side of a patch in pixels.
        size: side of every image.
        tokens: latent tokens an image.
        pixel_codes: codes of the tokenizer through which pixels are made, 0 for pixels at once.
        pixel_dim: length of one of those codes' vectors.
        pixel_channels: ``channels`` of its `MaskgitDecoder`.
        pixel_multipliers: ``multipliers`` of it.
        pixel_blocks: ``residual_blocks`` of it.
        dim: channels of the latents.

    >>> decoder = TitokDecoder(width=16, depth=1, heads=2, patch=8, size=32, tokens=5, dim=4)
    >>> decoder(torch.zeros(2, 4, 1, 5)).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        size: int,
        tokens: int,
        dim: int,
        pixel_codes: int = 0,
        pixel_dim: int = 256,
        pixel_channels: int = 128,
        pixel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        pixel_blocks: int = 2,
    ) -> None:
        super().__init__()
        side = size // patch
        self.side, self.tokens = side, tokens
        self.from_latents = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(width**-0.5 * torch.randn(1, 1, width))
        self.trunk = TitokTrunk(width, depth, heads, side * side, tokens)
        self.to_pixels = (
            PixelCodes(width, pixel_codes, pixel_dim, pixel_channels, pixel_multipliers, pixel_blocks)
            if pixel_codes
            else PixelPatches(width, patch)
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents [B, dim, 1, tokens].

        Raises:
            ConfigError: another number of tokens.
        """
        if latents.shape[-2:] != (1, self.tokens):
            raise ConfigError(f"expected one row of {self.tokens} tokens, got {tuple(latents.shape[-2:])}")
        tokens = self.from_latents(latents.flatten(2).transpose(1, 2))
        patches, _ = self.trunk(self.mask_token.expand(latents.shape[0], self.side**2, -1), tokens)
        return self.to_pixels(patches.transpose(1, 2).unflatten(2, (self.side, self.side)))
