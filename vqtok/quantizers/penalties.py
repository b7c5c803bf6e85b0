"""Penalties that keep a codebook in use: entropies of soft assignments, and orthogonality of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from torch import Tensor

from vqtok import ops
from vqtok.errors import ConfigError
from vqtok.quantizers.assignment import Affinity, assignment_entropies
from vqtok.quantizers.base import full_precision

Penalty: TypeAlias = Literal["entropy", "diversity", "orthogonality"]


def penalty_losses(
    penalties: Sequence[Penalty], latents: Tensor, codebook: Tensor, affinity: Affinity, temperature: float
) -> dict[str, Tensor]:
    """Return the asked for penalties by name, each to be made small.

    With p the softmax over codes of ``-|z - e|^2 / temperature`` (or of ``z.e / temperature``), ``entropy`` is the mean
    over latents of the entropy of p, ``diversity`` minus the entropy of the mean of p; neither holds N x K.
    ``orthogonality`` is ``|E E^T - I|^2 / K^2`` off the diagonal, E the rows of unit length.

    Args:
        penalties: names, in any order.
        latents: [..., D] as they are compared with rows.
        codebook: [K, D] as it is compared with latents.
        affinity: what is compared: distances (``"l2"``) or products (``"dot"``).
        temperature: of the softmax.

    Source:
        Entropies: Chang et al., "MaskGIT", 2022, and Yu et al., "Language Model Beats Diffusion", 2023.
        Orthogonality: Shin et al., "Exploration into Translation-Equivariant Image Quantization", 2021, equation 2.

    >>> import torch
    >>> penalty_losses(["orthogonality"], torch.zeros(0, 2), torch.tensor([[2.0, 0.0], [3.0, 3.0]]), "l2", 1.0)
    {'orthogonality': tensor(0.2500)}
    """
    losses: dict[str, Tensor] = {}
    if "entropy" in penalties or "diversity" in penalties:
        entropies = assignment_entropies(latents, codebook, affinity, temperature)
        losses = {"entropy": entropies.sample, "diversity": -entropies.mean}
    if "orthogonality" in penalties:
        losses["orthogonality"] = orthogonality(codebook)
    return {name: losses[name] for name in penalties}


def orthogonality(codebook: Tensor) -> Tensor:
    """Return the mean square of the cosines of the angles between different rows [K, D], over all K^2 pairs.

    The squares of all products of rows add up to those of ``E^T E``, which is D x D: no K x K is ever held.
    """
    rows = ops.normalize_codebook(codebook)
    with full_precision(rows):
        together = (rows.mT @ rows).square().sum()
    alone = rows.square().sum(dim=1).square().sum()
    return (together - alone) / len(rows) ** 2


def check_penalties(penalties: Sequence[Penalty]) -> tuple[Penalty, ...]:
    """Refuse penalties that there are not, and one that is named twice."""
    if isinstance(penalties, str) or set(penalties) - {*get_args(Penalty)} or len({*penalties}) != len(penalties):
        raise ConfigError(
            f"expected penalties as a list of {', '.join(get_args(Penalty))}, each at most once, got {penalties!r}"
        )
    return tuple(penalties)
