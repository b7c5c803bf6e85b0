"""Tokenizer = encoder + quantizer + decoder + PreprocessSpec: images to grids of tokens and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from vqtok import streaming
from vqtok.errors import ConfigError, MismatchError
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.images import PreprocessSpec
from vqtok.networks import reach
from vqtok.quantizers import Quantizer
from vqtok.tiling import Tiles, apply_in_tiles
from vqtok.types import Reconstruction, TokenGrid, Tokens

Output: TypeAlias = Literal["pixels", "logit-laplace"]


class Tokenizer(ImageTokenizer):
    """A grid tokenizer: every image of H x W pixels gives H / f x W / f codes, or Q times as many.

    Args:
        encoder: pixels [B, 3, H, W] to latents [B, D, h, w].
        quantizer: vectors [..., D] to codes and back.
        decoder: vectors [B, D, h, w] to pixels [B, 3, H, W], or to [B, 6, H, W]; see output.
        preprocess: how images become pixels; its ``multiple`` is f.
        output: ``"pixels"``, or ``"logit-laplace"``: the decoder's six channels are mean and logarithm of the scale of
            a logit-Laplace distribution (Ramesh et al. 2021, appendix A.3), and pixels are the sigmoid of the mean.

    Attributes:
        tile: side in pixels above which `encode` and `decode` go tile by tile, in memory that a tile needs; None never
            does. Where networks are local, codes are those of the whole image but for rounding; `sees_everything` tells
            where they are not. Recorded in every token file.

    >>> import vqtok
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
        self.tile: int | None = None

    @property
    def sees_everything(self) -> bool:
        """Whether a code depends on the whole image (attention, GroupNorm), so that tiles give other codes."""
        return reach(self.encoder) is None

    def forward(self, pixels: Tensor) -> Reconstruction:
        """Encode, quantize and decode pixels [B, 3, H, W] with gradients, for training."""
        quantized = self.quantizer(self.latents(pixels))
        decoded = self._decoded(quantized.vectors)
        if self.output == "pixels":
            return Reconstruction(decoded, quantized)
        mean, log_scale = decoded.chunk(2, dim=1)
        return Reconstruction(mean.sigmoid(), quantized, {"mean": mean, "log_scale": log_scale})

    def latents(self, pixels: Tensor) -> Tensor:
        """Return what the quantizer sees of pixels [B, 3, H, W] in the model's range: float32 [B, h, w, D].

        >>> import vqtok
        >>> vqtok.build("vqvae-cifar").latents(torch.zeros(2, 3, 32, 48)).shape
        torch.Size([2, 8, 12, 64])
        """
        self.check_pixels(pixels)
        with self.autocast():
            latents = self.encoder(pixels)
        return latents.float().permute(0, 2, 3, 1)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> TokenGrid:
        """Return the codes of pixels float [B, 3, H, W] in the model's own range.

        Raises:
            ConfigError: another shape, or H or W is no multiple of ``factor``.
            NonFiniteLatents: the encoder gave NaN or infinity.

        >>> import vqtok
        >>> grid = vqtok.load().encode(torch.zeros(2, 3, 64, 96))
        >>> grid.ids.shape, grid.vocab_size
        (torch.Size([2, 8, 12]), 8192)
        """
        self.check_pixels(pixels)
        encode = lambda x: self.in_equal_pieces(self.encode_pixels, x, x.shape[2] * x.shape[3])  # noqa: E731
        if (tiles := self._tiles(pixels.shape[2:], self.factor, self.encoder)) is None:
            ids = encode(pixels.float())
        else:
            ids = apply_in_tiles(encode, pixels.float(), tiles, cell=(self.factor, 1), axes=(2, 3), into=(1, 2))
        return TokenGrid(ids, self.vocab_size)

    @torch.no_grad()
    def decode(self, tokens: TokenGrid) -> Tensor:
        """Return pixels float32 [B, 3, H, W], in the model's own range, of ids int64 [B, h, w] or [B, h, w, Q].

        Raises:
            ConfigError: ids of another dtype or shape, or outside the vocabulary.
            MismatchError: tokens of another vocabulary.

        >>> import vqtok
        >>> vqtok.load().decode(TokenGrid(torch.zeros(1, 4, 6, dtype=torch.int64), 8192)).shape
        torch.Size([1, 3, 32, 48])
        """
        ids, codebooks = tokens.ids, self.quantizer.codebooks
        self.check_ids(ids, tokens.vocab_size)
        if ids.ndim != 3 + (codebooks > 1) or 0 in ids.shape[1:3] or ids.shape[3:] not in ((), (codebooks,)):
            expected = f"[B, h, w, {codebooks}]" if codebooks > 1 else "[B, h, w]"
            raise ConfigError(f"expected ids int64 {expected}, got {ids.dtype} {list(ids.shape)}")
        decode = lambda x: self.in_equal_pieces(self.decode_ids, x, x.shape[1] * x.shape[2] * self.factor**2)  # noqa: E731
        if (tiles := self._tiles(ids.shape[1:3], 1, self.decoder)) is None:
            return decode(ids)
        return apply_in_tiles(decode, ids, tiles, cell=(1, self.factor), axes=(1, 2), into=(2, 3))

    def tiling_difference(self, pixels: Tensor, tile: int) -> float:
        """Return which share of the codes of pixels [B, 3, H, W] would be others in tiles of that side.

        >>> import vqtok
        >>> vqtok.load().tiling_difference(torch.zeros(1, 3, 96, 96), tile=32)
        0.0
        """
        before, self.tile = self.tile, None
        try:
            whole = self.encode(pixels).ids
            self.tile = tile
            return (self.encode(pixels).ids != whole).float().mean().item()
        finally:
            self.tile = before

    def _tiles(self, size: Sequence[int], cell: int, network: nn.Module) -> Tiles | None:
        """Return the tiles, in tokens, for size / cell of them each way; None where everything goes at once."""
        if self.tile is None or max(size) * (self.factor // cell) <= self.tile:
            return None
        if self.tile < self.factor:
            raise ConfigError(f"expected tiles of at least {self.factor} pixels, got {self.tile}")
        side, needed = self.tile // self.factor, reach(network)
        # Without a limit to what a network sees, a quarter of a tile around it keeps borders from showing.
        return Tiles(side, -(-side // 4) if needed is None else -(-needed // cell))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Return the codes int64 [B, h, w] or [B, h, w, Q] of pixels in one piece: for compilers and exporters."""
        return self.quantizer.encode(self.latents(pixels))

    def decode_ids(self, ids: Tensor) -> Tensor:
        """Return the pixels of codes in one piece: the counterpart of `encode_pixels`."""
        return self.decode_vectors(self.quantizer.decode(ids))

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Return pixels float32 [B, 3, H, W] of codebook vectors [B, h, w, D]; the counterpart of `latents`."""
        decoded = self._decoded(vectors)
        return decoded if self.output == "pixels" else decoded.chunk(2, dim=1)[0].sigmoid()

    def options(self) -> dict[str, object]:
        """Return what else a caller chose that codes depend on, for the record."""
        return {} if self.tile is None else {"tile": self.tile}

    def _decoded(self, vectors: Tensor) -> Tensor:
        with self.autocast():
            decoded = self.decoder(vectors.permute(0, 3, 1, 2))
        return decoded.float()

    def tokenize_pixels(self, pixels: Tensor) -> list[streaming.Row]:
        """Return what `encode` gives of pixels float [B, 3, H, W], image by image."""
        return [streaming.grid_row(ids) for ids in self.encode(pixels).ids.cpu().numpy()]

    def detokenize_rows(self, tokens: Tokens) -> Tensor:
        """Return what `decode` gives of tokens of images whose grids are equal."""
        return self.decode(TokenGrid(torch.from_numpy(np.asarray(tokens)), tokens.vocab_size))

    def check_tokens(self, tokens: Tokens) -> None:
        """Raise MismatchError unless the tokens can be this model's; without a fingerprint, shapes must do."""
        self.check_origin(tokens)
        full = (np.diff(tokens.offsets) == tokens.grids.prod(axis=1)) & (tokens.grids[:, 0] == self.quantizer.codebooks)
        # Some encoders give every image one grid, which stands for no places in it.
        grids = getattr(self.encoder, "token_grid", -(-tokens.sizes // self.factor))
        if not full.all() or (grids != tokens.grids[:, 1:]).any():
            codes = "one token" if self.quantizer.codebooks == 1 else f"{self.quantizer.codebooks} tokens"
            raise MismatchError(f"expected grids of {codes} for {self.factor} x {self.factor} pixels, got others")
