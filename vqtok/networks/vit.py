"""The transformer encoder and decoder of ViT-VQGAN (Yu et al. 2021, section 3.1): a token is a patch that saw all.

Published checkpoints have tanh inside every block and plain linear outputs; the paper has one tanh hidden layer at the
outputs. Both are arguments here: ``activation`` and ``tanh_head``.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from vqtok.errors import ConfigError
from vqtok.networks.transformer import Activation, Mlp, SelfAttention, sincos_positions

PositionKind: TypeAlias = Literal["sincos", "stored"]


class Block(nn.Module):
    """Self-attention and a perceptron, each after a LayerNorm and added to its input; [B, N, width] in and out."""

    def __init__(self, width: int, heads: int, mlp_width: int, head_dim: int, activation: Activation) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, head_dim, bias="none")
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_width, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SincosPositions(nn.Module):
    """Adds the fixed table of any grid; holds nothing."""

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Add positions to x [B, height * width, D], in float32 or better: half precision cannot tell them apart."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return x + sincos_positions(height, width, x.shape[-1], device=x.device, dtype=dtype)


class StoredPositions(nn.Module):
    """Adds a table that belongs to the weights, of one grid; it starts as the fixed one and is not trained.

    Args:
        grid: height and width of the only grid there is.
        dim: channels.
    """

    table: Tensor

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("table", sincos_positions(*grid, dim, dtype=torch.get_default_dtype()))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Add positions to x [B, height * width, D].

        Raises:
            ConfigError: another grid.
        """
        if (height, width) != self.grid:
            raise ConfigError(
                f"expected a grid of {self.grid[0]} x {self.grid[1]} patches, for which these weights store positions, "
                f"got {height} x {width}. Resize the image, or take a model with positions 'sincos'."
            )
        return x + self.table


class VitEncoder(nn.Module):
    """Pixels [B, in_channels, H, W] to latents [B, dim, H / patch, W / patch].

    Args:
        dim: channels of the latents.
        width: channels of the transformer; a multiple of 4.
        depth: number of blocks.
        heads: heads of attention.
        mlp_width: hidden width of a block's perceptron.
        patch: pixels a token, each way.
        head_dim: width of a head; 64 in every published checkpoint, whatever the width.
        activation: ``"tanh"`` (published checkpoints) or ``"gelu"``, inside the blocks.
        tanh_head: width of the paper's tanh layer between the last block and the latents, or None for none.
        positions: ``"sincos"``: computed, for any grid. ``"stored"``: a table among the weights, for one ``grid``.
        grid: height and width of the stored table, in patches; only with ``"stored"``.
        in_channels: channels of the pixels.

    Raises:
        ConfigError: arguments that contradict each other; in forward, H or W that is not a multiple of patch.

    >>> import torch
    >>> encoder = VitEncoder(dim=4, width=16, depth=2, heads=2, mlp_width=32, patch=8)
    >>> encoder(torch.zeros(1, 3, 16, 24)).shape
    torch.Size([1, 4, 2, 3])
    """

    def __init__(
        self,
        *,
        dim: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        patch: int,
        head_dim: int = 64,
        activation: Activation = "tanh",
        tanh_head: int | None = None,
        positions: PositionKind = "sincos",
        grid: tuple[int, int] | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.from_pixels = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.positions = _positions(positions, grid, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_width, head_dim, activation) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = _head(width, tanh_head)
        self.to_latents = nn.Linear(_head_width(width, tanh_head), dim)
        self.apply(_initialize)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, in_channels, H, W]; H and W are multiples of patch."""
        if pixels.shape[-2] % self.patch or pixels.shape[-1] % self.patch:
            raise ConfigError(
                f"expected a height and width that are multiples of {self.patch}, got {tuple(pixels.shape[-2:])}. "
                f"Set multiple={self.patch} in the PreprocessSpec: images are then padded."
            )
        x = self.from_pixels(pixels)
        height, width = x.shape[-2:]
        x = self.positions(x.flatten(2).transpose(1, 2), height, width)
        for block in self.blocks:
            x = block(x)
        latents = self.to_latents(self.head(self.norm(x)))
        return latents.transpose(1, 2).unflatten(2, (height, width))


class VitDecoder(nn.Module):
    """Latents [B, dim, h, w] to pixels [B, out_channels, h * patch, w * patch].

    Takes the arguments of `VitEncoder`; ``tanh_head`` lies between the last block and the pixels, and ``out_channels``
    is 3, or 6 for the logit-Laplace loss (mean and logarithm of the scale, before the sigmoid).

    >>> import torch
    >>> decoder = VitDecoder(dim=4, width=16, depth=2, heads=2, mlp_width=32, patch=8)
    >>> decoder(torch.zeros(1, 4, 2, 3)).shape
    torch.Size([1, 3, 16, 24])
    """

    def __init__(
        self,
        *,
        dim: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        patch: int,
        head_dim: int = 64,
        activation: Activation = "tanh",
        tanh_head: int | None = None,
        positions: PositionKind = "sincos",
        grid: tuple[int, int] | None = None,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        self.from_latents = nn.Linear(dim, width)
        self.positions = _positions(positions, grid, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_width, head_dim, activation) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = _head(width, tanh_head)
        self.to_pixels = nn.ConvTranspose2d(_head_width(width, tanh_head), out_channels, patch, stride=patch)
        self.apply(_initialize)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents [B, dim, h, w]."""
        height, width = latents.shape[-2:]
        x = self.positions(self.from_latents(latents.flatten(2).transpose(1, 2)), height, width)
        for block in self.blocks:
            x = block(x)
        x = self.head(self.norm(x))
        return self.to_pixels(x.transpose(1, 2).unflatten(2, (height, width)))


def _positions(kind: PositionKind, grid: tuple[int, int] | None, width: int) -> nn.Module:
    if kind not in ("sincos", "stored") or (kind == "stored") != (grid is not None):
        raise ConfigError(
            f"expected positions 'sincos', or 'stored' with a grid (height, width), got {kind!r} with {grid}"
        )
    return SincosPositions() if grid is None else StoredPositions(grid, width)


def _head(width: int, hidden: int | None) -> nn.Module:
    return nn.Identity() if hidden is None else nn.Sequential(nn.Linear(width, hidden), nn.Tanh())


def _head_width(width: int, hidden: int | None) -> int:
    return width if hidden is None else hidden


def _initialize(module: nn.Module) -> None:
    """Glorot's uniform weights (a patch counts as one vector, as MAE has it) and no biases, as published."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight.data.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
