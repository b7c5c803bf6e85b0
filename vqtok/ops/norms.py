"""Norms of a codebook's rows: half their squares, where scores of ``"l2"`` start, and rows of unit length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.ops.checks import FLOATS
from vqtok.ops.registration import register
from vqtok.ops.table import HALF_SQUARED_NORMS, NORMALIZE_CODEBOOK


def half_squared_norms(codebook: Tensor) -> Tensor:
    """Return half of each row's squared norm: summed in float64 over d = 0..D-1, rounded once.

    Args:
        codebook: [K, D]; float16, bfloat16, float32 or float64, rounded once to float32.

    Returns:
        float32 [K]; infinity where float32 ends. No gradient passes.

    Raises:
        ConfigError: the codebook is none.

    >>> half_squared_norms(torch.tensor([[3.0, 4.0]]))
    tensor([12.5000])
    """
    _check(codebook)
    return torch.ops.vqtok.half_squared_norms.default(codebook.detach())


def normalize_codebook(codebook: Tensor) -> Tensor:
    """Return the codebook's rows divided by their length: in float64, rounded once. Rows of zeros stay zero.

    Args:
        codebook: [K, D]; float16, bfloat16, float32 or float64, rounded once to float32.

    Returns:
        float32 [K, D]. Gradients pass; a row of zeros has that of its copy.

    Raises:
        ConfigError: the codebook is none.

    >>> normalize_codebook(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    _check(codebook)
    return _Normalize.apply(codebook)


class _Normalize(torch.autograd.Function):
    """Where normalize_codebook meets autograd."""

    @staticmethod
    def forward(codebook: Tensor) -> Tensor:
        return torch.ops.vqtok.normalize_codebook.default(codebook)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Take what is along a row off its gradient, and divide by its length."""
        (codebook,) = ctx.saved_tensors
        rows, gradient = codebook.double(), gradients[0].double()
        length = rows.norm(dim=1, keepdim=True)
        length = torch.where(length > 0, length, 1.0)
        unit = rows / length
        along = (unit * gradient).sum(dim=1, keepdim=True)
        return ((gradient - unit * along) / length).to(codebook.dtype)


def _check(codebook: Tensor) -> None:
    if codebook.dim() != 2 or codebook.dtype not in FLOATS:
        raise ConfigError(f"expected a float codebook [K, D], got {codebook.dtype} {list(codebook.shape)}")


def _compute_half(codebook: Tensor) -> Tensor:
    codebook = codebook.float()
    return HALF_SQUARED_NORMS.choose(codebook)(codebook)


def _compute_unit(codebook: Tensor) -> Tensor:
    codebook = codebook.float()
    return NORMALIZE_CODEBOOK.choose(codebook)(codebook)


def _fake_half(codebook: Tensor) -> Tensor:
    return codebook.new_empty(codebook.shape[:1], dtype=torch.float32)


def _fake_unit(codebook: Tensor) -> Tensor:
    return codebook.new_empty(codebook.shape, dtype=torch.float32)


register("half_squared_norms(Tensor codebook) -> Tensor", _compute_half, _fake_half)
register("normalize_codebook(Tensor codebook) -> Tensor", _compute_unit, _fake_unit)
