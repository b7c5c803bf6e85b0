"""Noise that selections are drawn with."""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel(uniform: Tensor) -> Tensor:
    """Return the Gumbel noise of uniform numbers in [0, 1): adding it to logits and taking the greatest draws by them.

    >>> gumbel(torch.tensor([0.5])).item() == -torch.tensor(2.0).log().log().item()
    True
    """
    # Exponential numbers first: -log(1 - u) is never infinite, and kept away from zero.
    return -(-torch.log1p(-uniform)).clamp_min(torch.finfo(uniform.dtype).tiny).log()
