"""Near ties: tokens that rounding may make others on another machine, found while they are made.

A latent z has codebook vector a. Pushed away from it, to a + (1 + s)(z - a), it gets another vector b exactly when z
lies within s / (2 + 2 s) |a - b| of the plane between a and b. So one more lookup finds every near tie, whatever the
number of codes, and no scores are kept.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias, TypeGuard, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqtok import ops, streaming
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.quantizers import EmaQuantizer, VectorQuantizer
from vqtok.tokenizer import Tokenizer
from vqtok.types import Tokens

Plain: TypeAlias = VectorQuantizer | EmaQuantizer

# Float32 sums in another order move a latent by some 1e-6 of its length, and codes lie some tenths of it apart.
SHARE = 1e-4


def near_ties(quantizer: Plain, latents: Tensor, codes: Tensor, share: float = SHARE) -> Tensor:
    """Tell which codes are near ties.

    Args:
        quantizer: of the codes.
        latents: float [..., D].
        codes: int64 [...], what the quantizer's ``encode`` gives of them.
        share: s above.

    Returns:
        bool [...].

    >>> import torch, vqtok
    >>> vq = vqtok.VectorQuantizer(dim=1, vocab_size=2)
    >>> vq.codebook.data = torch.tensor([[0.0], [1.0]])
    >>> latents = torch.tensor([[0.1], [0.49999], [0.51]])
    >>> near_ties(vq, latents, vq.encode(latents)).tolist()
    [False, True, False]
    """
    unit = quantizer.metric == "cosine" or (isinstance(quantizer, VectorQuantizer) and quantizer.unit_latents)
    codebook = quantizer.codebook.detach()
    if quantizer.metric == "cosine":
        codebook = ops.normalize_codebook(codebook)
    compared = ops.normalize_latents(latents) if unit else latents
    chosen = codebook[codes]
    pushed = chosen + (1 + share) * (compared - chosen)
    return ops.nearest_code(pushed, codebook, metric="dot" if quantizer.metric == "cosine" else "l2") != codes


def can_note(tokenizer: ImageTokenizer) -> TypeGuard[Tokenizer]:
    """Tell whether near ties can be found: each position of a grid has the one nearest code, and images go whole.

    >>> import vqtok
    >>> can_note(vqtok.load()), can_note(vqtok.build("rqvae-tiny"))
    (True, False)
    """
    plain = isinstance(tokenizer, Tokenizer) and isinstance(tokenizer.quantizer, Plain)
    return plain and tokenizer.tile is None


class Ledger:
    """A tokenizer as `vqtok.streaming.tokenize` sees it, which notes near ties on the way; tokens are the same.

    Args:
        tokenizer: one that `can_note`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.spec = tokenizer.spec
        self._found: deque[npt.NDArray[np.bool_]] = deque()

    def no_tokens(self) -> Tokens:
        """Return the tokens of no image."""
        return self._tokenizer.no_tokens()

    def micro_batch(self, pixels_each: int) -> int:
        """Return how many images go through the networks at once."""
        return self._tokenizer.micro_batch(pixels_each)

    @torch.no_grad()
    def tokenize_pixels(self, pixels: Tensor) -> list[streaming.Row]:
        """Return the codes of pixels [B, 3, H, W], image by image, and keep their near ties for `take`."""
        tokenizer = self._tokenizer
        tokenizer.check_pixels(pixels)
        parts = tokenizer.in_micro_batches(self._codes, pixels.float(), pixels.shape[2] * pixels.shape[3])
        ids, ties = (torch.cat(found).cpu().numpy() for found in zip(*parts, strict=True))
        self._found.extend(ties.reshape(len(ties), -1))
        return [streaming.grid_row(row) for row in ids]

    def _codes(self, pixels: Tensor, count: int) -> list[Tensor]:
        quantizer = cast(Plain, self._tokenizer.quantizer)  # `can_note` said so
        latents = self._tokenizer.latents(pixels)
        codes = quantizer.encode(latents)[:count]
        return [codes, near_ties(quantizer, latents[:count], codes)]

    def take(self) -> list[int]:
        """Return the places of the near ties among the tokens of the next image, in the order of `tokenize_pixels`."""
        return np.flatnonzero(self._found.popleft()).tolist()
