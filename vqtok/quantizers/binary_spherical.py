"""Binary spherical quantization: signs on the unit sphere.

Zhao, Xiong and Kraehenbuehl 2024, "Image and Video Tokenization with Binary Spherical Quantization".
"""

from __future__ import annotations

from math import sqrt

from torch import Tensor

from vqtok import ops
from vqtok.quantizers.base import Quantizer, check_codes, check_latents, check_positive, squared_error
from vqtok.quantizers.bits import check_bits, mean_code_entropy, pack_bits, sample_entropy, signs, unpack_bits
from vqtok.types import Quantized


class BinarySphericalQuantizer(Quantizer):
    """Latents of unit length, each dimension replaced by its sign over ``sqrt(bits)``, straight-through gradient.

    The gradient passes straight through from a vector to the unit latent u, and from there through the normalisation.
    With the temperature T the bit d is set with probability ``sigmoid(4 u_d / (sqrt(bits) T))``, independently.

    Args:
        bits: dimensions of a latent, and bits of a code; the first dimension is the greatest bit. The vocabulary has
            2^bits codes.
        temperature: T of the entropies; published: 1.
        group_bits: ``diversity`` is taken of groups of so many bits, and summed, as in the paper
            (published: 9).

    >>> import torch
    >>> bsq = BinarySphericalQuantizer(bits=4)
    >>> out = bsq(torch.tensor([[3.0, -0.5, 0.0, 9.0]]))
    >>> out.codes.tolist(), out.vectors.tolist(), sorted(out.losses)
    ([9], [[0.5, -0.5, -0.5, 0.5]], ['commitment', 'diversity', 'entropy'])
    """

    def __init__(self, bits: int, *, temperature: float = 1.0, group_bits: int = 9) -> None:
        super().__init__()
        check_bits(bits, group_bits)
        self.dim = self.latent_dim = self.bits = bits
        self.vocab_size = 1 << bits
        self.temperature = check_positive("temperature", temperature)
        self.group_bits = group_bits

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [...] of latents [..., bits]; they need not be of unit length, signs are the same."""
        check_latents(latents, self.bits)
        return pack_bits(latents > 0, "big")

    def decode(self, codes: Tensor) -> Tensor:
        """Return vectors float32 [..., bits] of unit length."""
        check_codes(codes, self.vocab_size)
        return signs(unpack_bits(codes, self.bits, "big"), 1 / sqrt(self.bits))

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., bits]; losses ``commitment``, ``entropy`` and ``diversity``."""
        codes = self.encode(latents)
        values, unit = signs(latents > 0, 1 / sqrt(self.bits)), ops.normalize_latents(latents)
        logits = unit * (4 / (sqrt(self.bits) * self.temperature))
        losses = {
            "commitment": squared_error(unit, values),
            "entropy": sample_entropy(logits),
            "diversity": -mean_code_entropy(logits, self.group_bits),
        }
        return Quantized(ops.pass_through(values, unit), codes, losses)
