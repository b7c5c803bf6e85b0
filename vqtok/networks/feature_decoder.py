"""The feature decoder of LaVIT (Jin et al. 2023, section 3.1): runs of any length to the features of all patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqtok.networks.eva import initialize, places
from vqtok.networks.merger import pad_to
from vqtok.networks.policy import policy_attend
from vqtok.networks.transformer import CrossAttention, Mlp, SelfAttention


class FeatureDecoderBlock(nn.Module):
    """Self-attention among queries, cross-attention to the run, a perceptron; each added to its input.

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

    def forward(self, x: Tensor, run: Tensor, there: Tensor) -> Tensor:
        """Map queries [B, N, width]; the run is [B, M, width], there bool [B, M], or float: a policy."""
        x = x + self.attention(self.norm0(x))
        cross, query = self.cross_attention, self.norm1(x)
        if there.dtype == torch.bool:
            x = x + cross(query, run, there[:, None])
        else:
            seen = policy_attend(cross.to_q(query), cross.to_k(run), cross.to_v(run), cross.heads, there[:, None])
            x = x + cross.to_out(seen)
        return x + self.mlp(self.norm2(x))


class FeatureDecoder(nn.Module):
    """Runs of vectors [T, dim], one an image and each of its own length, to features [B, positions, out_dim].

    Runs carry no places: a vector's position here is its number in the run, and N learned queries ask for the patches.
    Every run is filled up to N, never to the longest of the batch, so that neighbours change nothing.

    Args:
        dim: length of the vectors.
        positions: number N of patches, and the longest run.
        width: channels.
        depth: number of blocks; 12 in LaVIT.
        heads: heads of attention.
        mlp_width: hidden width of a block's perceptron.
        out_dim: channels of the features; width when not given.

    >>> decoder = FeatureDecoder(dim=2, positions=4, width=8, depth=1, heads=2, mlp_width=16)
    >>> decoder(torch.zeros(4, 2), torch.tensor([1, 3])).shape
    torch.Size([2, 4, 8])
    """

    def __init__(
        self,
        *,
        dim: int,
        positions: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.from_vectors = nn.Linear(dim, width)
        self.positions = nn.Parameter(torch.empty(positions, width))
        self.queries = nn.Parameter(torch.empty(positions, width))
        self.blocks = nn.ModuleList(FeatureDecoderBlock(width, heads, mlp_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.to_features = Mlp(width, width, "tanh", out_dim)
        nn.init.trunc_normal_(self.positions, std=0.02)
        with torch.no_grad():
            self.queries.copy_(places(self.queries))
        self.apply(initialize)

    def forward(self, vectors: Tensor, lengths: Tensor, policy: Tensor | None = None) -> Tensor:
        """Decode.

        Args:
            vectors: [T, dim].
            lengths: int64 [B], each in 1..positions; they sum to T.
            policy: float [T] of ones with the gradient of the sampler, for training: it learns what each vector did.

        Returns:
            [B, positions, out_dim].

        Raises:
            ConfigError: lengths do not sum to T (only checked on the CPU).
        """
        n = len(self.positions)
        run = self.from_vectors(pad_to(vectors, lengths, n)) + self.positions
        if policy is None:
            there = torch.arange(n, device=lengths.device) < lengths[:, None]
        else:
            there = pad_to(policy, lengths, n)
        x = self.queries.expand(len(lengths), -1, -1)
        for block in self.blocks:
            x = block(x, run, there)
        return self.to_features(self.norm(x))
