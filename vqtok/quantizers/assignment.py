"""Soft assignment of latents to codes, block by block: nothing here holds N x K, forward or backward.

A latent z is assigned to code k with probability ``softmax_k(l)``, where for a temperature T ``l_k = z.e_k / T``
(``"dot"``) or ``l_k = -|z - e_k|^2 / T`` (``"l2"``, of which ``|z|^2`` cancels). Blocks of probabilities are computed
anew in the backward pass. Each function is one torch op, so that torch.compile need not see the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from vqtok.ops import code_statistics
from vqtok.ops.registration import register
from vqtok.quantizers.base import full_precision

Affinity: TypeAlias = Literal["l2", "dot"]

_BLOCK = 1 << 22
"""Probabilities held at a time, with a handful of temporaries."""


@dataclass(frozen=True, slots=True, eq=False)
class Entropies:
    """Of the distributions of latents over codes, in nats.

    Attributes:
        sample: scalar, the mean of the latents' entropies.
        mean: scalar, the entropy of the mean distribution.
    """

    sample: Tensor
    mean: Tensor


def assignment_entropies(latents: Tensor, codebook: Tensor, affinity: Affinity, temperature: float) -> Entropies:
    """Return the entropies of latents [..., D] softly assigned to a codebook [K, D], with gradients for both.

    >>> entropies = assignment_entropies(torch.zeros(4, 2), torch.eye(2), "l2", temperature=1.0)
    >>> [round(x.item(), 4) for x in (entropies.sample, entropies.mean)]
    [0.6931, 0.6931]
    """
    return Entropies(*_Entropies.apply(latents.reshape(-1, latents.shape[-1]), codebook, affinity, temperature)[:2])


def through_index(latents: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:
    """Return the codebook's rows, bit for bit, with a gradient through the choice of the code.

    Forward it is a look-up of one-hot vectors, backward of the softmax of the products ``z.e_k`` in their place: with
    the gradient g of a vector, the selected row gets g as of a look-up, and the softmax's logits get ``g.e_k``, so that
    all rows and the latent learn which code would have been better.

    Args:
        latents: [..., D].
        codebook: [K, D].
        codes: int64 [...].

    Source:
        Shi et al., "Scalable Image Tokenization with Index Backpropagation Quantization", 2024.
    """
    return _ThroughIndex.apply(latents, codebook, codes)


class _Entropies(torch.autograd.Function):
    """Where the entropies meet autograd; of what is computed only the mean distribution is kept."""

    @staticmethod
    def forward(latents: Tensor, codebook: Tensor, affinity: str, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.vqtok.assignment_entropies.default(latents, codebook, affinity, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str, float], output: tuple[Tensor, ...]) -> None:
        latents, codebook, ctx.affinity, ctx.temperature = inputs
        ctx.save_for_backward(latents, codebook, output[2])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        latents, codebook, mean = ctx.saved_tensors
        of = torch.ops.vqtok.assignment_entropies_backward.default
        return *of(gradients[0], gradients[1], latents, codebook, mean, ctx.affinity, ctx.temperature), None, None


class _ThroughIndex(torch.autograd.Function):
    """Where through_index meets autograd; what is kept is the three inputs."""

    @staticmethod
    def forward(latents: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:
        return codebook[codes]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        latents, codebook, codes = ctx.saved_tensors
        rows, gradient = latents.reshape(-1, latents.shape[-1]), gradients[0].reshape(-1, codebook.shape[1])
        to_rows, to_codebook = torch.ops.vqtok.through_index_backward.default(gradient, rows, codebook)
        looked_up = code_statistics(gradient, codes.reshape(-1), codebook.shape[0])[1]
        return to_rows.reshape(latents.shape), to_codebook + looked_up.to(codebook.dtype), None


def _compute_entropies(
    latents: Tensor, codebook: Tensor, affinity: str, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    latents, codebook = _computed(latents, codebook)
    total, count = latents.new_zeros((), dtype=torch.float64), max(len(latents), 1)
    mean = latents.new_zeros(len(codebook), dtype=torch.float64)
    for _, logs in _blocks(latents, codebook, affinity, temperature):
        chances = logs.exp()
        total -= (chances * logs).sum()
        mean += chances.sum(dim=0)
    mean /= count
    entropy = -(mean * _log(mean)).sum()
    return (total / count).to(latents.dtype), entropy.to(latents.dtype), mean.to(latents.dtype)


def _compute_entropies_backward(
    of_sample: Tensor,
    of_mean: Tensor,
    latents: Tensor,
    codebook: Tensor,
    mean: Tensor,
    affinity: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    rows, codes = _computed(latents, codebook)
    gradients = _Gradients(rows, codes, affinity, temperature)
    of_code, count = -_log(mean), max(len(rows), 1)
    for n, logs in _blocks(rows, codes, affinity, temperature):
        chances = logs.exp()
        # Of an entropy -sum p log p, and of sum p a with a the mean's share: both slopes less their own expectation.
        slope = -of_sample * logs + of_mean * of_code
        slope -= (chances * slope).sum(dim=1, keepdim=True)
        gradients.add(n, chances * slope / count)
    return gradients.of(latents, codebook)


def _compute_through_index_backward(gradient: Tensor, latents: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    rows, codes = _computed(latents, codebook)
    gradients = _Gradients(rows, codes, "dot", 1.0)
    for n, logs in _blocks(rows, codes, "dot", 1.0):
        chances = logs.exp()
        with full_precision(rows):
            slope = gradient[n : n + len(logs)].to(codes.dtype) @ codes.mT
        slope -= (chances * slope).sum(dim=1, keepdim=True)
        gradients.add(n, chances * slope)
    return gradients.of(latents, codebook)


class _Gradients:
    """The gradients of latents [N, D] and codebook [K, D], gathered from those of blocks of logits."""

    def __init__(self, latents: Tensor, codebook: Tensor, affinity: str, temperature: float) -> None:
        self.inputs, self.affinity = (latents, codebook), affinity
        self.scale = (2 if affinity == "l2" else 1) / temperature
        self.latents, self.codebook = torch.empty_like(latents), torch.zeros_like(codebook)

    def add(self, n: int, of_logits: Tensor) -> None:
        """Add what the logits [n', K] of the latents from row n on give; of a softmax they sum to 0 over codes."""
        latents, codebook = self.inputs
        block = slice(n, n + len(of_logits))
        with full_precision(latents):
            self.latents[block] = self.scale * (of_logits @ codebook)
            self.codebook += self.scale * (of_logits.mT @ latents[block])
        if self.affinity == "l2":
            self.codebook -= self.scale * of_logits.sum(dim=0)[:, None] * codebook

    def of(self, latents: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in the dtypes of what they are gradients of."""
        return self.latents.to(latents.dtype), self.codebook.to(codebook.dtype)


def _blocks(latents: Tensor, codebook: Tensor, affinity: str, temperature: float) -> Iterator[tuple[int, Tensor]]:
    """Yield for blocks of latents the number of their first row and the logarithms of their probabilities [n, K]."""
    rows = max(1, _BLOCK // len(codebook))
    half = codebook.square().sum(dim=1) / 2 if affinity == "l2" else codebook.new_zeros(())
    for n in range(0, len(latents), rows):
        with full_precision(latents):
            logits = latents[n : n + rows] @ codebook.mT
        logits = (logits - half) * ((2 if affinity == "l2" else 1) / temperature)
        yield n, logits.log_softmax(dim=1)


def _computed(latents: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(latents.dtype, codebook.dtype), torch.float32)
    return latents.to(dtype), codebook.to(dtype)


def _log(chances: Tensor) -> Tensor:
    """Return logarithms; of what has vanished a finite one, which counts nothing times that."""
    return chances.clamp(min=torch.finfo(chances.dtype).tiny).log()


def _fake_entropies(
    latents: Tensor, codebook: Tensor, affinity: str, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(latents.dtype, codebook.dtype), torch.float32)
    scalar, other = latents.new_empty((), dtype=dtype), latents.new_empty((), dtype=dtype)
    return scalar, other, codebook.new_empty(codebook.shape[0], dtype=dtype)


def _fake_entropies_backward(
    of_sample: Tensor,
    of_mean: Tensor,
    latents: Tensor,
    codebook: Tensor,
    mean: Tensor,
    affinity: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    return latents.new_empty(latents.shape), codebook.new_empty(codebook.shape)


def _fake_through_index_backward(gradient: Tensor, latents: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    return latents.new_empty(latents.shape), codebook.new_empty(codebook.shape)


_OF_ENTROPIES = "Tensor latents, Tensor codebook, str affinity, float temperature"
_BACKWARD = "Tensor of_sample, Tensor of_mean, Tensor latents, Tensor codebook, Tensor mean, str affinity"

register(f"assignment_entropies({_OF_ENTROPIES}) -> (Tensor, Tensor, Tensor)", _compute_entropies, _fake_entropies)
register(
    f"assignment_entropies_backward({_BACKWARD}, float temperature) -> (Tensor, Tensor)",
    _compute_entropies_backward,
    _fake_entropies_backward,
)
register(
    "through_index_backward(Tensor gradient, Tensor latents, Tensor codebook) -> (Tensor, Tensor)",
    _compute_through_index_backward,
    _fake_through_index_backward,
)
