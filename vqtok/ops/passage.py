"""straight_through and rotate: code vectors forward, a gradient for the latents backward, and the two error terms.

Both give the same values; they differ in what the latents learn from the gradient of the vectors. pass_through is the
passage alone, for values that are no rows of a codebook.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.ops.checks import check_codes, check_range, check_spaces
from vqtok.ops.reference import common_dtype
from vqtok.ops.registration import register
from vqtok.ops.table import CODEBOOK_BACKWARD, ROTATE, ROTATE_BACKWARD, STRAIGHT_THROUGH, STRAIGHT_THROUGH_BACKWARD
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
        BackendUnavailable: the backend asked for cannot run.

    Source:
        van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning", 2017, equation 3.

    >>> latents = torch.tensor([[0.5, 0.5]], requires_grad=True)
    >>> out = straight_through(latents, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([1]))
    >>> out.vectors.sum().backward()
    >>> out.vectors.tolist(), out.losses["commitment"].item(), latents.grad.tolist()
    ([[1.0, 1.0]], 0.25, [[1.0, 1.0]])
    """
    return _passed(_StraightThrough, latents, codebook, codes)


def rotate(latents: Tensor, codebook: Tensor, codes: Tensor) -> Quantized:
    """Replace latents by their code vectors and turn gradients by the rotation that takes each latent to its vector.

    Values, losses and what is kept are those of `straight_through`. Of a latent z and its vector q, with
    ``u = z / |z|``, ``v = q / |q|``, ``w = (u + v) / |u + v|`` and the scale ``|q| / |z|``, the rotation in their plane
    with that scale takes z to q. It is held constant, so a gradient g of the vectors reaches the latents as
    ``|q| / |z| (g - 2 w (w.g) + 2 u (v.g))``: angles between gradient and vector are kept.

    Where no such rotation is defined, the gradient passes straight through: q is zero, z is shorter than 1e-6 of q
    (zero, or the scale would throw the encoder out of its range), or the two point in opposite directions
    (``|u + v| <= 1e-6``).

    Args:
        latents: [..., D]; float16, bfloat16, float32 or float64.
        codebook: [K, D]; need not require a gradient.
        codes: int64 [...], each in 0..K-1.

    Returns:
        `Quantized`, as of `straight_through`.

    Raises:
        ConfigError: shapes, dtypes or devices do not fit, or a code is out of range (only checked on the CPU).
        BackendUnavailable: the backend asked for cannot run.

    Source:
        Fifty et al., "Restructuring Vector Quantization with the Rotation Trick", 2024, section 4.2.

    >>> latents = torch.tensor([[2.0, 0.0]], requires_grad=True)
    >>> out = rotate(latents, torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    >>> out.vectors.backward(torch.tensor([[0.0, 4.0]]))
    >>> out.vectors.tolist(), [round(x, 6) for x in latents.grad[0].tolist()]
    ([[0.0, 1.0]], [2.0, 0.0])
    """
    return _passed(_Rotate, latents, codebook, codes)


def pass_through(values: Tensor, carrier: Tensor) -> Tensor:
    """Return values, bit for bit, whose whole gradient goes to the carrier.

    Args:
        values: float [...]; no gradient reaches them.
        carrier: float [...], of the same shape, on the same device; of any floating dtype.

    Returns:
        [...], the values in their own dtype. The carrier's gradient is that of the result, rounded once to its dtype.

    Raises:
        ConfigError: shapes, devices or dtypes do not fit.

    Source:
        Bengio, Leonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation", 2013, section 4: the straight-through estimator.

    >>> latents = torch.tensor([0.2, -3.0], requires_grad=True)
    >>> signs = pass_through(latents.sign(), latents)
    >>> (signs * torch.tensor([5.0, 7.0])).sum().backward()
    >>> signs.tolist(), latents.grad.tolist()
    ([1.0, -1.0], [5.0, 7.0])
    """
    if values.shape != carrier.shape or values.device != carrier.device:
        raise ConfigError(
            f"expected values and carrier of one shape on one device, got {list(values.shape)} on {values.device} and "
            f"{list(carrier.shape)} on {carrier.device}"
        )
    if not (values.is_floating_point() and carrier.is_floating_point()):
        raise ConfigError(f"expected values and carrier of floats, got {values.dtype} and {carrier.dtype}")
    return _PassThrough.apply(values.detach(), carrier)


def _passed(function: type[torch.autograd.Function], latents: Tensor, codebook: Tensor, codes: Tensor) -> Quantized:
    check_spaces(latents, codebook)
    check_codes(latents, codes)
    vectors, codebook_loss, commitment_loss = function.apply(latents, codebook, codes)
    return Quantized(vectors, codes, {"codebook": codebook_loss, "commitment": commitment_loss})


class _StraightThrough(torch.autograd.Function):
    """Where straight_through meets autograd."""

    @staticmethod
    def forward(latents: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors, loss = torch.ops.vqtok.straight_through.default(latents, codebook, codes)
        return vectors, loss, loss.clone()  # one value, two gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return _gradients(torch.ops.vqtok.straight_through_backward.default, ctx, gradients)


class _Rotate(torch.autograd.Function):
    """Where rotate meets autograd."""

    @staticmethod
    def forward(latents: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors, loss = torch.ops.vqtok.rotate.default(latents, codebook, codes)
        return vectors, loss, loss.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return _gradients(torch.ops.vqtok.rotate_backward.default, ctx, gradients)


class _PassThrough(torch.autograd.Function):
    """Where pass_through meets autograd; of the carrier only the dtype is kept."""

    @staticmethod
    def forward(values: Tensor, carrier: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0].to(ctx.dtype)


def _gradients(of_latents: Any, ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None, None]:
    """Return the gradients of latents and codebook, each in one pass and only where it is asked for."""
    latents, codebook, codes = ctx.saved_tensors
    of_vectors, of_codebook_loss, of_commitment_loss = gradients
    scale = 2 / max(latents.numel(), 1)
    to_latents = to_codebook = None
    if ctx.needs_input_grad[0]:
        to_latents = of_latents(of_vectors, latents, codebook, codes, scale * of_commitment_loss)
    if ctx.needs_input_grad[1]:
        weight = scale * of_codebook_loss
        to_codebook = torch.ops.vqtok.codebook_backward.default(latents, codebook, codes, weight)
    return to_latents, to_codebook, None


def _compute_straight_through(latents: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    check_range(codes, codebook.shape[0])
    return STRAIGHT_THROUGH.choose(latents, codebook)(latents, codebook, codes)


def _compute_rotate(latents: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    check_range(codes, codebook.shape[0])
    return ROTATE.choose(latents, codebook)(latents, codebook, codes)


def _fake_passage(latents: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    return codebook.new_empty(latents.shape), latents.new_empty((), dtype=common_dtype(codebook, latents))


def _compute_straight_through_backward(
    gradient: Tensor, latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor
) -> Tensor:
    check_range(codes, codebook.shape[0])
    return STRAIGHT_THROUGH_BACKWARD.choose(latents, codebook)(gradient, latents, codebook, codes, weight)


def _compute_rotate_backward(
    gradient: Tensor, latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor
) -> Tensor:
    check_range(codes, codebook.shape[0])
    return ROTATE_BACKWARD.choose(latents, codebook)(gradient, latents, codebook, codes, weight)


def _fake_backward(gradient: Tensor, latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    return latents.new_empty(latents.shape)


def _compute_codebook_backward(latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    check_range(codes, codebook.shape[0])
    return CODEBOOK_BACKWARD.choose(latents, codebook)(latents, codebook, codes, weight)


def _fake_codebook_backward(latents: Tensor, codebook: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    return codebook.new_empty(codebook.shape)


_PASSAGE = "(Tensor latents, Tensor codebook, Tensor codes) -> (Tensor, Tensor)"
_BACKWARD = "(Tensor gradient, Tensor latents, Tensor codebook, Tensor codes, Tensor weight) -> Tensor"
_TO_CODEBOOK = "(Tensor latents, Tensor codebook, Tensor codes, Tensor weight) -> Tensor"

register(f"straight_through{_PASSAGE}", _compute_straight_through, _fake_passage)
register(f"rotate{_PASSAGE}", _compute_rotate, _fake_passage)
register(f"straight_through_backward{_BACKWARD}", _compute_straight_through_backward, _fake_backward)
register(f"rotate_backward{_BACKWARD}", _compute_rotate_backward, _fake_backward)
register(f"codebook_backward{_TO_CODEBOOK}", _compute_codebook_backward, _fake_codebook_backward)
