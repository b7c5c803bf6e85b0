"""What quantizers made of quantizers share: their parts, whose codes stand side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqtok.errors import ConfigError
from vqtok.quantizers.base import Quantizer
from vqtok.types import Quantized


def distinct(parts: Sequence[Quantizer]) -> nn.ModuleList:
    """Return the modules among the parts, each once, in order: a part that is repeated is one module, shared."""
    return nn.ModuleList(dict.fromkeys(parts))


def check_parts(parts: Sequence[Quantizer]) -> None:
    """Refuse fewer than two parts, and parts of several vocabularies."""
    if len(parts) < 2:
        raise ConfigError(f"expected at least 2 quantizers, got {len(parts)}; one needs no other around it")
    if len({part.vocab_size for part in parts}) > 1:
        raise ConfigError(f"expected quantizers of one vocab_size, got {[part.vocab_size for part in parts]}")


def join_codes(parts: Sequence[Tensor], quantizers: Sequence[Quantizer]) -> Tensor:
    """Return the codes [...] or [..., Q_i] of parts side by side, [..., Q]."""
    pairs = zip(parts, quantizers, strict=True)
    return torch.cat([codes[..., None] if part.codebooks == 1 else codes for codes, part in pairs], dim=-1)


def part_codes(codes: Tensor, quantizers: Sequence[Quantizer]) -> list[Tensor]:
    """Return codes [..., Q] part by part, as each part's ``decode`` takes them."""
    parts = codes.split([part.codebooks for part in quantizers], dim=-1)
    return [x[..., 0] if part.codebooks == 1 else x for x, part in zip(parts, quantizers, strict=True)]


def mean_losses(parts: Sequence[Quantized], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return each loss by name as the weighted mean over the parts that have it."""
    names = dict.fromkeys(name for part in parts for name in part.losses)
    losses = {}
    for name in names:
        found = [
            (part.losses[name], weight) for part, weight in zip(parts, weights, strict=True) if name in part.losses
        ]
        total = sum(weight for _, weight in found)
        losses[name] = torch.stack([loss * (weight / total) for loss, weight in found]).sum()
    return losses
