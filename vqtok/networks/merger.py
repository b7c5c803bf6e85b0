"""The merger of LaVIT (Jin et al. 2023, section 3.1): kept tokens take up what the dropped ones knew."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from vqtok import ops
from vqtok.errors import ConfigError
from vqtok.networks.eva import initialize
from vqtok.networks.policy import policy_attend
from vqtok.networks.transformer import CrossAttention, Mlp, SelfAttention, attend


class MergerBlock(nn.Module):
    """Causal self-attention among kept tokens, cross-attention to dropped ones, a perceptron; each added to its input.

    Args:
        width: channels.
        heads: heads of both attentions.
        mlp_width: hidden width of the perceptron.
    """

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm0 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_width, "gelu")

    def forward(self, x: Tensor, context: Tensor, keep: Tensor, lengths: Tensor) -> Tensor:
        """Map kept tokens [T, width] beside the context [B, N, width] of all positions; keep is bool [B, N]."""
        n, heads = keep.shape[1], self.attention.heads
        every = keep.all(dim=1)
        rows = _Rows(n, lengths)
        query, key, value = (rows.padded(part) for part in rows.apply(self._to_qkv, x).chunk(3, dim=-1))
        # Kept tokens stand before the filling, so causal attention never looks at it.
        seen = attend(query, key, value, heads, is_causal=True)
        x = x + rows.apply(self.attention.to_out, rows.kept(seen))
        cross = self.cross_attention
        query = rows.padded(rows.apply(lambda part: cross.to_q(self.norm1(part)), x))
        # Where nothing was dropped there is nothing to look at, and the published code looks at everything alike.
        query, mask = query * ~every[:, None, None], (~keep | every[:, None])[:, None]
        seen = attend(query, cross.to_k(context), cross.to_v(context), heads, mask)
        x = x + rows.apply(cross.to_out, rows.kept(seen))
        return x + rows.apply(lambda part: self.mlp(self.norm2(part)), x)

    def forward_dense(self, x: Tensor, context: Tensor, policy: Tensor, causal: Tensor, leak: float) -> Tensor:
        """Map all positions [B, N, width]; policy is float [B, N], causal [B, N, N] who counts for whom."""
        heads = self.attention.heads
        query, key, value = self._to_qkv(x).chunk(3, dim=-1)
        x = x + self.attention.to_out(policy_attend(query, key, value, heads, causal, leak))
        cross, dropped = self.cross_attention, (1 - policy)[:, None]
        query = cross.to_q(self.norm1(x))
        x = x + cross.to_out(policy_attend(query, cross.to_k(context), cross.to_v(context), heads, dropped, leak))
        return x + self.mlp(self.norm2(x))

    def _to_qkv(self, x: Tensor) -> Tensor:
        return self.attention.to_qkv(self.norm0(x))


class Merger(nn.Module):
    """Features [B, N, width] of which some are kept, to merged vectors [T, width] of the kept ones.

    Dropped positions leave the sequence: linear layers see kept tokens only, one image's after the other's, and only
    attention sees filling. It is filled up to N, never to the longest of the batch, and linear layers work on pieces of
    N rows: an image's numbers are computed the same way whatever its neighbours are and keep.

    Args:
        width: channels.
        depth: number of blocks; 12 in LaVIT.
        heads: heads of attention.
        mlp_width: hidden width of a block's perceptron.
        leak: 0, or what attention adds to its weights in LaVIT's published code, 1e-6; see `policy_attend`. Numbers are
            the code's then, and every position, dropped ones too, has to be computed, as `forward_dense` does.

    Source:
        Jin et al. 2023, section 3.1. What the code adds makes weights uniform of a query that may see nothing; without
        a leak that case is written out, and nothing of what a query may not see leaks in. Merged vectors then differ
        from the code's in the fourth decimal.

    >>> keep = torch.tensor([[True, False, True], [False, True, False]])
    >>> merged, lengths = Merger(8, depth=1, heads=2, mlp_width=16)(torch.zeros(2, 3, 8), keep)
    >>> merged.shape, lengths.tolist()
    (torch.Size([3, 8]), [2, 1])
    """

    def __init__(self, width: int, depth: int, heads: int, mlp_width: int, leak: float = 0.0) -> None:
        super().__init__()
        if not leak >= 0:
            raise ConfigError(f"expected a leak of at least 0, got {leak}")
        self.width, self.leak = width, leak
        self.context_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(MergerBlock(width, heads, mlp_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.apply(initialize)

    def forward(self, features: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Merge.

        Args:
            features: [B, N, width].
            keep: bool [B, N].

        Returns:
            Merged vectors [T, width], one image's run after the other's, and int64 [B] how long each run is.

        Raises:
            ConfigError: shapes or dtypes do not fit.
        """
        if self.leak:
            return ops.compact(self.forward_dense(features, keep.to(features.dtype)), keep)
        x, lengths = ops.compact(features, keep)
        context = self.context_norm(features)
        for block in self.blocks:
            x = block(x, context, keep, lengths)
        return self.norm(x), lengths

    def forward_dense(self, features: Tensor, policy: Tensor) -> Tensor:
        """Merge with a gradient to the selection: at kept positions the value of `forward`, but for rounding.

        Nothing leaves the sequence; attention is weighted with the policy instead.

        Args:
            features: [B, N, width].
            policy: float [B, N], 1 where a position is kept and 0 where not, with the gradient of the sampler.

        Returns:
            [B, N, width]; dropped positions hold numbers that mean nothing.
        """
        n = policy.shape[1]
        itself = torch.eye(n, dtype=policy.dtype, device=policy.device)
        causal = (policy[:, None] * (1 - itself) + itself).tril()
        x, context = features, self.context_norm(features)
        for block in self.blocks:
            x = cast(MergerBlock, block).forward_dense(x, context, policy, causal, self.leak)
        return self.norm(x)


class _Rows:
    """Kept tokens of images of n positions each, [T, C], as rows of n where attention needs them."""

    def __init__(self, n: int, lengths: Tensor) -> None:
        self.n, self.lengths = n, lengths
        self.there = torch.arange(n, device=lengths.device) < lengths[:, None]

    def padded(self, x: Tensor) -> Tensor:
        """Return [B, n, C], filled up with zeros."""
        return pad_to(x, self.lengths, self.n)

    def kept(self, x: Tensor) -> Tensor:
        """Return [T, C] of rows [B, n, C]."""
        return ops.compact(x, self.there)[0]

    def apply(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return what a function of rows gives of x [T, C], in pieces of n rows."""
        return in_row_pieces(function, x, self.n)


def in_row_pieces(function: Callable[[Tensor], Tensor], x: Tensor, n: int) -> Tensor:
    """Return what a function of rows gives of x [T, ...], in pieces of n rows: products of one shape round alike.

    With gradients all rows go at once.

    >>> in_row_pieces(torch.sqrt, torch.tensor([[1.0], [4.0], [9.0]]), 2)[:, 0].tolist()
    [1.0, 2.0, 3.0]
    """
    if torch.is_grad_enabled():
        return function(x)
    filled = torch.cat([x, x.new_zeros(-len(x) % n, *x.shape[1:])])
    return torch.cat([function(piece) for piece in filled.split(n)])[: len(x)]


def pad_to(values: Tensor, lengths: Tensor, n: int) -> Tensor:
    """Return runs of values [T, C] as rows [B, n, C], filled up with zeros; no run is longer than n.

    >>> pad_to(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 2]), 3)[..., 0].tolist()
    [[1.0, 0.0, 0.0], [2.0, 3.0, 0.0]]
    """
    # pad fills up to the longest run: one more, of n values, makes that n.
    full = values.new_zeros(n, *values.shape[1:])
    return ops.pad(torch.cat([values, full]), torch.cat([lengths, lengths.new_tensor([n])]))[0][:-1]
