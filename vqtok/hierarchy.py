"""HierarchicalTokenizer: two levels of tokens in one grid, the coarse level conditioning the fine (VQ-VAE-2)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from vqtok.errors import ConfigError
from vqtok.grid import GridTokenizer
from vqtok.images import PreprocessSpec
from vqtok.networks import Vqvae2Network
from vqtok.quantizers.levels import LevelsQuantizer, to_cells, unpack_levels
from vqtok.types import Reconstruction


class HierarchicalTokenizer(GridTokenizer):
    """A grid tokenizer of two levels: of H x W pixels H / f x W / f positions, each of 1 + r^2 codes.

    The first code of a position is the top level's, the others are the bottom level's of its r x r cell, row by row.
    What depends on what: bottom latents on the top's codes, so a bottom code means nothing beside another top.

    Args:
        network: encoders and decoders of both levels.
        quantizer: of both levels, for the network's ratio r.
        preprocess: how images become pixels; its ``multiple`` is f, the pixels of a top latent.

    >>> from vqtok import EmaQuantizer
    >>> network = Vqvae2Network(channels=8, residual_blocks=1, residual_channels=4, dim=6)
    >>> quantizer = LevelsQuantizer(EmaQuantizer(6, 32), EmaQuantizer(6, 32))
    >>> tokenizer = HierarchicalTokenizer(network, quantizer, PreprocessSpec(multiple=8))
    >>> tokenizer.encode(torch.zeros(2, 3, 32, 48)).ids.shape
    torch.Size([2, 4, 6, 5])
    """

    def __init__(self, network: Vqvae2Network, quantizer: LevelsQuantizer, preprocess: PreprocessSpec) -> None:
        super().__init__(preprocess)
        if network.ratio != quantizer.ratio:
            raise ConfigError(f"expected a quantizer of ratio {network.ratio} as the network's, got {quantizer.ratio}")
        self.network, self.quantizer = network, quantizer

    @property
    def levels(self) -> LevelsQuantizer:
        """The quantizer, as what it is."""
        return cast(LevelsQuantizer, self.quantizer)

    @property
    def encoder_reach(self) -> int | None:
        """How many pixels beyond its own cell a code depends on."""
        return self.network.encoder_reach

    @property
    def decoder_reach(self) -> int | None:
        """How many positions beyond its own a pixel depends on."""
        return self.network.decoder_reach

    def forward(self, pixels: Tensor) -> Reconstruction:
        """Encode, quantize and decode pixels [B, 3, H, W] with gradients, for training."""
        features = self._features(pixels)
        top = self.levels.top(self._top(features))
        quantized = self.levels.join(top, self.levels.bottom(self._bottom_cells(features, top.vectors)))
        return Reconstruction(self.decode_vectors(quantized.vectors), quantized)

    def latents(self, pixels: Tensor) -> Tensor:
        """Return what the quantizer sees of pixels [B, 3, H, W] in the model's range: float32 [B, h, w, Q * D].

        The bottom's latents are those beside the top's codes; the way through these has no gradient here.
        """
        features = self._features(pixels)
        top = self._top(features)
        vectors = self.levels.top.decode(self.levels.top.encode(top))
        return torch.cat([top.unsqueeze(3), self._bottom_cells(features, vectors)], dim=3).flatten(3)

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Return pixels float32 [B, 3, H, W] of codebook vectors [B, h, w, Q * D]; the counterpart of `latents`."""
        levels = unpack_levels(vectors.unflatten(3, (self.quantizer.codebooks, -1)), self.levels.ratio)
        with self.autocast():
            pixels = self.network.decode(levels.top.permute(0, 3, 1, 2), levels.bottom.permute(0, 3, 1, 2))
        return pixels.float()

    def _features(self, pixels: Tensor) -> Tensor:
        self.check_pixels(pixels)
        with self.autocast():
            return self.network.features(pixels)

    def _top(self, features: Tensor) -> Tensor:
        """Return the top's latents float32 [B, h, w, D]."""
        with self.autocast():
            latents = self.network.top_latents(features)
        return latents.float().permute(0, 2, 3, 1)

    def _bottom_cells(self, features: Tensor, top: Tensor) -> Tensor:
        """Return the bottom's latents float32 [B, h, w, r^2, D] beside the top's vectors [B, h, w, D]."""
        with self.autocast():
            latents = self.network.bottom_latents(features, top.permute(0, 3, 1, 2))
        return to_cells(latents.float().permute(0, 2, 3, 1), self.levels.ratio)
