"""conv3x3: a residual block's convolution with all that stands around it; PreparedConv3x3: its weights, packed."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.ops.checks import FLOATS
from vqtok.ops.registration import register
from vqtok.ops.registry import Op
from vqtok.ops.table import CONV3X3

_UNPACKED = Op("conv3x3", CONV3X3.backends[-1:])

Products: TypeAlias = Literal["float32", "bfloat16"]


class PreparedConv3x3:
    """Frozen weights of a 3 x 3 convolution, packed once for `conv3x3` on this machine.

    It is a copy: later changes of the weights do not reach it. It holds 16 numbers for the nine of a pair of channels.

    Args:
        weight: [N, C, 3, 3]; float16, bfloat16, float32 or float64, rounded once to float32.
        products: ``"bfloat16"`` multiplies in that, twice as fast, where the processor can; sums are of float32.

    Attributes:
        weight: float32 [N, C, 3, 3].
        packed: what the library takes; empty where there is none for these channels on this machine.

    Raises:
        ConfigError: the weight is none.

    >>> prepared = PreparedConv3x3(torch.ones(32, 16, 3, 3))
    >>> conv3x3(torch.ones(1, 16, 4, 4), prepared)[0, 0, 0].tolist()
    [64.0, 96.0, 96.0, 64.0]
    """

    __slots__ = ("packed", "weight")

    def __init__(self, weight: Tensor, products: Products = "float32") -> None:
        if weight.dim() != 4 or weight.shape[2:] != (3, 3) or weight.dtype not in FLOATS:
            raise ConfigError(f"expected a float weight [N, C, 3, 3], got {weight.dtype} {list(weight.shape)}")
        self.weight = weight.detach().float().contiguous()
        self.packed = torch.empty(0)
        if weight.device.type == "cpu":
            from vqtok.ops import native_convolution

            self.packed = native_convolution.packed(self.weight, products)


def conv3x3(
    x: Tensor,
    prepared: PreparedConv3x3,
    bias: Tensor | None = None,
    *,
    affine: Tensor | None = None,
    doubled: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Return the 3 x 3 convolution of f(x) with a border of one zero, plus bias and residual.

    f is the identity; with ``affine``, GroupNorm and SiLU; with ``doubled``, the nearest neighbour at twice the size.
    No map is written but the result. For inference: no gradient passes.

    Args:
        x: [B, C, h, w] of float16, bfloat16, float32 or float64; ``channels_last`` is read where it lies.
        prepared: the weights.
        bias: [N] or none.
        affine: float32 [B, 3, C] of `group_affine`, or none.
        doubled: repeat every value twice each way first.
        residual: what is added to the result, of its shape and dtype.

    Returns:
        [B, N, h, w], or twice as high and wide, of x's dtype, in ``channels_last``. What an image gives depends on
        neither its neighbours nor the number of threads.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit.

    Source:
        Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, section 4.1: F(2 x 2, 3 x 3).

    >>> x = torch.arange(32.0).reshape(1, 32, 1, 1)
    >>> middle = torch.zeros(32, 32, 3, 3)
    >>> middle[:, :, 1, 1] = torch.eye(32)
    >>> conv3x3(x, PreparedConv3x3(middle), residual=x).flatten()[:4].tolist()
    [0.0, 2.0, 4.0, 6.0]
    """
    weight = prepared.weight
    if x.dim() != 4 or x.dtype not in FLOATS or x.shape[1] != weight.shape[1] or x.device != weight.device:
        raise ConfigError(
            f"expected values [B, {weight.shape[1]}, h, w] on {weight.device} for weights {list(weight.shape)}, got "
            f"{x.dtype} {list(x.shape)} on {x.device}"
        )
    shape = (len(x), len(weight), x.shape[2] << doubled, x.shape[3] << doubled)
    if residual is not None and (residual.shape != shape or residual.dtype != x.dtype):
        raise ConfigError(f"expected a residual {x.dtype} {list(shape)}, got {residual.dtype} {list(residual.shape)}")
    if affine is not None and (doubled or affine.shape != (len(x), 3, x.shape[1]) or affine.dtype != torch.float32):
        raise ConfigError(
            f"expected affine float32 [{len(x)}, 3, {x.shape[1]}] and not doubled, got {affine.dtype} "
            f"{list(affine.shape)}, doubled {doubled}"
        )
    return torch.ops.vqtok.conv3x3.default(x, weight, prepared.packed, bias, affine, residual, doubled)


def convolves_natively() -> bool:
    """Return whether the C++ library has `conv3x3` for this processor, which is what makes it fast on a CPU.

    >>> convolves_natively() == (PreparedConv3x3(torch.zeros(32, 16, 3, 3)).packed.numel() > 0)
    True
    """
    from vqtok.ops import native_convolution

    return not native_convolution.reason_against()


def _compute(
    x: Tensor,
    weight: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    affine: Tensor | None,
    residual: Tensor | None,
    doubled: bool,
) -> Tensor:
    backends = CONV3X3 if packed.numel() else _UNPACKED
    return backends.choose(x)(x, weight, packed, bias, affine, residual, doubled)


def _fake(
    x: Tensor,
    weight: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    affine: Tensor | None,
    residual: Tensor | None,
    doubled: bool,
) -> Tensor:
    factor = 1 + doubled
    shape = (x.shape[0], weight.shape[0], x.shape[2] * factor, x.shape[3] * factor)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


register(
    "conv3x3(Tensor x, Tensor weight, Tensor packed, Tensor? bias, Tensor? affine, Tensor? residual, bool doubled)"
    " -> Tensor",
    _compute,
    _fake,
)
