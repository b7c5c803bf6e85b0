"""Images of which each has its own number of tokens, as one run [T, C], without that an image sees its neighbours.

A matrix product of T rows may sum in another order when T changes, so a row's bits would depend on the images beside
it (on CPUs below 8 rows, on GPUs wherever a library chooses by shape). So what works on rows gets blocks of one fixed
number of rows, and attention gets values at their places in the grid, whose size is fixed too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Rows of a block. Fixed for a kind of device: a number that followed the batch would be what this prevents.
ROWS = {"cpu": 64, "cuda": 512}


def in_row_blocks(function: Callable[..., Tensor], *runs: Tensor) -> Tensor:
    """Return what a function of rows gives of runs [T, ...], in blocks of a fixed number of rows.

    Args:
        function: called with as many tensors [R, ...] as there are runs; row i of what it gives depends on row i alone.
        runs: of one length T; the last block is filled up with zeros.

    >>> in_row_blocks(lambda x: x + 1, torch.tensor([[1.0], [2.0]])).tolist()
    [[2.0], [3.0]]
    """
    first = runs[0]
    rows, length = ROWS.get(first.device.type, ROWS["cuda"]), len(first)
    missing = -length % rows if length else rows
    filled = [F.pad(run, (0, 0) * (run.ndim - 1) + (0, missing)) if missing else run for run in runs]
    blocks = zip(*(run.split(rows) for run in filled), strict=True)
    return torch.cat([function(*block) for block in blocks])[:length]


def spread(values: Tensor, places: Tensor) -> Tensor:
    """Return values [T, ...] at their places bool [B, N], T of which are true, and zeros elsewhere: [B, N, ...].

    The inverse of `vqtok.ops.compact`; gradients reach all values.

    >>> spread(torch.tensor([[1.0], [2.0]]), torch.tensor([[False, True], [True, False]]))[..., 0].tolist()
    [[0.0, 1.0], [2.0, 0.0]]
    """
    everywhere = values.new_zeros(places.numel(), *values.shape[1:])
    return everywhere.index_copy(0, places.flatten().nonzero()[:, 0], values).unflatten(0, tuple(places.shape))


def run_places(lengths: Tensor, longest: int) -> Tensor:
    """Return bool [B, longest], true at the first ``lengths`` places of each row.

    >>> run_places(torch.tensor([2, 0]), 3).tolist()
    [[True, True, False], [False, False, False]]
    """
    return torch.arange(longest, device=lengths.device) < lengths[:, None]
