"""The feature decoder of LaVIT's tokenizer (Jin et al. 2023, section 3.1): runs of codebook vectors to all features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqtok.errors import ConfigError
from vqtok.networks.initial import initialize
from vqtok.networks.ragged import in_row_blocks, run_places, spread
from vqtok.networks.transformer import CrossAttention, Mlp, SelfAttention, attend


class FeatureDecoderBlock(nn.Module):
    """Attention among queries, attention to the run, a perceptron; each after a LayerNorm and added to its input."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_width, "gelu")
        self.heads = heads

    def forward(self, x: Tensor, run: Tensor, places: Tensor) -> Tensor:
        """Apply the block to queries x [B, N, width] beside a run [T, width] whose places are bool [B, N]."""
        x = x + self.self_attention(self.norm1(x))
        cross = self.cross_attention
        key, value = spread(in_row_blocks(self._looked_up, run), places).chunk(2, dim=-1)
        x = x + cross.to_out(attend(cross.to_q(self.norm2(x)), key, value, self.heads, places[:, None]))
        return x + self.mlp(self.norm3(x))

    def _looked_up(self, run: Tensor) -> Tensor:
        return torch.cat([self.cross_attention.to_k(run), self.cross_attention.to_v(run)], dim=-1)


class FeatureDecoder(nn.Module):
    """Codebook vectors [T, dim] of runs to features [B, N, feature_width] of the whole grid, N = h * w.

    A vector's place in its run is all that is known of where it stood; learned queries, one a patch, read the run.

    Args:
        dim: channels of the codebook vectors.
        width: channels of the transformer.
        depth: number of blocks.
        heads: heads of attention; they divide width.
        mlp_width: hidden width of a block's perceptron.
        grid: patches (h, w).
        feature_width: channels of the features; width when not given.

    >>> decoder = FeatureDecoder(dim=4, width=8, depth=1, heads=2, mlp_width=16, grid=(2, 3))
    >>> decoder(torch.zeros(5, 4), torch.tensor([1, 4])).shape
    torch.Size([2, 6, 8])
    """

    def __init__(
        self,
        *,
        dim: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        grid: tuple[int, int],
        feature_width: int | None = None,
    ) -> None:
        super().__init__()
        if min(grid) < 1:
            raise ConfigError(f"expected a grid of at least 1 x 1, got {grid}")
        self.dim, self.grid, self.patches = dim, grid, grid[0] * grid[1]
        self.from_vectors = nn.Linear(dim, width)
        self.positions = nn.Parameter(torch.zeros(self.patches, width))
        self.queries = nn.Parameter(torch.zeros(self.patches, width))
        self.blocks = nn.ModuleList(FeatureDecoderBlock(width, heads, mlp_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.to_features = Mlp(width, width, "tanh", out_dim=feature_width)
        initialize(self, self.positions, self.queries)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Reconstruct features.

        Args:
            vectors: [T, dim], one image's run after the other.
            lengths: int64 [B], each at most N; they sum to T.

        Returns:
            [B, N, feature_width].

        Raises:
            ConfigError: other shapes, or a run longer than the grid.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or lengths.ndim != 1:
            raise ConfigError(
                f"expected vectors [T, {self.dim}] and lengths [B], got {[*vectors.shape]} and {[*lengths.shape]}"
            )
        if len(lengths) and int(lengths.max()) > self.patches:
            raise ConfigError(f"expected runs of at most {self.patches} tokens, got one of {int(lengths.max())}")
        places = run_places(lengths, self.patches)
        index = places.nonzero()[:, 1]
        if len(index) != len(vectors):
            raise ConfigError(f"expected lengths that sum to the {len(vectors)} vectors, got {len(index)}")
        run = in_row_blocks(self.from_vectors, vectors) + self.positions[index]
        x = self.queries.expand(len(lengths), -1, -1)
        for block in self.blocks:
            x = block(x, run, places)
        return self.to_features(self.norm(x))
