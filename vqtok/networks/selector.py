"""The token selector of LaVIT (Jin et al. 2023, section 3.1), after DynamicViT's predictor (Rao et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.errors import ConfigError
from vqtok.networks.initial import initialize


class TokenSelector(nn.Module):
    """How probable it is that a patch is kept: features [B, N, width] to log-probabilities [B, N, 2], (keep, drop).

    Half of a patch's hidden channels speak of itself, the other half is the mean over all patches.

    Args:
        width: channels C of the features, at least 4; layers are C to C, then C to C / 2 to C / 4 to 2.

    >>> TokenSelector(width=8)(torch.zeros(1, 5, 8)).exp().sum(-1).tolist()
    [[1.0, 1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 4 or width % 2:
            raise ConfigError(f"expected an even width of at least 4, half of it local, half global, got {width}")
        self.width = width
        self.norm = nn.LayerNorm(width)
        self.to_hidden = nn.Linear(width, width)
        self.head = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, 2),
        )
        initialize(self)

    def forward(self, features: Tensor, policy: Tensor | None = None) -> Tensor:
        """Return log-probabilities.

        Args:
            features: [B, N, width].
            policy: float [B, N], how much each patch counts in the mean; all the same when not given.
        """
        hidden = F.gelu(self.to_hidden(self.norm(features)))
        local, shared = hidden.chunk(2, dim=-1)
        if policy is None:
            mean = shared.mean(dim=1, keepdim=True)
        else:
            weights = policy[..., None]
            mean = (shared * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
        return self.head(torch.cat([local, mean.expand_as(local)], dim=-1)).log_softmax(dim=-1)
