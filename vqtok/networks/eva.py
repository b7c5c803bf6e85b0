"""Features of images from plain vision transformers: what a dynamic tokenizer selects, merges and reconstructs.

`EvaVit` has the layout of EVA-CLIP's ViT-g/14 (Fang et al. 2022; Sun et al. 2023), LaVIT's frozen teacher. Any other
module that maps pixels [B, 3, H, W] to features [B, N, C], N patches row by row and nothing else, can stand in for it.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from vqtok.errors import ConfigError
from vqtok.networks.initial import initialize
from vqtok.networks.transformer import Mlp, SelfAttention, sincos_positions

FeaturePositions: TypeAlias = Literal["learned", "sincos"]


class EvaBlock(nn.Module):
    """Self-attention without a key bias and a perceptron, each after a LayerNorm (eps 1e-6) and added to its input."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, heads, bias="qv")
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_width, "gelu")

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to [B, N, width]."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class EvaVit(nn.Module):
    """Pixels [B, in_channels, H, W] to the last block's features [B, N, width], not normalised, class token dropped.

    EVA-CLIP's ViT-g/14 for 224 x 224 pixels is width 1408, depth 40, heads 16, mlp_width 6144, patch 14, grid (16, 16).

    Args:
        width: channels of the features.
        depth: number of blocks.
        heads: heads of attention; they divide width.
        mlp_width: hidden width of a block's perceptron; EVA has int(4.3637 * width).
        patch: pixels a patch, each way.
        grid: patches (h, w) of the only image size; not with ``"sincos"``, which takes any.
        positions: ``"learned"``, a vector a patch and one for the class token, or ``"sincos"``, computed, for patches.
        in_channels: channels of the pixels.

    Raises:
        ConfigError: arguments that contradict each other; in forward, another image size than grid and patch make.

    >>> vit = EvaVit(width=16, depth=2, heads=2, mlp_width=32, patch=8, grid=(2, 3))
    >>> vit(torch.zeros(1, 3, 16, 24)).shape
    torch.Size([1, 6, 16])
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        patch: int,
        grid: tuple[int, int] | None = None,
        positions: FeaturePositions = "learned",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if positions not in ("learned", "sincos") or (positions == "learned") != (grid is not None):
            raise ConfigError(
                f"expected positions 'learned' with a grid (h, w), or 'sincos' without, got {positions!r} with {grid}"
            )
        self.patch, self.grid = patch, grid
        self.from_pixels = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.positions = None if grid is None else nn.Parameter(torch.zeros(1 + grid[0] * grid[1], width))
        self.blocks = nn.ModuleList(EvaBlock(width, heads, mlp_width) for _ in range(depth))
        initialize(self, self.class_token, self.positions)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of pixels [B, in_channels, H, W], patch by patch, rows from the top."""
        height, width = pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch
        size = (height * self.patch, width * self.patch)
        if tuple(pixels.shape[-2:]) != size or 0 in size or self.grid not in (None, (height, width)):
            wanted = "a grid of any size" if self.grid is None else f"a grid of {self.grid[0]} x {self.grid[1]}"
            raise ConfigError(
                f"expected pixels of {wanted} in patches of {self.patch}, got {tuple(pixels.shape[-2:])}: "
                "resize the image (preprocess does)"
            )
        x = self.from_pixels(pixels).flatten(2).transpose(1, 2)
        if self.positions is None:
            x = x + sincos_positions(height, width, x.shape[-1], device=x.device, dtype=self.class_token.dtype)
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        if self.positions is not None:
            x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return x[:, 1:]


class TokensOfVit(nn.Module):
    """The patch tokens of a vision transformer with timm's interface, as features of a dynamic tokenizer.

    Args:
        vit: has ``forward_features``, pixels to tokens [B, prefix + N, C], and ``num_prefix_tokens`` (class token and
            registers), as timm's ``VisionTransformer`` and ``Eva``. Whether tokens are normalised is the vit's matter.

    >>> class Flat(nn.Module):
    ...     num_prefix_tokens = 1
    ...     def forward_features(self, pixels):
    ...         return pixels.flatten(2).transpose(1, 2)
    >>> TokensOfVit(Flat())(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 15, 3])
    """

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        prefix = getattr(vit, "num_prefix_tokens", None)
        if not callable(getattr(vit, "forward_features", None)) or not isinstance(prefix, int):
            raise ConfigError(
                "expected a vision transformer with forward_features and num_prefix_tokens (timm's have them), "
                f"got {type(vit).__name__}: write a module from pixels [B, 3, H, W] to features [B, N, C] instead"
            )
        self.vit, self._prefix = vit, prefix

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features [B, N, C] of pixels."""
        return cast(Any, self.vit).forward_features(pixels)[:, self._prefix :]
