"""Tokenizer = encoder + quantizer + decoder + PreprocessSpec: images to grids of tokens and back."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from torch import Tensor, nn

from vqtok.grid import GridTokenizer
from vqtok.images import PreprocessSpec
from vqtok.networks import reach
from vqtok.quantizers import Quantizer
from vqtok.types import Quantized, Reconstruction

Output: TypeAlias = Literal["pixels", "logit-laplace"]


class Tokenizer(GridTokenizer):
    """A grid tokenizer: every image of H x W pixels gives H / f x W / f codes, or Q times as many.

    Args:
        encoder: pixels [B, 3, H, W] to latents [B, D, h, w].
        quantizer: vectors [..., D] to codes and back.
        decoder: vectors [B, D, h, w] to pixels [B, 3, H, W], or to [B, 6, H, W]; see output.
        preprocess: how images become pixels; its ``multiple`` is f.
        output: ``"pixels"``, or ``"logit-laplace"``: the decoder's six channels are mean and logarithm of the scale of
            a logit-Laplace distribution (Ramesh et al. 2021, appendix A.3), and pixels are the sigmoid of the mean.

    >>> import torch, vqtok
    >>> tokenizer = vqtok.build("vqvae-cifar")
    >>> tokenizer.encode(torch.zeros(2, 3, 32, 48)).ids.shape
    torch.Size([2, 8, 12])
    """

    def __init__(
        self,
        encoder: nn.Module,
        quantizer: Quantizer,
        decoder: nn.Module,
        preprocess: PreprocessSpec,
        output: Output = "pixels",
    ) -> None:
        super().__init__(preprocess)
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.output: Output = output

    @property
    def encoder_reach(self) -> int | None:
        """How many pixels beyond its own cell a code depends on; None for all of the image."""
        return reach(self.encoder)

    @property
    def decoder_reach(self) -> int | None:
        """How many positions beyond its own a pixel depends on; None for all of the image."""
        return reach(self.decoder)

    def forward(self, pixels: Tensor) -> Reconstruction:
        """Encode, quantize and decode pixels [B, 3, H, W] with gradients, for training."""
        return self.reconstruct(self.quantizer(self.latents(pixels)))

    def reconstruct(self, quantized: Quantized) -> Reconstruction:
        """Decode quantized latents, vectors [B, h, w, D], with gradients: the second half of `forward`."""
        decoded = self._decoded(quantized.vectors)
        if self.output == "pixels":
            return Reconstruction(decoded, quantized)
        mean, log_scale = decoded.chunk(2, dim=1)
        return Reconstruction(mean.sigmoid(), quantized, {"mean": mean, "log_scale": log_scale})

    def latents(self, pixels: Tensor) -> Tensor:
        """Return what the quantizer sees of pixels [B, 3, H, W] in the model's range: float32 [B, h, w, D].

        >>> import torch, vqtok
        >>> vqtok.build("vqvae-cifar").latents(torch.zeros(2, 3, 32, 48)).shape
        torch.Size([2, 8, 12, 64])
        """
        self.check_pixels(pixels)
        with self.autocast():
            latents = self.encoder(pixels)
        return latents.float().permute(0, 2, 3, 1)

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Return pixels float32 [B, 3, H, W] of codebook vectors [B, h, w, D]; the counterpart of `latents`."""
        decoded = self._decoded(vectors)
        return decoded if self.output == "pixels" else decoded.chunk(2, dim=1)[0].sigmoid()

    def _decoded(self, vectors: Tensor) -> Tensor:
        with self.autocast():
            decoded = self.decoder(vectors.permute(0, 3, 1, 2))
        return decoded.float()

    def grids_of(self, sizes: np.ndarray) -> np.ndarray:
        """Return the grids [n, 2] of images of true sizes [n, 2]; some encoders give every image one and the same."""
        one: tuple[int, int] | None = getattr(self.encoder, "token_grid", None)
        return super().grids_of(sizes) if one is None else np.array(one)
