"""What every quantizer is: vectors in, codes and codebook vectors out. The last axis is the space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from vqtok import ops
from vqtok.errors import ConfigError
from vqtok.ops.checks import FLOATS, check_range, finite_blocks
from vqtok.types import Quantized

Metric: TypeAlias = Literal["l2", "cosine"]
Gradient: TypeAlias = Literal["straight-through", "rotation"]

_ROWS_CHECKED = 1 << 16


class Quantizer(nn.Module, ABC):
    """Abstract quantizer over vectors [..., dim].

    In eval mode ``forward(x).vectors == decode(encode(x))`` bit for bit, nothing changes and nothing is random. In
    training mode the vectors are what ``decode`` gave of the codes before the codebook learned from them.

    Attributes:
        dim: length of a vector, as ``decode`` gives it.
        latent_dim: length of a latent, as ``encode`` takes it; that of a vector but for quantizers of logits.
        codebooks: Q, codes a vector; codes are [...] when it is 1, [..., Q] otherwise.
        vocab_size: number of codes; ``encode`` gives 0..vocab_size-1.
        training_state: names of the buffers that only training reads; model folders leave them out.

    >>> import torch
    >>> from vqtok import VectorQuantizer
    >>> quantizer: Quantizer = VectorQuantizer(dim=2, vocab_size=4).eval()
    >>> quantizer.encode(quantizer.decode(torch.tensor([3, 1]))).tolist()
    [3, 1]
    """

    dim: int
    latent_dim: int
    vocab_size: int
    codebooks: int = 1
    training_state: tuple[str, ...] = ()

    @abstractmethod
    def encode(self, latents: Tensor) -> Tensor:
        """Return the codes int64 [...] or [..., Q] of latents [..., latent_dim]."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors [..., dim] of codes int64 [...] or [..., Q]."""

    @abstractmethod
    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., latent_dim] with gradients and losses; in training a codebook may learn from them.

        Losses are unweighted scalars by name, each there or not whatever the mode: ``codebook`` and ``commitment``
        (mean squared differences), ``index`` (the same, learnt through the choice of the code), ``entropy`` (mean
        entropy of each latent's distribution over codes), ``diversity`` (minus the entropy of the mean distribution),
        ``orthogonality`` and ``kl``. All are to be made small.
        """


def effective_codebook(codebook: Tensor, metric: Metric) -> Tensor:
    """Return the rows [K, D] that are compared and handed out: unit vectors when the metric is cosine."""
    return ops.normalize_codebook(codebook) if metric == "cosine" else codebook


def effective_latents(latents: Tensor, metric: Metric) -> Tensor:
    """Return the latents [..., D] that losses compare with codebook rows: unit vectors when the metric is cosine.

    Those are of at least float32, since half precision would have neither the norms nor the smallest divisor. They are
    for losses and averages alone: codes come from the latents as they are.
    """
    return ops.normalize_latents(latents) if metric == "cosine" else latents


def nearest_row(latents: Tensor, effective: Tensor, metric: Metric) -> Tensor:
    """Return the codes int64 [...] of latents [..., D] among the rows that `effective_codebook` gave.

    The cosine of a latent and a unit vector is greatest where their product is, so rows are not normalised once more.
    """
    return ops.nearest_code(latents, effective, metric="dot" if metric == "cosine" else metric)


def passage(gradient: Gradient) -> Callable[[Tensor, Tensor, Tensor], Quantized]:
    """Return the op that replaces latents by their rows and passes gradients on in this way."""
    return ops.rotate if gradient == "rotation" else ops.straight_through


def squared_error(latents: Tensor, vectors: Tensor) -> Tensor:
    """Return the mean squared difference as a scalar of at least float32; 0 for no latents."""
    dtype = torch.promote_types(latents.dtype, torch.float32)
    return (vectors.to(dtype) - latents.to(dtype)).square().sum() / max(latents.numel(), 1)


def full_precision(tensor: Tensor) -> torch.autocast:
    """Return a context without autocast on the tensor's device: what decides codes is computed in its own dtype."""
    return torch.autocast(tensor.device.type, enabled=False)


def check_metric(metric: Metric) -> Metric:
    """Refuse a metric that quantizers do not have."""
    if metric not in get_args(Metric):
        raise ConfigError(f"expected metric to be one of {', '.join(get_args(Metric))}, got {metric!r}")
    return metric


def check_gradient(gradient: Gradient) -> Gradient:
    """Refuse a way of passing gradients that quantizers do not have."""
    if gradient not in get_args(Gradient):
        raise ConfigError(f"expected gradient to be one of {', '.join(get_args(Gradient))}, got {gradient!r}")
    return gradient


def check_space(dim: int, vocab_size: int) -> None:
    """Refuse sizes that no codebook can have."""
    for name, value in (("dim", dim), ("vocab_size", vocab_size)):
        if value < 1:
            raise ConfigError(f"expected {name} >= 1, got {value}")


def check_positive(name: str, value: float) -> float:
    """Refuse what must be greater than 0 and finite."""
    if not 0 < value < float("inf"):
        raise ConfigError(f"expected {name} > 0, got {value}")
    return value


def check_latents(latents: Tensor, dim: int) -> None:
    """Refuse latents that are not floats [..., dim]; in eager calls on the CPU also those that are not finite."""
    if latents.dim() == 0 or latents.shape[-1] != dim or latents.dtype not in FLOATS:
        raise ConfigError(f"expected float latents [..., {dim}], got {latents.dtype} {list(latents.shape)}")
    if latents.device.type == "cpu" and not torch.compiler.is_compiling():
        for _ in finite_blocks(latents.detach(), _ROWS_CHECKED):
            pass


def check_codes(codes: Tensor, vocab_size: int) -> None:
    """Refuse codes that are not int64; in eager calls on the CPU also those outside 0..vocab_size-1."""
    if codes.dtype != torch.int64:
        raise ConfigError(f"expected codes of int64, got {codes.dtype}")
    if not torch.compiler.is_compiling():
        check_range(codes, vocab_size)
