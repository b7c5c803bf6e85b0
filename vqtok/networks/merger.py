"""The token merger of LaVIT (Jin et al. 2023, section 3.1): kept patches take in what the dropped ones know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vqtok import ops
from vqtok.errors import ConfigError
from vqtok.networks.initial import initialize
from vqtok.networks.policy import policy_attend
from vqtok.networks.ragged import in_row_blocks, spread
from vqtok.networks.transformer import CrossAttention, Mlp, SelfAttention, attend


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where kept and dropped patches lie in the grid, and who sees whom; the same for all blocks.

    Attributes:
        kept: bool [B, N].
        context: bool [B, N], the patches that kept ones look up: the dropped, or all where none was dropped.
        causal: bool [B, N, N], a patch sees itself and the kept ones before it.
        asks: float [B, 1, 1], 0 where none was dropped: a query of zeros takes the mean over all.
    """

    kept: Tensor
    context: Tensor
    causal: Tensor
    asks: Tensor

    @classmethod
    def of(cls, keep: Tensor) -> Layout:
        """Return the layout of keep bool [B, N]."""
        every = keep.all(dim=1, keepdim=True)
        itself = torch.eye(keep.shape[1], dtype=torch.bool, device=keep.device)
        causal = (keep[:, None] | itself).tril()
        return cls(keep, ~keep | every, causal, (~every).float()[..., None])


class MergerBlock(nn.Module):
    """Causal attention among kept patches, attention to dropped ones, a perceptron; each added to its input."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_width, "gelu")
        self.heads = heads

    def forward(self, x: Tensor, context: Tensor, layout: Layout) -> Tensor:
        """Apply the block to kept patches x [T, width] beside a context [S, width]."""
        query, key, value = spread(in_row_blocks(self._own, x), layout.kept).chunk(3, dim=-1)
        found, _ = ops.compact(attend(query, key, value, self.heads, layout.causal), layout.kept)
        x = in_row_blocks(self._after_self, x, found)
        query = spread(in_row_blocks(self._query, x), layout.kept)
        key, value = spread(in_row_blocks(self._looked_up, context), layout.context).chunk(2, dim=-1)
        # A query without anything dropped is zero: its scores are equal, and it takes the mean.
        query = query * layout.asks.to(query.dtype)
        found, _ = ops.compact(attend(query, key, value, self.heads, layout.context[:, None]), layout.kept)
        return in_row_blocks(self._after_cross, x, found)

    def dense(self, x: Tensor, context: Tensor, keep: Tensor, epsilon: float) -> Tensor:
        """Apply the block to all patches [B, N, width], of which keep float [B, N] says who counts, with a gradient."""
        itself = torch.eye(keep.shape[1], dtype=keep.dtype, device=keep.device)
        causal = (keep[:, None] + (1 - keep[:, None]) * itself).tril()
        query, key, value = self._own(x).chunk(3, dim=-1)
        x = self._after_self(x, policy_attend(query, key, value, self.heads, causal, epsilon))
        key, value = self._looked_up(context).chunk(2, dim=-1)
        return self._after_cross(x, policy_attend(self._query(x), key, value, self.heads, 1 - keep[:, None], epsilon))

    def _own(self, x: Tensor) -> Tensor:
        return self.self_attention.to_qkv(self.norm1(x))

    def _after_self(self, x: Tensor, found: Tensor) -> Tensor:
        return x + self.self_attention.to_out(found)

    def _query(self, x: Tensor) -> Tensor:
        return self.cross_attention.to_q(self.norm2(x))

    def _looked_up(self, context: Tensor) -> Tensor:
        return torch.cat([self.cross_attention.to_k(context), self.cross_attention.to_v(context)], dim=-1)

    def _after_cross(self, x: Tensor, found: Tensor) -> Tensor:
        x = x + self.cross_attention.to_out(found)
        return x + self.mlp(self.norm3(x))


class TokenMerger(nn.Module):
    """Features [B, N, width] and who is kept to merged vectors [T, width], one a kept patch, images in order.

    An image's vectors do not depend on its neighbours, bit for bit: see `vqtok.networks.ragged`. `dense` computes the
    same for all N patches, with a gradient to the selection.

    Args:
        width: channels of the features.
        depth: number of blocks.
        heads: heads of attention; they divide width.
        mlp_width: hidden width of a block's perceptron.
        epsilon: 0, or what a published softmax adds (1e-6 in LaVIT's): see `policy_attend`. All patches, dropped ones
            too, then move the kept ones a little, so that `forward` costs what `dense` does.

    >>> merger = TokenMerger(width=8, depth=1, heads=2, mlp_width=16)
    >>> merger(torch.zeros(2, 3, 8), torch.tensor([[True, False, True], [False, True, False]])).shape
    torch.Size([3, 8])
    """

    def __init__(self, *, width: int, depth: int, heads: int, mlp_width: int, epsilon: float = 0.0) -> None:
        super().__init__()
        if epsilon < 0:
            raise ConfigError(f"expected epsilon of at least 0, got {epsilon}")
        self.width, self.epsilon = width, epsilon
        self.blocks = nn.ModuleList(MergerBlock(width, heads, mlp_width) for _ in range(depth))
        self.context_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)
        initialize(self)

    def forward(self, features: Tensor, keep: Tensor) -> Tensor:
        """Merge.

        Args:
            features: [B, N, width].
            keep: bool [B, N]; an image may have any number of kept patches, none too.

        Returns:
            [T, width], kept patches of all images, rows from the top, one image after the other.

        Raises:
            ConfigError: other shapes or dtypes.
        """
        self._check(features, keep)
        if keep.dtype != torch.bool:
            raise ConfigError(f"expected keep of bool, got {keep.dtype}: a float selection goes to dense")
        if self.epsilon:
            return ops.compact(self.dense(features, keep.to(features.dtype)), keep)[0]
        layout = Layout.of(keep)
        x, _ = ops.compact(features, keep)
        context = in_row_blocks(self.context_norm, ops.compact(features, layout.context)[0])
        for block in self.blocks:
            x = block(x, context, layout)
        return in_row_blocks(self.norm, x)

    def dense(self, features: Tensor, keep: Tensor) -> Tensor:
        """Return merged vectors [B, N, width] at all patches; those of dropped ones mean nothing.

        Args:
            features: [B, N, width].
            keep: float [B, N] of zeros and ones; it learns as its key's weight in every attention (`policy_attend`).
        """
        self._check(features, keep)
        x, context = features, self.context_norm(features)
        for block in self.blocks:
            x = cast(MergerBlock, block).dense(x, context, keep, self.epsilon)
        return self.norm(x)

    def _check(self, features: Tensor, keep: Tensor) -> None:
        if features.ndim != 3 or features.shape[2] != self.width or keep.shape != features.shape[:2]:
            raise ConfigError(
                f"expected features [B, N, {self.width}] and a selection [B, N], got {list(features.shape)} and "
                f"{list(keep.shape)}"
            )
