"""group_norm and group_norm_silu: GroupNorm whose statistics survive flat images, in any memory format."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vqtok.errors import ConfigError
from vqtok.ops.checks import FLOATS
from vqtok.ops.layout import is_channels_last
from vqtok.ops.registration import register
from vqtok.ops.table import GROUP_AFFINE, GROUP_NORM, GROUP_NORM_SILU


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """Return ``(x - mean) / sqrt(variance + eps) * weight + bias``, the statistics those of an image's group.

    Without gradients this is an op of its own: deviations are taken from a mean that was found first, so an image whose
    values are nearly equal loses nothing, and what an image gives depends on neither its neighbours nor the number of
    threads. torch's own kernel for ``channels_last`` on the CPU subtracts squares that are nearly equal. Where
    gradients are wanted, or a GPU computes, it is torch's for contiguous memory: the same but for rounding.

    Args:
        x: [B, C, ...] of float16, bfloat16, float32 or float64; [B, C, h, w] may lie in ``channels_last``.
        groups: G, a divisor of C; a group is C / G neighbouring channels.
        weight: [C], or none for ones.
        bias: [C], or none for zeros.
        eps: what is added to the variance, which is the biased one.

    Returns:
        [B, C, ...] of x's dtype, ``channels_last`` where x is and else contiguous. Statistics are of float32 at least.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit.

    Source:
        Wu and He, "Group Normalization", 2018, equations 1, 2 and 7.

    >>> group_norm(torch.tensor([[[1.0, 3.0], [7.0, 7.0]]]), groups=2, eps=0.0).tolist()[0][0]
    [-1.0, 1.0]
    """
    _check(x, groups, weight, bias)
    if _needs_torch(x, weight, bias):
        return _by_torch(x, groups, weight, bias, eps)
    return torch.ops.vqtok.group_norm.default(x, weight, bias, groups, eps)


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """Return y / (1 + e^-y) of what `group_norm` gives, in one pass over x after that of its statistics.

    Args:
        x: [B, C, ...], as in `group_norm`.
        groups: G, a divisor of C.
        weight: [C], or none for ones.
        bias: [C], or none for zeros.
        eps: what is added to the variance.

    Returns:
        [B, C, ...] of x's dtype, rounded once, ``channels_last`` where x is and else contiguous.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit.

    Source:
        Wu and He, "Group Normalization", 2018; Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, section 2.1:
        SiLU.

    >>> [round(y, 4) for y in group_norm_silu(torch.tensor([[[-1.0, 1.0]]]), groups=1, eps=0.0).flatten().tolist()]
    [-0.2689, 0.7311]
    """
    _check(x, groups, weight, bias)
    if _needs_torch(x, weight, bias):
        return F.silu(_by_torch(x, groups, weight, bias, eps))
    return torch.ops.vqtok.group_norm_silu.default(x, weight, bias, groups, eps)


def group_affine(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """Return what `group_norm` does to each channel of each image, for `conv3x3`; no gradient passes.

    Args:
        x: [B, C, ...], as in `group_norm`.
        groups: G, a divisor of C.
        weight: [C], or none for ones.
        bias: [C], or none for zeros.
        eps: what is added to the variance.

    Returns:
        float32 [B, 3, C]: centre, scale and shift of ``(x - centre) * scale + shift``. The centre is the mean in
        float32; the shift makes good what it lacks.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit.

    >>> group_affine(torch.tensor([[[1.0, 3.0]]]), groups=1, eps=0.0).flatten().tolist()
    [2.0, 1.0, 0.0]
    """
    _check(x, groups, weight, bias)
    return torch.ops.vqtok.group_affine.default(x.detach(), weight, bias, groups, eps)


def _check(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> None:
    if x.dim() < 2 or x.dtype not in FLOATS:
        raise ConfigError(f"expected float values [B, C, ...], got {x.dtype} {list(x.shape)}")
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ConfigError(f"expected groups that divide {channels} channels, got {groups}")
    for name, values in (("weight", weight), ("bias", bias)):
        if values is not None and (values.shape != (channels,) or values.device != x.device):
            raise ConfigError(
                f"expected {name} [{channels}] on {x.device} for values {list(x.shape)}, got {list(values.shape)} on "
                f"{values.device}"
            )


def _needs_torch(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    return learns or x.device.type not in ("cpu", "meta")


def _by_torch(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    normal = F.group_norm(x.contiguous(), groups, weight, bias, eps).to(x.dtype)
    return normal.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else normal


def _compute_group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    return GROUP_NORM.choose(x)(x, weight, bias, groups, eps)


def _compute_group_norm_silu(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    return GROUP_NORM_SILU.choose(x)(x, weight, bias, groups, eps)


def _fake(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    memory = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty_like(x, memory_format=memory)


def _compute_group_affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    return GROUP_AFFINE.choose(x)(x, weight, bias, groups, eps)


def _fake_group_affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float) -> Tensor:
    return x.new_empty((x.shape[0], 3, x.shape[1]), dtype=torch.float32)


_SCHEMA = "(Tensor x, Tensor? weight, Tensor? bias, int groups, float eps) -> Tensor"
register(f"group_norm{_SCHEMA}", _compute_group_norm, _fake)
register(f"group_norm_silu{_SCHEMA}", _compute_group_norm_silu, _fake)
register(f"group_affine{_SCHEMA}", _compute_group_affine, _fake_group_affine)
