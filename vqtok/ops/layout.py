"""How latents lie in memory, for code that reads them there."""

from __future__ import annotations

import torch
from torch import Tensor


def merged_axes(values: Tensor) -> tuple[list[int], list[int]]:
    """Return sizes and strides of the leading axes of [..., D]; axes in one stride are merged: most inputs have one.

    >>> import torch
    >>> merged_axes(torch.zeros(2, 5, 3, 4).permute(0, 2, 3, 1))
    ([2, 12], [60, 1])
    """
    sizes: list[int] = []
    strides: list[int] = []
    for size, stride in zip(reversed(values.shape[:-1]), reversed(values.stride()[:-1]), strict=True):
        if sizes and stride == sizes[0] * strides[0]:
            sizes[0] *= size
        elif size != 1:
            sizes.insert(0, size)
            strides.insert(0, stride)
    return sizes, strides


def is_channels_last(x: Tensor) -> bool:
    """Return whether [B, C, h, w] lies in ``channels_last`` and not, as well, in plain order.

    >>> import torch
    >>> x = torch.zeros(2, 5, 3, 4)
    >>> is_channels_last(x), is_channels_last(x.contiguous(memory_format=torch.channels_last))
    (False, True)
    """
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
