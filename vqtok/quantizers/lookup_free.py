"""Lookup-free quantization: the sign of every dimension is a bit.

Yu et al. 2023, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation" (MAGVIT-v2), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqtok import ops
from vqtok.quantizers.base import Quantizer, check_codes, check_latents, check_positive, squared_error
from vqtok.quantizers.bits import (
    Endian,
    check_bits,
    mean_code_entropy,
    pack_bits,
    sample_entropy,
    signs,
    unpack_bits,
)
from vqtok.types import Quantized

_MOST_TOGETHER = 18
"""The bits of the largest published vocabulary."""


class LookupFreeQuantizer(Quantizer):
    """The sign of every dimension, straight-through gradient; neither codebook nor lookup (MAGVIT-v2).

    A dimension above 0 is a set bit and becomes ``scale``; anything else, 0 included, becomes ``-scale``. With the
    temperature T, a latent z has the bit d set with probability ``sigmoid(4 scale z_d / T)``, independently: the
    softmax of ``-|z - q|^2 / T`` over all 2^bits vectors.

    Args:
        bits: dimensions of a latent, and bits of a code; the vocabulary has 2^bits codes.
        endian: ``"big"``: the first dimension is the greatest bit (vector-quantize-pytorch); ``"little"``: the least
            (Open-MAGVIT2).
        scale: size of a vector's elements.
        temperature: T of the entropies; published: 0.01.
        group_bits: ``diversity`` is taken of groups of so many bits, and summed; by default of the whole code up to 18
            bits, and of 9 bits above.

    >>> import torch
    >>> lfq = LookupFreeQuantizer(bits=3, endian="little")
    >>> out = lfq(torch.tensor([[0.4, -2.0, 1.0]]))
    >>> out.codes.tolist(), out.vectors.tolist(), sorted(out.losses)
    ([5], [[1.0, -1.0, 1.0]], ['commitment', 'diversity', 'entropy'])
    """

    def __init__(
        self,
        bits: int,
        endian: Endian = "big",
        *,
        scale: float = 1.0,
        temperature: float = 0.01,
        group_bits: int | None = None,
    ) -> None:
        super().__init__()
        self.group_bits = (bits if bits <= _MOST_TOGETHER else 9) if group_bits is None else group_bits
        check_bits(bits, self.group_bits, endian)
        self.dim = self.latent_dim = self.bits = bits
        self.vocab_size = 1 << bits
        self.endian: Endian = endian
        self.scale = check_positive("scale", scale)
        self.temperature = check_positive("temperature", temperature)

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [...] of latents [..., bits]."""
        check_latents(latents, self.bits)
        return pack_bits(latents > 0, self.endian)

    def decode(self, codes: Tensor) -> Tensor:
        """Return vectors float32 [..., bits] of ``scale`` and ``-scale``."""
        check_codes(codes, self.vocab_size)
        return signs(unpack_bits(codes, self.bits, self.endian), self.scale)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., bits]; losses ``commitment``, ``entropy`` and ``diversity``."""
        codes = self.encode(latents)
        values = signs(latents > 0, self.scale)
        logits = latents.to(torch.promote_types(latents.dtype, torch.float32)) * (4 * self.scale / self.temperature)
        losses = {
            "commitment": squared_error(latents, values),
            "entropy": sample_entropy(logits),
            "diversity": -mean_code_entropy(logits, self.group_bits),
        }
        return Quantized(ops.pass_through(values, latents), codes, losses)
