"""How latents lie in memory, for code that reads them there."""

from __future__ import annotations

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
