"""What a reconstruction lost and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vqtok.images import RGB
from vqtok.types import Tokens


def psnr(a: RGB, b: RGB) -> float:
    """Return the peak signal-to-noise ratio of two images in dB, over all pixels and channels.

    Args:
        a: uint8 [H, W, 3].
        b: uint8 [H, W, 3].

    Returns:
        10 log10(255^2 / mean squared error); infinity for equal images.

    >>> round(psnr(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 16, np.uint8)), 3)
    24.048
    """
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def mean_psnr(originals: Sequence[RGB], backs: Sequence[RGB]) -> float:
    """Return the mean PSNR in dB of images that lost something; infinity where none did.

    A blank image that comes back as it was would make the mean infinite, and hide all others.

    >>> blank, grey = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 16, np.uint8)
    >>> round(mean_psnr([blank, blank], [blank, grey]), 3)
    24.048
    """
    values = [psnr(a, b) for a, b in zip(originals, backs, strict=True)]
    lossy = [value for value in values if math.isfinite(value)]
    return float(np.mean(lossy)) if lossy else math.inf


def bits_per_pixel(tokens: Tokens) -> float:
    """Return log2(vocab_size) bits a token over the true pixels of all images.

    >>> tokens = Tokens(np.zeros(1024, np.int64), np.array([0, 1024]), np.array([[1, 32, 32]]),
    ...                 np.array([[256, 256]]), 8192, ("a",), "")
    >>> bits_per_pixel(tokens)
    0.203125
    """
    return tokens.ids.size * math.log2(tokens.vocab_size) / float(tokens.sizes.prod(axis=1).sum())


def codebook_usage(tokens: Tokens) -> float:
    """Return the share of the codes that occur at least once."""
    return len(np.unique(tokens.ids)) / tokens.vocab_size
