"""What quantizers exchange under torch.distributed, so that every rank holds the same codebook; alone, nothing."""

from __future__ import annotations

from torch import Tensor
from torch import distributed as dist


def summed_over_ranks(x: Tensor) -> Tensor:
    """Return the sum of x over all ranks; x itself may be changed."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def from_rank_0(x: Tensor) -> Tensor:
    """Return rank 0's x on every rank."""
    if dist.is_available() and dist.is_initialized():
        x = x.contiguous()
        dist.broadcast(x, 0)
    return x
