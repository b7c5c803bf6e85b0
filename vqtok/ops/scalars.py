"""finite_scalar: every dimension of a latent rounded by itself to one of a few levels, without a codebook."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.ops.checks import FLOATS, check_range
from vqtok.ops.reference import finite_scalar_vectors as _vectors
from vqtok.ops.registration import register
from vqtok.ops.table import FINITE_SCALAR, FINITE_SCALAR_BACKWARD
from vqtok.types import Quantized

_LARGEST = 1 << 62


def finite_scalar(latents: Tensor, levels: Sequence[int]) -> Quantized:
    """Bound latents, round every dimension to its levels, and let gradients pass through the rounding.

    A dimension of L levels is bounded to ``half tanh(z + shift) - offset``, where ``half = 1.001 (L - 1) / 2``,
    ``offset`` is 1/2 for even L and 0 for odd L, and ``shift`` keeps 0 at 0. It is rounded to the nearest of
    ``-(L // 2) .. (L - 1) // 2`` and divided by ``L // 2``. The code's first digit, to base ``levels[0]``, is the
    fastest.

    Codes do not come from a computed tanh, whose last bits differ between devices: a latent, rounded once to float32,
    is compared with the points where real arithmetic would go on to the next level. The gradient is that of the bound,
    so it has the accuracy of torch's tanh in float32.

    Args:
        latents: [..., D]; float16, bfloat16, float32 or float64.
        levels: D numbers of levels, at least 3 each; their product is the vocabulary's size. (Of two levels one would
            lie where the bound has no slope left.)

    Returns:
        `Quantized`: vectors float32 [..., D] in [-1, 1], equal to ``finite_scalar_vectors(codes, levels)`` bit for bit;
        codes int64 [...] in 0..prod(levels)-1; no losses.

    Raises:
        ConfigError: latents or levels do not fit.
        NonFiniteLatents: a latent holds NaN or infinity (only checked on the CPU).
        BackendUnavailable: the backend asked for cannot run.

    Source:
        Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", 2023, section 3.1 and appendix A.1.

    >>> out = finite_scalar(torch.tensor([[0.0, -9.0], [9.0, 9.0]]), levels=(5, 4))
    >>> out.vectors.tolist(), out.codes.tolist()
    ([[0.0, -1.0], [1.0, 0.5]], [2, 19])
    """
    levels = _checked(levels)
    if latents.dim() == 0 or latents.shape[-1] != len(levels) or latents.dtype not in FLOATS:
        raise ConfigError(
            f"expected float latents [..., {len(levels)}] for {len(levels)} numbers of levels, got {latents.dtype} "
            f"{list(latents.shape)}"
        )
    vectors, codes = _FiniteScalar.apply(latents, levels)
    return Quantized(vectors, codes, {})


def finite_scalar_vectors(codes: Tensor, levels: Sequence[int]) -> Tensor:
    """Return the vectors of finite scalar codes: the exact inverse of `finite_scalar`.

    Args:
        codes: int64 [...], each in 0..prod(levels)-1.
        levels: D numbers of levels, at least 3 each.

    Returns:
        float32 [..., D] in [-1, 1].

    Raises:
        ConfigError: codes or levels do not fit; the range of codes is only checked on the CPU.

    Source:
        Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", 2023, appendix A.1.

    >>> finite_scalar_vectors(torch.tensor([2, 19]), levels=(5, 4)).tolist()
    [[0.0, -1.0], [1.0, 0.5]]
    """
    levels = _checked(levels)
    if codes.dtype != torch.int64:
        raise ConfigError(f"expected codes of int64, got {codes.dtype}")
    if not torch.compiler.is_compiling():
        check_range(codes, prod(levels))
    return _vectors(codes, levels)


class _FiniteScalar(torch.autograd.Function):
    """Where the op meets autograd."""

    @staticmethod
    def forward(latents: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
        codes, vectors = torch.ops.vqtok.finite_scalar.default(latents, levels)
        return vectors, codes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, list[int]], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.levels = inputs[1]
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (latents,) = ctx.saved_tensors
        return torch.ops.vqtok.finite_scalar_backward.default(gradients[0], latents, ctx.levels), None


def _checked(levels: Sequence[int]) -> list[int]:
    numbers = list(levels)
    if not numbers or any(type(count) is not int or count < 3 for count in numbers):
        raise ConfigError(f"expected levels as whole numbers of at least 3, one a dimension, got {numbers}")
    if prod(numbers) > _LARGEST:
        raise ConfigError(f"expected levels whose product fits in int64, got {prod(numbers)}")
    return numbers


def _compute(latents: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
    return FINITE_SCALAR.choose(latents)(latents, levels)


def _fake(latents: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
    codes = latents.new_empty(latents.shape[:-1], dtype=torch.int64)
    return codes, latents.new_empty(latents.shape, dtype=torch.float32)


def _compute_backward(gradient: Tensor, latents: Tensor, levels: list[int]) -> Tensor:
    return FINITE_SCALAR_BACKWARD.choose(latents)(gradient, latents, levels)


def _fake_backward(gradient: Tensor, latents: Tensor, levels: list[int]) -> Tensor:
    return latents.new_empty(latents.shape)


register("finite_scalar(Tensor latents, int[] levels) -> (Tensor, Tensor)", _compute, _fake)
register(
    "finite_scalar_backward(Tensor gradient, Tensor latents, int[] levels) -> Tensor", _compute_backward, _fake_backward
)
