"""straight_through: code vectors forward, the identity backward, and the two squared-error terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqtok.ops.checks import check_codes, check_range, check_spaces
from vqtok.ops.reference import difference
from vqtok.ops.registration import register
from vqtok.ops.table import STRAIGHT_THROUGH
from vqtok.types import Quantized


def straight_through(latents: Tensor, codebook: Tensor, codes: Tensor) -> Quantized:
    """Replace latents by their code vectors and let gradients pass straight through to the latents.

    With z the latents, q their code vectors and N D the number of elements, both losses are ``mean((z - q)^2)``;
    ``commitment`` moves only the latents (2 / (N D) (z - q)), ``codebook`` only the codebook (the sum of
    2 / (N D) (q - z) over the rows of a code, in `code_statistics`'s order).

    What is kept for the backward pass is the three inputs, not the vectors. So the codebook must not change in place
    before it: an EMA update that comes first hands a clone to this function.

    Args:
        latents: [..., D]; float16, bfloat16, float32 or float64.
        codebook: [K, D]; need not require a gradient.
        codes: int64 [...], each in 0..K-1.

    Returns:
        `Quantized`: vectors [..., D] are rows of the codebook, bit for bit and in its dtype; losses ``codebook`` and
        ``commitment`` are unweighted scalars of at least float32, 0 for no latents.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit, or a code is out of range (only checked on the CPU).

    Source:
        van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning", 2017, equation 3.

    >>> latents = torch.tensor([[0.5, 0.5]], requires_grad=True)
    >>> out = straight_through(latents, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([1]))
    >>> out.vectors.sum().backward()
    >>> out.vectors.tolist(), out.losses["commitment"].item(), latents.grad.tolist()
    ([[1.0, 1.0]], 0.25, [[1.0, 1.0]])
    """
    check_spaces(latents, codebook)
    check_codes(latents, codes)
    vectors, codebook_loss, commitment_loss = _StraightThrough.apply(latents, codebook, codes)
    return Quantized(vectors, codes, {"codebook": codebook_loss, "commitment": commitment_loss})


class _StraightThrough(torch.autograd.Function):
    """The one place where the op meets autograd."""

    @staticmethod
    def forward(latents: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors, loss = torch.ops.vqtok.straight_through.default(latents, codebook, codes)
        return vectors, loss, loss.clone()  # one value, two gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        latents, codebook, codes = ctx.saved_tensors
        of_vectors, of_codebook_loss, of_commitment_loss = gradients
        error = difference(codebook[codes], latents)
        scale = 2 / max(latents.numel(), 1)
        of_latents = of_codebook = None
        if ctx.needs_input_grad[0]:
            of_latents = (of_vectors - scale * of_commitment_loss * error).to(latents.dtype)
        if ctx.needs_input_grad[1]:
            sums = torch.ops.vqtok.code_statistics.default(error, codes, codebook.shape[0])[1]
            of_codebook = (scale * of_codebook_loss * sums).to(codebook.dtype)
        return of_latents, of_codebook, None


def _compute(latents: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    check_range(codes, codebook.shape[0])
    return STRAIGHT_THROUGH.choose(latents)(latents, codebook, codes)


def _fake(latents: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    vectors = codebook.new_empty(latents.shape)
    return vectors, difference(vectors, latents).new_empty(())


register("straight_through(Tensor latents, Tensor codebook, Tensor codes) -> (Tensor, Tensor)", _compute, _fake)
