"""Norms: half the squares of a codebook's, where scores of ``"l2"`` start; codebooks and latents of unit length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.ops.checks import FLOATS
from vqtok.ops.reference import common_dtype
from vqtok.ops.registration import register
from vqtok.ops.table import HALF_SQUARED_NORMS, NORMALIZE_CODEBOOK, NORMALIZE_LATENTS, NORMALIZE_LATENTS_BACKWARD


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


def normalize_latents(latents: Tensor) -> Tensor:
    """Return latents divided by their length, or by 1e-12 where they are shorter.

    For losses and averages: no code comes from these, since a rounded latent may have another one.

    Args:
        latents: [..., D]; float16, bfloat16, float32 or float64.

    Returns:
        [..., D], float64 for float64 and else float32 (half precision has neither the norms nor the smallest divisor).
        Gradients pass.

    Raises:
        ConfigError: the latents are none.

    >>> normalize_latents(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    if latents.dim() == 0 or latents.dtype not in FLOATS:
        raise ConfigError(f"expected float latents [..., D], got {latents.dtype} {list(latents.shape)}")
    return _NormalizeLatents.apply(latents)


class _NormalizeLatents(torch.autograd.Function):
    """Where normalize_latents meets autograd; what is kept for the backward pass is the latents."""

    @staticmethod
    def forward(latents: Tensor) -> Tensor:
        return torch.ops.vqtok.normalize_latents.default(latents)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.ops.vqtok.normalize_latents_backward.default(gradients[0], ctx.saved_tensors[0])


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


def _compute_latents(latents: Tensor) -> Tensor:
    return NORMALIZE_LATENTS.choose(latents)(latents)


def _compute_latents_backward(gradient: Tensor, latents: Tensor) -> Tensor:
    return NORMALIZE_LATENTS_BACKWARD.choose(latents)(gradient, latents)


def _fake_latents(latents: Tensor) -> Tensor:
    return latents.new_empty(latents.shape, dtype=common_dtype(latents, latents))


def _fake_latents_backward(gradient: Tensor, latents: Tensor) -> Tensor:
    return latents.new_empty(latents.shape)


register("half_squared_norms(Tensor codebook) -> Tensor", _compute_half, _fake_half)
register("normalize_codebook(Tensor codebook) -> Tensor", _compute_unit, _fake_unit)
register("normalize_latents(Tensor latents) -> Tensor", _compute_latents, _fake_latents)
register(
    "normalize_latents_backward(Tensor gradient, Tensor latents) -> Tensor",
    _compute_latents_backward,
    _fake_latents_backward,
)
