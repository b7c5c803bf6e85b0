"""Residual quantization: every level quantizes what the levels before it left.

Lee et al. 2022, "Autoregressive Image Generation using Residual Quantization" (RQ-VAE), section 3.1, and Zeghidour et
al. 2021, "SoundStream", sections III-C and III-D.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch import distributed as dist

from vqtok import ops
from vqtok.errors import ConfigError
from vqtok.quantizers.base import Quantizer
from vqtok.quantizers.composed import check_parts, distinct, join_codes, mean_losses, part_codes
from vqtok.types import Quantized


class ResidualQuantizer(Quantizer):
    """Levels of quantizers; a vector is the sum of the levels' vectors, from the first level on.

    A level sees the latents less the sum of the vectors before it, which is held constant, so every level's
    ``commitment`` pulls at the latents themselves: it is the mean square of what is left after that level. The sum
    passes straight through: latents get the gradient of the vectors once, whatever the depth, and a level's codebook
    learns from its losses alone (or from its averages).

    Each loss is the mean over the levels in use, so that its size does not depend on the depth; RQ-VAE's published
    weight of ``commitment`` is 0.25, of this mean.

    Args:
        quantizers: at least 2 levels, of one vocab_size and dim. The same quantizer repeated is one codebook that those
            levels share; an `EmaQuantizer` that is shared learns after every level.
        dropout: in training mode the chance of a batch to be quantized by a number of levels that is drawn evenly from
            1 to all; codes are [..., d] then. SoundStream draws always (1.0). Under torch.distributed every rank uses
            the depth of rank 0. What is drawn is a shape, so torch.compile cannot take it in one graph.

    >>> import torch
    >>> from vqtok import VectorQuantizer
    >>> rq = ResidualQuantizer([VectorQuantizer(3, 8) for _ in range(4)]).eval()
    >>> out = rq(torch.randn(2, 3))
    >>> out.codes.shape, rq.decode(out.codes[..., :2]).shape
    (torch.Size([2, 4]), torch.Size([2, 3]))
    """

    def __init__(self, quantizers: Sequence[Quantizer], *, dropout: float = 0.0) -> None:
        super().__init__()
        check_parts(quantizers)
        if len({size for level in quantizers for size in (level.dim, level.latent_dim)}) > 1:
            sizes = [(level.latent_dim, level.dim) for level in quantizers]
            raise ConfigError(f"expected levels with latents and vectors of one dim, got (latent_dim, dim) {sizes}")
        if any(getattr(level, "gradient", None) == "rotation" for level in quantizers):
            raise ConfigError(
                "expected levels with gradient 'straight-through': the sum of all levels passes straight through, "
                "so a rotation of one of them would have no effect"
            )
        if not 0 <= dropout <= 1:
            raise ConfigError(f"expected dropout in [0, 1], got {dropout}")
        self.quantizers, self.dropout = distinct(quantizers), dropout
        self._levels = [[*self.quantizers].index(level) for level in quantizers]
        self.dim = self.latent_dim = quantizers[0].dim
        self.vocab_size, self.codebooks = quantizers[0].vocab_size, sum(level.codebooks for level in quantizers)

    @property
    def levels(self) -> list[Quantizer]:
        """The quantizer of each level."""
        modules: list[Quantizer] = [*self.quantizers]  # pyright: ignore[reportAssignmentType]
        return [modules[i] for i in self._levels]

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [..., Q] of latents [..., D], the first level's first."""
        first, *others = self.levels
        codes = [first.encode(latents)]
        vectors = first.decode(codes[0])
        for level in others:
            codes.append(level.encode(latents - vectors))
            vectors = vectors + level.decode(codes[-1])
        return join_codes(codes, self.levels)

    def decode(self, codes: Tensor) -> Tensor:
        """Return vectors [..., D] of codes int64 [..., d], of all levels or of the first ones."""
        levels = self._of_codes(codes)
        parts = zip(levels, part_codes(codes, levels), strict=True)
        return reduce(torch.add, [level.decode(x) for level, x in parts])

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., D]; in training mode perhaps by the first levels alone."""
        first, *others = levels = self.levels[: self._depth(latents.device)]
        parts = [first(latents)]
        vectors = parts[0].vectors.detach()
        for level in others:
            parts.append(level(latents - vectors))
            vectors = vectors + parts[-1].vectors.detach()
        codes = join_codes([part.codes for part in parts], levels)
        return Quantized(ops.pass_through(vectors, latents), codes, mean_losses(parts, [1.0] * len(parts)))

    def _depth(self, device: torch.device) -> int:
        """Return the number of levels to use now."""
        if not (self.training and self.dropout):
            return len(self._levels)
        drawn = torch.randint(1, len(self._levels) + 1, ())
        depth = torch.where(torch.rand(()) < self.dropout, drawn, len(self._levels))
        if dist.is_available() and dist.is_initialized():
            depth = depth.to(device)
            dist.broadcast(depth, 0)
        return int(depth)

    def _of_codes(self, codes: Tensor) -> list[Quantizer]:
        """Return the first levels, as many as codes [..., d] are of."""
        levels, count = self.levels, codes.shape[-1] if codes.dim() else 0
        for depth in range(1, len(levels) + 1):
            if sum(level.codebooks for level in levels[:depth]) == count:
                return levels[:depth]
        raise ConfigError(f"expected codes [..., d] of the first levels, d at most {self.codebooks}, got {count}")
