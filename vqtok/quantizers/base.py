"""What every quantizer is: vectors in, codes and codebook vectors out. The last axis is the space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, TypeAlias, get_args

from torch import Tensor, nn

from vqtok import ops
from vqtok.errors import ConfigError
from vqtok.types import Quantized

Metric: TypeAlias = Literal["l2", "cosine"]
Gradient: TypeAlias = Literal["straight-through", "rotation"]


class Quantizer(nn.Module, ABC):
    """Abstract quantizer over vectors [..., dim].

    In eval mode ``forward(x).vectors == decode(encode(x))`` bit for bit, nothing changes and nothing is random.

    Attributes:
        dim: length of a vector, as ``decode`` gives it.
        latent_dim: length of a latent, as ``encode`` takes it; that of a vector but for quantizers of logits.
        codebooks: Q, codes a vector; codes are [...] when it is 1, [..., Q] otherwise.
        vocab_size: number of codes; ``encode`` gives 0..vocab_size-1.
        training_state: names of the buffers that only training reads; model folders leave them out.
        learns_from_vectors: whether a codebook learns through the gradient of the vectors, not by losses or averages.

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
    learns_from_vectors: bool = False

    @abstractmethod
    def encode(self, latents: Tensor) -> Tensor:
        """Return the codes int64 [...] of latents [..., dim]."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors [..., dim] of codes int64 [...]."""

    @abstractmethod
    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., dim] with gradients and losses; in training mode a codebook may learn from them."""


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


def check_metric(metric: Metric) -> Metric:
    """Refuse a metric that quantizers do not have."""
    if metric not in get_args(Metric):
        raise ConfigError(f"expected metric to be one of {', '.join(get_args(Metric))}, got {metric!r}")
    return metric


def check_gradient(gradient: Gradient) -> Gradient:
    """Refuse a way for gradients that quantizers do not have."""
    if gradient not in get_args(Gradient):
        raise ConfigError(f"expected gradient to be one of {', '.join(get_args(Gradient))}, got {gradient!r}")
    return gradient


def pass_rows(gradient: Gradient, latents: Tensor, codebook: Tensor, codes: Tensor) -> Quantized:
    """Replace latents by codebook rows, with the gradient asked for and the losses ``codebook`` and ``commitment``."""
    return (ops.rotate if gradient == "rotation" else ops.straight_through)(latents, codebook, codes)


def check_space(dim: int, vocab_size: int) -> None:
    """Refuse sizes that no codebook can have."""
    for name, value in (("dim", dim), ("vocab_size", vocab_size)):
        if value < 1:
            raise ConfigError(f"expected {name} >= 1, got {value}")
