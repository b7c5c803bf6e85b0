"""Penalties that keep a codebook in use: the entropy of soft choices, and how far rows are from orthogonal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vqtok import ops
from vqtok.errors import ConfigError

Penalty: TypeAlias = Literal["entropy", "orthogonality"]

_BLOCK = 1 << 22
"""Probabilities that are held at once, 16 MB: backward computes each block anew."""


def entropies(latents: Tensor, codebook: Tensor, temperature: float) -> dict[str, Tensor]:
    """Return the losses ``entropy`` and ``diversity`` of soft choices among codebook rows.

    With p = softmax(-|z - e_k|^2 / temperature), ``entropy`` is the mean over latents of H(p), and ``diversity`` is
    -H(mean of p): minimising both makes each choice sure and all codes chosen. In memory that does not grow with the
    number of latents times that of codes.

    Args:
        latents: float [..., D], in the space in which they are compared.
        codebook: float [K, D].
        temperature: above 0; published code has 0.01.

    Returns:
        Two float32 scalars, in nats.

    Source:
        Yu et al., "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation", 2023, equation 5; for
        codebooks Sun et al. 2024 (LlamaGen) and Shi et al. 2024 (IBQ).

    >>> import math
    >>> found = entropies(torch.zeros(5, 2), torch.eye(2), temperature=1.0)
    >>> [round(x.item() / math.log(2), 4) for x in found.values()]
    [1.0, -1.0]
    """
    flat = latents.reshape(-1, latents.shape[-1]).float()
    rows = codebook.float()
    total, mean = flat.new_zeros(()), flat.new_zeros(len(rows))
    for block in blocks(flat, len(rows)):
        entropy, mass = checkpoint(_block_entropies, block, rows, temperature, use_reentrant=False)
        total, mean = total + entropy, mean + mass
    count = max(1, len(flat))
    return {"entropy": total / count, "diversity": -entropy_of(mean / count)}


def blocks(flat: Tensor, codes: int) -> Iterator[Tensor]:
    """Yield slices of latents [N, D] of which all probabilities over that many codes may be held at once."""
    yield from flat.split(max(1, _BLOCK // codes))


def _block_entropies(latents: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    # |z|^2 moves all codes alike.
    logits = (2 * latents @ codebook.T - codebook.square().sum(dim=1)) / temperature
    log_p = logits.log_softmax(dim=1)
    p = log_p.exp()
    return -(p * log_p).sum(), p.sum(dim=0)


def entropy_of(p: Tensor) -> Tensor:
    """Return the entropy of a distribution float [K], in nats; impossible codes add nothing."""
    return torch.special.entr(p).sum()


def orthogonality(codebook: Tensor) -> Tensor:
    """Return the mean squared cosine of two different rows, times (K - 1) / K: 0 when all are orthogonal.

    That is ``|E E' - I|_F^2 / K^2`` of unit rows E; since ``|E E'|_F = |E' E|_F``, nothing of K x K is made.

    Args:
        codebook: float [K, D].

    Source:
        Shin et al., "Exploration into Translation-Equivariant Image Quantization", 2023, equation 3.

    >>> [round(orthogonality(rows).item(), 6) for rows in (torch.eye(3), torch.ones(2, 3))]
    [0.0, 0.5]
    """
    count = len(codebook)
    rows = ops.normalize_codebook(codebook)
    return (rows.T @ rows).square().sum() / count**2 - 1 / count


def check_penalties(penalties: Sequence[Penalty], temperature: float) -> tuple[Penalty, ...]:
    """Refuse penalties that quantizers do not have."""
    if unknown := [name for name in penalties if name not in get_args(Penalty)]:
        raise ConfigError(f"expected penalties of {', '.join(get_args(Penalty))}, got {', '.join(map(repr, unknown))}")
    if not temperature > 0:
        raise ConfigError(f"expected temperature above 0, got {temperature}")
    return tuple(penalties)


def penalty_losses(
    penalties: Sequence[Penalty], latents: Tensor, codebook: Tensor, temperature: float
) -> dict[str, Tensor]:
    """Return the losses of the penalties that were asked for, by name."""
    losses = entropies(latents, codebook, temperature) if "entropy" in penalties else {}
    return losses | ({"orthogonality": orthogonality(codebook)} if "orthogonality" in penalties else {})


def choose(probabilities: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:
    """Return codebook rows [N, D], bit for bit, with the gradient of the expected row for the probabilities.

    As if one-hot choices were multiplied with the codebook, and their gradient passed to the probabilities: the
    straight-through estimator of Gumbel-softmax and of index backpropagation.

    Args:
        probabilities: float [N, K], what learns instead of the choices.
        codebook: float [K, D]; each row learns from where it was chosen.
        codes: int64 [N], the choices.

    >>> p = torch.tensor([[0.9, 0.1]], requires_grad=True)
    >>> choose(p, torch.tensor([[1.0], [3.0]]), torch.tensor([1])).sum().backward()
    >>> p.grad.tolist()
    [[1.0, 3.0]]
    """
    chosen = F.embedding(codes, codebook)
    # Its value is 0, and its gradient for the codebook is none.
    expected = probabilities @ codebook.detach()
    return _AddGradient.apply(chosen, expected)


class _AddGradient(torch.autograd.Function):
    """The first input forward; its gradient to both backward."""

    @staticmethod
    def forward(values: Tensor, also: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], gradients[0]
