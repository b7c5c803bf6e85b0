"""Losses of a tokenizer of features (Jin et al. 2023, LaVIT, section 3.1)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vqtok.errors import ConfigError
from vqtok.losses.checks import at_least_float32, check_shapes_equal


def cosine_feature_loss(features: Tensor, target: Tensor) -> Tensor:
    """Return the mean of 1 - cos(features, target) over all vectors [..., D]: 0 at the target, 2 opposite to it.

    Vectors shorter than 1e-8 count as of that length, so that a zero vector gives 1 and a bounded gradient.

    Raises:
        ConfigError: shapes differ.

    >>> import torch
    >>> cosine_feature_loss(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])).item()
    1.0
    """
    check_shapes_equal(features, target, "features")
    return 1 - F.cosine_similarity(at_least_float32(features), at_least_float32(target), dim=-1).mean()


def keep_ratio_loss(keep: Tensor, ratio: float) -> Tensor:
    """Return (ratio - mean of keep)^2: the mean over the N positions of an image, the square's mean over images.

    Args:
        keep: [..., N], 1 where a position is kept and 0 where not, with the gradient of the sampler; or probabilities.
        ratio: rho, the wanted share, in [0, 1]; LaVIT has a third. ``keep.flatten()`` asks it of the batch as a whole.

    Raises:
        ConfigError: ratio outside [0, 1].

    >>> import torch
    >>> keep_ratio_loss(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]), 0.5).item()
    0.15625
    """
    if not 0 <= ratio <= 1:
        raise ConfigError(f"expected ratio in [0, 1], the share of positions to keep, got {ratio}")
    return (ratio - at_least_float32(keep).mean(dim=-1)).square().mean()
