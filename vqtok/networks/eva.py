"""Features of the vision transformer of EVA-CLIP (Sun et al. 2023), what LaVIT's tokenizer looks at."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from vqtok.errors import ConfigError
from vqtok.networks.transformer import Mlp, SelfAttention, sincos_positions


class EvaBlock(nn.Module):
    """Self-attention and a perceptron, each after a LayerNorm and added to its input; [B, N, width] in and out."""

    def __init__(self, width: int, heads: int, mlp_width: int, epsilon: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, epsilon)
        self.attention = SelfAttention(width, heads, bias="qv")
        self.norm2 = nn.LayerNorm(width, epsilon)
        self.mlp = Mlp(width, mlp_width, "gelu")

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class EvaVit(nn.Module):
    """Pixels [B, 3, image_size, image_size] to features [B, N, width], one a patch, rows from the top.

    These are what comes out of the last block, without a norm and without the class token, which all blocks see.
    EVA-CLIP ViT-g/14 is image_size 224, patch 14, width 1408, depth 40, heads 16, mlp_width 6144.

    Args:
        image_size: height and width of the pixels, the only one there is: positions are learned.
        patch: pixels of a token, each way; divides image_size.
        width: channels.
        depth: number of blocks.
        heads: heads of attention.
        mlp_width: hidden width of a block's perceptron.
        epsilon: of the LayerNorms.

    Raises:
        ConfigError: arguments that contradict each other; in forward, pixels of another size.

    >>> import torch
    >>> vit = EvaVit(image_size=16, patch=8, width=8, depth=1, heads=2, mlp_width=16)
    >>> vit(torch.zeros(1, 3, 16, 16)).shape
    torch.Size([1, 4, 8])
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__()
        if patch < 1 or image_size < patch or image_size % patch:
            raise ConfigError(f"expected an image_size that is a multiple of patch, got {image_size} and {patch}")
        self.image_size = image_size
        self.from_pixels = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + (image_size // patch) ** 2, width))
        self.blocks = nn.ModuleList(EvaBlock(width, heads, mlp_width, epsilon) for _ in range(depth))
        nn.init.trunc_normal_(self.class_token, std=0.02)
        with torch.no_grad():  # the class token's own place, which is nowhere on the grid, starts as the token does
            self.positions.copy_(torch.cat([self.class_token[0], 0.3 * places(self.positions[0, 1:])]))
        self.apply(initialize)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features of pixels [B, 3, image_size, image_size]."""
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ConfigError(
                f"expected pixels of {self.image_size} x {self.image_size}, for which these weights have positions, "
                f"got {tuple(pixels.shape[-2:])}. Set resize in the PreprocessSpec."
            )
        x = self.from_pixels(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return x[:, 1:]


class PatchTokens(nn.Module):
    """The patch tokens of a vision transformer that has timm's interface, as a dynamic tokenizer's features.

    Args:
        vit: has ``forward_features``, pixels [B, 3, H, W] to tokens [B, prefix + N, C], and ``num_prefix_tokens``, how
            many class tokens and registers come first. Whether tokens are normalised is the model's matter.

    Raises:
        ConfigError: the model has no such interface.

    >>> class Pixels(nn.Module):
    ...     num_prefix_tokens = 1
    ...     def forward_features(self, pixels):
    ...         return pixels.flatten(2).mT
    >>> PatchTokens(Pixels())(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 15, 3])
    """

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        prefix = getattr(vit, "num_prefix_tokens", None)
        if not isinstance(prefix, int) or not callable(getattr(vit, "forward_features", None)):
            raise ConfigError(
                "expected a vision transformer with forward_features and num_prefix_tokens, as timm's have them, got "
                f"{type(vit).__name__}: a module of your own from pixels [B, 3, H, W] to features [B, N, C] does, too"
            )
        self.vit, self._prefix = vit, prefix

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features [B, N, C] of pixels."""
        return cast(Any, self.vit).forward_features(pixels)[:, self._prefix :]


def initialize(module: nn.Module) -> None:
    """Normal weights, cut at two deviations, and no biases.

    The deviation keeps the size of what passes, at any width. LaVIT's 0.02 fits its 1408 channels; at 96 each layer
    would make it five times smaller, and a selector has four.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def places(table: Tensor) -> Tensor:
    """Return sines and cosines of places on a square grid for a table [N, width], which is learned from there.

    What looks for a place then finds it by one linear layer; from noise, every place would have to be learned alone.
    A table of no square grid, or of a width that is no multiple of 4, gets noise.
    """
    side = math.isqrt(len(table))
    if side**2 != len(table) or table.shape[1] % 4:
        return torch.randn_like(table)
    return sincos_positions(side, side, table.shape[1], device=table.device)
