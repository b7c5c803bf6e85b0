"""Initial weights of the transformers around features: small and normal, as BERT and its vision relatives start."""

from __future__ import annotations

from torch import Tensor, nn

STD = 0.02


def initialize(module: nn.Module, *tables: Tensor | None) -> None:
    """Draw the weights of all linear maps of a module, and tables of it, from a normal of deviation 0.02; zero biases.

    >>> import torch
    >>> layer = nn.Linear(64, 64)
    >>> initialize(layer)
    >>> bool(layer.weight.abs().max() < 0.2), layer.bias.abs().max().item()
    (True, 0.0)
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=STD)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for table in tables:
        if table is not None:
            nn.init.trunc_normal_(table, std=STD)
