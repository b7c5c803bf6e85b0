"""The levels of finite scalar quantization: how latents are bounded, and where one level ends and the next begins."""

from __future__ import annotations

import math
import struct
from functools import cache

_MARGIN = 1e-3
"""The bound reaches this part beyond the outermost levels, so that those are reached."""


@cache
def level_bound(count: int) -> tuple[float, float, float]:
    """Return (half, offset, shift) of the bound ``half tanh(z + shift) - offset`` for a number of levels.

    An even number of levels lies half a step lower, and the shift keeps 0 at 0.

    Source:
        Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", 2023, appendix A.1, with the margin outwards,
        as published checkpoints have it.
    """
    half, offset = (count - 1) * (1 + _MARGIN) / 2, 0.0 if count % 2 else 0.5
    return half, offset, math.atanh(offset / half)


@cache
def level_thresholds(count: int) -> tuple[float, ...]:
    """Return for each level but the lowest the least float32 whose bound is rounded to that level or a higher one.

    The bound is monotone, so rounding it and comparing with these is the same; no latent is a tie, since none of these
    points is a float32 by itself. They come from float64 and one rounding upwards, hence a code depends on no device's
    tanh, and not on its rounding.
    """
    half, offset, shift = level_bound(count)
    steps = (level - count // 2 - 0.5 + offset for level in range(1, count))
    return tuple(_float32_from(math.atanh(step / half) - shift) for step in steps)


def _float32_from(x: float) -> float:
    """Return the least float32 that is not below x."""
    nearest = struct.unpack("f", struct.pack("f", x))[0]
    if nearest >= x:
        return nearest
    bits = struct.unpack("i", struct.pack("f", nearest))[0]
    return struct.unpack("f", struct.pack("i", bits + (1 if nearest >= 0 else -1)))[0]
