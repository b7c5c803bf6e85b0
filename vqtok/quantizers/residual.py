"""Residual quantization: each level quantizes what those before it left (Lee et al. 2022; Zeghidour et al. 2021)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vqtok import ops
from vqtok.errors import ConfigError
from vqtok.quantizers.base import Gradient, Quantizer, check_gradient
from vqtok.quantizers.ranks import from_rank_0
from vqtok.types import Quantized


class ResidualQuantizer(Quantizer):
    """Levels of quantizers, each of the residual of the ones before; vectors are the sum of theirs, in order.

    Every level's losses reach the latents (residuals are taken of detached vectors), and are averaged over levels by
    name; the gradient of the vectors reaches the latents once, whatever the levels do with theirs.

    Args:
        quantizers: one for each level; or a single one, whose codebook all levels share.
        depth: number of levels, for a single quantizer.
        dropout: whether training uses a random number of levels (the first ones): codes and vectors of that depth.
            All ranks use that of rank 0.
        gradient: of the sum: ``"straight-through"``, or ``"rotation"`` (Fifty et al. 2024), see `vqtok.ops.rotate`.

    Source:
        Lee et al., "Autoregressive Image Generation using Residual Quantization", 2022, section 3.1; Zeghidour et al.,
        "SoundStream", 2021, section III.C (dropout of levels).

    >>> from vqtok import VectorQuantizer
    >>> vq = ResidualQuantizer([VectorQuantizer(dim=2, vocab_size=4)], depth=3)
    >>> vq.codebooks, vq(torch.zeros(5, 2)).codes.shape, vq.decode(torch.zeros(5, 2, dtype=torch.int64)).shape
    (3, torch.Size([5, 3]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        quantizers: Sequence[Quantizer],
        *,
        depth: int | None = None,
        dropout: bool = False,
        gradient: Gradient = "straight-through",
    ) -> None:
        super().__init__()
        first = check_alike(quantizers)
        self.depth = len(quantizers) if depth is None else depth
        if self.depth < 1 or len(quantizers) not in (1, self.depth):
            raise ConfigError(f"expected one quantizer or depth of them, got {len(quantizers)} and depth {depth}")
        if any(x.dim != x.latent_dim or x.learns_from_vectors for x in quantizers):
            raise ConfigError("expected quantizers of latents as long as vectors that learn by their own losses")
        self.quantizers = nn.ModuleList(quantizers)
        self.dim = self.latent_dim = first.dim
        self.vocab_size, self.codebooks = first.vocab_size, self.depth * first.codebooks
        self.dropout = dropout
        self.gradient: Gradient = check_gradient(gradient)

    def levels(self, depth: int) -> list[Quantizer]:
        """Return the quantizers of the first levels."""
        return [self.quantizers[i % len(self.quantizers)] for i in range(depth)]  # pyright: ignore[reportReturnType]

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [..., Q] of latents [..., D], those of each level after those of the one before."""
        codes, residual = [], latents
        for level in self.levels(self.depth):
            codes.append(level.encode(residual))
            residual = residual - level.decode(codes[-1])
        return self._joined(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Return vectors [..., D] of codes int64 [..., Q], or of the first levels' codes [..., q].

        Raises:
            ConfigError: q is no number of whole levels.
        """
        each = self._each
        depth, rest = divmod(codes.shape[-1], each) if codes.ndim else (0, 0)
        if rest or not 1 <= depth <= self.depth:
            raise ConfigError(f"expected codes [..., {self.codebooks}] or of the first levels, got {[*codes.shape]}")
        if self.codebooks == 1:
            return self.levels(1)[0].decode(codes)
        return sum_in_order([x.decode(c) for x, c in zip(self.levels(depth), split_codes(codes, each), strict=True)])

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., D]; each loss of the levels, averaged over them."""
        found, residual = [], latents
        for level in self.levels(self._depth(latents.device)):
            found.append(level(residual))
            residual = residual - found[-1].vectors.detach()
        total = sum_in_order([x.vectors.detach() for x in found])
        if self.gradient == "rotation":
            # Rows of the sum as a codebook, each chosen by its own latent.
            rows = torch.arange(total.numel() // self.dim, device=total.device).reshape(total.shape[:-1])
            vectors = ops.rotate(latents, total.reshape(-1, self.dim), rows).vectors
        else:
            vectors = ops.pass_through(total, latents)
        return Quantized(vectors, self._joined([x.codes for x in found]), mean_losses([x.losses for x in found]))

    @property
    def _each(self) -> int:
        """Codes of a level."""
        return self.codebooks // self.depth

    def _joined(self, codes: list[Tensor]) -> Tensor:
        return codes[0] if self.codebooks == 1 else join_codes(codes, self._each)

    def _depth(self, device: torch.device) -> int:
        if not (self.training and self.dropout):
            return self.depth
        return int(from_rank_0(torch.randint(1, self.depth + 1, (1,), device=device)))


def check_alike(quantizers: Sequence[Quantizer]) -> Quantizer:
    """Return the first of some quantizers, or refuse those whose codes cannot stand beside each other."""
    kinds = {(x.dim, x.vocab_size, x.codebooks) for x in quantizers}
    if len(kinds) != 1:
        raise ConfigError(f"expected quantizers of one (dim, vocab_size, codebooks), got {sorted(kinds)}")
    return quantizers[0]


def join_codes(codes: Sequence[Tensor], each: int) -> Tensor:
    """Return codes [...] (each is 1) or [..., each] of several quantizers as [..., Q]."""
    return torch.stack([*codes], dim=-1) if each == 1 else torch.cat([*codes], dim=-1)


def split_codes(codes: Tensor, each: int) -> list[Tensor]:
    """Return codes [..., Q] as those of each quantizer: [...], or [..., each]."""
    parts = codes.split(each, dim=-1)
    return [part.squeeze(-1) for part in parts] if each == 1 else list(parts)


def sum_in_order(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors, added one after the other: the order is part of the answer."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def mean_losses(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each loss over quantizers."""
    by_name: dict[str, list[Tensor]] = defaultdict(list)
    for losses in parts:
        for name, loss in losses.items():
            by_name[name].append(loss)
    return {name: torch.stack(losses).mean() for name, losses in by_name.items()}
