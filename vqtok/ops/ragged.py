"""compact and pad: rows of which some values are kept, as one run after the other, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.ops.registration import register
from vqtok.ops.table import COMPACT, PAD, SPREAD


def compact(values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kept values of all rows, one row after the other, and how many each row has.

    Args:
        values: [B, N, ...], any dtype and strides.
        keep: bool [B, N].

    Returns:
        [T, ...] in order, T as many as were kept, and their numbers int64 [B], which sum to T. Gradients reach the kept
        values; those of the others are zero.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit.

    Source:
        Jin et al., "Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization", 2023,
        section 3.1: the tokens that the selector keeps.

    >>> keep = torch.tensor([[True, False, True], [False, False, False]])
    >>> values, lengths = compact(torch.tensor([[1, 2, 3], [4, 5, 6]]), keep)
    >>> values.tolist(), lengths.tolist()
    ([1, 3], [2, 0])
    """
    if keep.dtype != torch.bool or keep.dim() != 2 or values.shape[:2] != keep.shape or values.device != keep.device:
        raise ConfigError(
            f"expected values [B, N, ...] and keep bool [B, N] on one device, got values {list(values.shape)} on "
            f"{values.device} and keep {keep.dtype} {list(keep.shape)} on {keep.device}"
        )
    return _Compact.apply(values, keep)


def pad(values: Tensor, lengths: Tensor, fill: float = 0) -> tuple[Tensor, Tensor]:
    """Return runs of values as rows of equal length, filled up at their ends, and where the values are.

    ``compact(*pad(values, lengths))`` gives values and lengths back, and ``pad(*compact(values, keep))`` the kept
    values of each row, moved to its start.

    Args:
        values: [T, ...], any dtype.
        lengths: int64 [B], each at least 0; they sum to T.
        fill: what stands where there is no value.

    Returns:
        [B, max(lengths), ...] and bool [B, max(lengths)], true at values. Gradients reach all values.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit, or lengths do not sum to T (only checked on the CPU).

    >>> rows, mask = pad(torch.tensor([1, 2, 3]), torch.tensor([1, 0, 2]), fill=-1)
    >>> rows.tolist(), mask.tolist()
    ([[1, -1], [-1, -1], [2, 3]], [[True, False], [False, False], [True, True]])
    """
    if values.dim() == 0 or lengths.dtype != torch.int64 or lengths.dim() != 1 or values.device != lengths.device:
        raise ConfigError(
            f"expected values [T, ...] and lengths int64 [B] on one device, got values {list(values.shape)} on "
            f"{values.device} and lengths {lengths.dtype} {list(lengths.shape)} on {lengths.device}"
        )
    return _Pad.apply(values, lengths, fill)


class _Compact(torch.autograd.Function):
    """Where compact meets autograd; what is kept for the backward pass is the mask."""

    @staticmethod
    def forward(values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.vqtok.compact.default(values, keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.ops.vqtok.spread.default(gradients[0], ctx.saved_tensors[0], 0), None


class _Pad(torch.autograd.Function):
    """Where pad meets autograd; what is kept for the backward pass is the mask."""

    @staticmethod
    def forward(values: Tensor, lengths: Tensor, fill: float) -> tuple[Tensor, Tensor]:
        return torch.ops.vqtok.pad.default(values, lengths, fill)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return torch.ops.vqtok.compact.default(gradients[0], ctx.saved_tensors[0])[0], None, None


def _compute_compact(values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    return COMPACT.choose(values)(values, keep)


def _fake_compact(values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size()
    return values.new_empty((kept, *values.shape[2:])), keep.new_empty(keep.shape[:1], dtype=torch.int64)


def _compute_pad(values: Tensor, lengths: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    if lengths.device.type == "cpu" and (bool((lengths < 0).any()) or int(lengths.sum()) != len(values)):
        raise ConfigError(
            f"expected lengths of at least 0 that sum to the {len(values)} values, got {_shown(lengths)}; "
            "were values and lengths made by one call of compact?"
        )
    return PAD.choose(values)(values, lengths, fill)


def _shown(lengths: Tensor) -> str:
    if len(lengths) <= 8:
        return str(lengths.tolist())
    return f"{len(lengths)} of them from {int(lengths.min())} to {int(lengths.max())} that sum to {int(lengths.sum())}"


def _fake_pad(values: Tensor, lengths: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    longest = torch.library.get_ctx().new_dynamic_size()
    shape = (lengths.shape[0], longest)
    return values.new_empty((*shape, *values.shape[1:])), lengths.new_empty(shape, dtype=torch.bool)


def _compute_spread(values: Tensor, mask: Tensor, fill: float) -> Tensor:
    if mask.device.type == "cpu" and (places := int(mask.sum())) != len(values):
        raise ConfigError(f"expected a mask with {len(values)} places, one a value, got {places}")
    return SPREAD.choose(values)(values, mask, fill)


def _fake_spread(values: Tensor, mask: Tensor, fill: float) -> Tensor:
    return values.new_empty((*mask.shape, *values.shape[1:]))


register("compact(Tensor values, Tensor keep) -> (Tensor, Tensor)", _compute_compact, _fake_compact)
register("pad(Tensor values, Tensor lengths, Scalar fill) -> (Tensor, Tensor)", _compute_pad, _fake_pad)
register("spread(Tensor values, Tensor mask, Scalar fill) -> Tensor", _compute_spread, _fake_spread)
