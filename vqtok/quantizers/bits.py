"""Codes whose bits are signs, and the entropies of bits that are independent: what LFQ and BSQ share.

Nothing here is of the size of the vocabulary but the mean distribution of one group of bits.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from vqtok.errors import ConfigError
from vqtok.quantizers.base import full_precision

Endian: TypeAlias = Literal["big", "little"]

_MOST_BITS = 62
_MOST_GROUPED = 24
"""Bits of a group: its mean distribution holds 2^24 numbers then."""


def pack_bits(bits: Tensor, endian: Endian) -> Tensor:
    """Return bool [..., B] as codes int64 [...]; the first bit is the greatest (``"big"``) or the least one."""
    return (bits.long() << _places(bits.shape[-1], endian, bits.device)).sum(dim=-1)


def unpack_bits(codes: Tensor, count: int, endian: Endian) -> Tensor:
    """Return codes int64 [...] as bool [..., B]: the exact inverse of `pack_bits`."""
    return ((codes[..., None] >> _places(count, endian, codes.device)) & 1).bool()


def signs(bits: Tensor, size: float) -> Tensor:
    """Return float32 [..., B]: ``size`` where a bit is set, else ``-size``."""
    return torch.where(bits, 1.0, -1.0).float() * size


def sample_entropy(logits: Tensor) -> Tensor:
    """Return the mean over latents of the entropy of their code, in nats: the sum of its bits' entropies.

    Args:
        logits: [..., B], of a bit being set; the bits of a code are independent.
    """
    far = logits.abs()
    entropy = F.softplus(-far) + far * torch.sigmoid(-far)
    return entropy.sum() / max(logits.shape[:-1].numel(), 1)


def mean_code_entropy(logits: Tensor, group_bits: int) -> Tensor:
    """Return the entropy of the mean distribution over codes, in nats; of groups of bits the sum.

    A latent's distribution over the codes of a group is the outer product of those over its two halves, so the mean is
    one product of two matrices [N, 2^(G / 2)]: exact, without ever holding N x 2^G.

    Args:
        logits: [..., B], of a bit being set; the bits of a latent's code are independent.
        group_bits: G, bits that are taken together; B for the distribution over whole codes. A last group may be
            shorter.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    total = rows.new_zeros(())
    with full_precision(rows):
        for group in rows.split(group_bits, dim=-1):
            first, second = group.split([group.shape[-1] // 2, -(-group.shape[-1] // 2)], dim=-1)
            mean = _distribution(first).mT @ _distribution(second) / max(len(rows), 1)
            # What is lost under the least number has no share in the entropy, and must not have an endless slope.
            total = total - (mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()
    return total


def check_bits(bits: int, group_bits: int, endian: Endian = "big") -> None:
    """Refuse numbers of bits that no code has, groups too great for their distribution, and other orders."""
    if not 1 <= bits <= _MOST_BITS:
        raise ConfigError(f"expected bits in 1..{_MOST_BITS}, got {bits}")
    if not 1 <= group_bits <= _MOST_GROUPED:
        raise ConfigError(
            f"expected group_bits in 1..{_MOST_GROUPED}, got {group_bits}: the mean distribution of a group holds "
            "2^group_bits numbers; choose fewer, such as 9"
        )
    if endian not in get_args(Endian):
        raise ConfigError(f"expected endian to be one of {', '.join(get_args(Endian))}, got {endian!r}")


def _distribution(logits: Tensor) -> Tensor:
    """Return the distribution [N, 2^B] over the values of independent bits with logits [N, B]."""
    probabilities = logits.new_ones(len(logits), 1)
    for bit in logits.unbind(dim=-1):
        parts = [probabilities * torch.sigmoid(x)[:, None] for x in (-bit, bit)]
        probabilities = torch.cat(parts, dim=-1)
    return probabilities


def _places(count: int, endian: Endian, device: torch.device) -> Tensor:
    places = torch.arange(count, device=device)
    return places.flip(0) if endian == "big" else places
