"""The selector of LaVIT (Jin et al. 2023, section 3.1): how likely each patch is worth a token of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.errors import ConfigError
from vqtok.networks.eva import initialize


class Selector(nn.Module):
    """Features [B, N, width] to log-probabilities [B, N, 2]: channel 0 that a patch is kept, 1 that it is dropped.

    One half of the channels speaks for the patch itself, the other half, averaged over patches, for the image: whether
    a patch is worth a token depends on the others.

    Args:
        width: channels of the features; a multiple of 4.

    Raises:
        ConfigError: width is no positive multiple of 4.

    >>> import torch
    >>> Selector(8)(torch.zeros(1, 5, 8)).exp().sum(dim=-1).shape
    torch.Size([1, 5])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ConfigError(f"expected a width that is a multiple of 4, got {width}")
        self.norm = nn.LayerNorm(width)
        self.from_features = nn.Linear(width, width)
        self.to_half = nn.Linear(width, width // 2)
        self.to_quarter = nn.Linear(width // 2, width // 4)
        self.to_scores = nn.Linear(width // 4, 2)
        self.apply(initialize)

    def forward(self, features: Tensor, policy: Tensor | None = None) -> Tensor:
        """Score patches.

        Args:
            features: [B, N, width].
            policy: float [B, N], how much each patch counts in the average; all alike when not given.
        """
        local, pooled = F.gelu(self.from_features(self.norm(features))).chunk(2, dim=-1)
        if policy is None:
            pooled = pooled.mean(dim=1, keepdim=True)
        else:
            pooled = (pooled * policy.unsqueeze(-1)).sum(dim=1, keepdim=True) / policy.sum(dim=1).view(-1, 1, 1)
        x = torch.cat([local, pooled.expand_as(local)], dim=-1)
        x = F.gelu(self.to_quarter(F.gelu(self.to_half(x))))
        return self.to_scores(x).log_softmax(dim=-1)
