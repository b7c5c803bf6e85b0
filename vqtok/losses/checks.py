"""What every loss does to its inputs first: refuse shapes that would broadcast, leave half precision."""

from __future__ import annotations

import torch
from torch import Tensor

from vqtok.errors import ConfigError


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 if it is: a mean over a batch has no bits to spare in half precision.

    >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_shapes_equal(x: Tensor, target: Tensor, what: str) -> None:
    """Raise ConfigError unless x and its target have one shape; broadcasting them would be a quiet mistake.

    >>> check_shapes_equal(torch.ones(2, 3), torch.ones(2, 3), "pixels")
    """
    if x.shape != target.shape:
        raise ConfigError(f"expected {what} of the target's shape {tuple(target.shape)}, got {tuple(x.shape)}")
