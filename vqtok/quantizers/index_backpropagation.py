"""Index backpropagation: the choice of the code is learnt too.

Shi et al. 2024, "Scalable Image Tokenization with Index Backpropagation Quantization" (IBQ).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqtok import ops
from vqtok.quantizers.assignment import through_index
from vqtok.quantizers.base import Quantizer, check_positive, check_space, squared_error
from vqtok.quantizers.penalties import Penalty, check_penalties, penalty_losses
from vqtok.types import Quantized


class IndexBackpropagationQuantizer(Quantizer):
    """The row with the greatest product; gradients through the softmax of all products to every row.

    With p the softmax of the products ``z.e_k``, h the one-hot vector of the chosen code k, and E the rows, vectors are
    ``E^T h`` forward and learn as ``E^T (h + p - sg[p])``: see `through_index`. They do not pass straight through.

    The paper's loss is the sum of three mean squared differences, here by name with their published weights:

    - ``index``, weight 1: of the vectors with this gradient, from the latents;
    - ``commitment``, weight 1: of the rows held constant, from the latents;
    - ``codebook``, weight 0.25: of the rows, from the latents held constant.

    Args:
        dim: length D of a vector.
        vocab_size: number of codes K.
        penalties: further losses, for which see `penalty_losses`; published: ``entropy`` and ``diversity``, of the
            softmax of ``z.e_k / temperature``, with weight 0.05 each.
        entropy_temperature: of that softmax (published: 0.01).

    >>> import torch
    >>> ibq = IndexBackpropagationQuantizer(dim=2, vocab_size=4)
    >>> out = ibq(torch.ones(3, 2))
    >>> out.vectors.sum().backward()
    >>> sorted(out.losses), ibq.codebook.grad.ne(0).all().item()
    (['codebook', 'commitment', 'index'], True)
    """

    def __init__(
        self,
        dim: int,
        vocab_size: int,
        *,
        penalties: Sequence[Penalty] = (),
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        check_space(dim, vocab_size)
        self.dim = self.latent_dim = dim
        self.vocab_size = vocab_size
        self.penalties = check_penalties(penalties)
        self.entropy_temperature = check_positive("entropy_temperature", entropy_temperature)
        self.codebook = nn.Parameter(torch.randn(vocab_size, dim))

    def encode(self, latents: Tensor) -> Tensor:
        """Return codes int64 [...] of latents [..., D]."""
        return ops.nearest_code(latents, self.codebook, metric="dot")

    def decode(self, codes: Tensor) -> Tensor:
        """Return codebook rows [..., D]."""
        return self.codebook[codes]

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize latents [..., D]; losses ``index``, ``commitment`` and ``codebook``, and penalties."""
        codes = self.encode(latents)
        vectors = through_index(latents, self.codebook, codes)
        losses = {
            "index": squared_error(latents, vectors),
            **ops.straight_through(latents, self.codebook, codes).losses,
        }
        further = penalty_losses(self.penalties, latents, self.codebook, "dot", self.entropy_temperature)
        return Quantized(vectors, codes, {**losses, **further})
