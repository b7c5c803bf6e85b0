"""What convolutional networks are made of: GroupNorm with SiLU, and 3x3 convolutions that take it in their stride.

On a CPU, where nothing is differentiated and no compiler looks on, maps of features lie in ``channels_last`` and a
convolution is one call of `vqtok.ops.conv3x3`. Everywhere else, and where the library has none for this processor, the
same is written in torch's own functions and maps lie as they come: torch's convolutions round worse in that layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.ops import PreparedConv3x3, Products, conv3x3, convolves_natively, group_affine, group_norm, group_norm_silu


def on_a_cpu(x: Tensor) -> bool:
    """Return whether a network runs as written here: for no gradient, in no compiler's hands, on a CPU with code."""
    free = x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return free and convolves_natively()


def laid_out(x: Tensor) -> Tensor:
    """Return [B, C, h, w] as convolutions are fastest: on a CPU with code in ``channels_last``, elsewhere as it is.

    >>> with torch.no_grad():
    ...     laid_out(torch.zeros(1, 3, 4, 5)).is_contiguous() == (not convolves_natively())
    True
    """
    return x.contiguous(memory_format=torch.channels_last) if on_a_cpu(x) else x


class Normalize(nn.GroupNorm):
    """GroupNorm with eps 1e-6, of 32 groups unless said otherwise; an input that is differentiated is made contiguous.

    torch's own kernel for ``channels_last`` on the CPU loses flat images to cancellation.
    """

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, channels, h, w]."""
        if on_a_cpu(input):
            return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(input.contiguous())

    def silu(self, x: Tensor) -> Tensor:
        """Normalise [B, channels, h, w], then SiLU."""
        if on_a_cpu(x):
            return group_norm_silu(x, self.num_groups, self.weight, self.bias, self.eps)
        return F.silu(self(x))

    def channel_map(self, x: Tensor) -> Tensor:
        """Return what normalising does to each channel of each image, for `vqtok.ops.conv3x3`."""
        return group_affine(x, self.num_groups, self.weight, self.bias, self.eps)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with a border of one zero.

    Its weights, packed for the CPU, are remembered for as long as they stay as they are. A change that goes around
    torch's own count of changes, through ``.data``, is not seen.

    Args:
        channels: of the input.
        out_channels: of the output.
        bias: whether there is one.

    >>> conv = Conv3x3(32, 32)
    >>> with torch.no_grad():
    ...     conv.around(torch.zeros(1, 32, 4, 6), Normalize(32), residual=torch.zeros(1, 32, 4, 6)).shape
    torch.Size([1, 32, 4, 6])
    """

    def __init__(self, channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(channels, out_channels, 3, padding=1, bias=bias)
        self._packed: _Packed | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, channels, h, w] to [B, out_channels, h, w]."""
        return self.around(input)

    def around(
        self, x: Tensor, norm: Normalize | None = None, *, doubled: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        """Return what the convolution gives of x, plus a residual.

        Args:
            x: [B, channels, h, w].
            norm: what x goes through first, SiLU after it; or none.
            doubled: with no norm, whether x is repeated to twice its height and width first.
            residual: of the result's shape, or none.
        """
        if on_a_cpu(x) and not self.weight.is_inference() and (dtype := self._computes_in(x)):
            packed = self._packed_for("bfloat16" if dtype == torch.bfloat16 else "float32")
            if packed.usable:
                affine = None if norm is None else norm.channel_map(x)
                residual = None if residual is None else residual.to(dtype)
                x, bias = x.to(dtype), self.bias
                return conv3x3(x, packed.prepared, bias, affine=affine, doubled=doubled, residual=residual)
        x = x if norm is None else norm.silu(x)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if doubled else x
        y = super().forward(x)
        return y if residual is None else residual + y

    def _computes_in(self, x: Tensor) -> torch.dtype | None:
        """Return the dtype of the result, if it is one that `vqtok.ops.conv3x3` is fast in."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        known = dtype in (torch.float32, torch.bfloat16)
        return dtype if known and (torch.is_autocast_enabled("cpu") or self.weight.dtype == dtype) else None

    def _packed_for(self, products: Products) -> _Packed:
        if self._packed is None or not self._packed.still_of(self.weight, products):
            self._packed = _Packed(self.weight, products)
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made anew."""
        return {**self.__dict__, "_packed": None}


class _Packed:
    """Packed weights, and which these are. Holding their memory keeps its address from being given to others."""

    def __init__(self, weight: Tensor, products: Products) -> None:
        self._weight, self._memory = weight, weight.detach()
        self._version, self._products = weight._version, products
        self.prepared = PreparedConv3x3(weight, products)
        self.usable = self.prepared.packed.numel() > 0

    def still_of(self, weight: Tensor, products: str) -> bool:
        """Return whether these weights were packed."""
        same = (
            weight is self._weight and weight.data_ptr() == self._memory.data_ptr() and weight._version == self._version
        )
        return same and products == self._products
