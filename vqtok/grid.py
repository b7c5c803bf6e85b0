"""What grid tokenizers have in common: a position's codes for every cell of pixels, whole images or tiles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vqtok import streaming
from vqtok.errors import ConfigError, MismatchError
from vqtok.image_tokenizer import ImageTokenizer
from vqtok.images import PreprocessSpec
from vqtok.tiling import Tiles, apply_in_tiles
from vqtok.types import TokenGrid, Tokens


class GridTokenizer(ImageTokenizer, ABC):
    """Abstract tokenizer of H x W pixels into H / f x W / f positions of Q codes each.

    Attributes:
        tile: side in pixels above which `encode` and `decode` go tile by tile, in memory that a tile needs; None never
            does. Where networks are local, codes are those of the whole image but for rounding; `sees_everything` tells
            where they are not. Recorded in every token file.

    >>> import vqtok
    >>> isinstance(vqtok.load(), GridTokenizer)
    True
    """

    def __init__(self, preprocess: PreprocessSpec) -> None:
        super().__init__(preprocess)
        self.tile: int | None = None

    @property
    @abstractmethod
    def encoder_reach(self) -> int | None:
        """How many pixels beyond its own cell a code depends on; None for all of the image."""

    @property
    @abstractmethod
    def decoder_reach(self) -> int | None:
        """How many positions beyond its own a pixel depends on; None for all of the image."""

    @abstractmethod
    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Return pixels float32 [B, 3, H, W] of codebook vectors [B, h, w, D]; the counterpart of `latents`."""

    @property
    def sees_everything(self) -> bool:
        """Whether a code depends on the whole image (attention, GroupNorm), so that tiles give other codes."""
        return self.encoder_reach is None

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
        if (tiles := self._tiles(pixels.shape[2:], self.factor, self.encoder_reach)) is None:
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
        if (tiles := self._tiles(ids.shape[1:3], 1, self.decoder_reach)) is None:
            return decode(ids)
        return apply_in_tiles(decode, ids, tiles, cell=(1, self.factor), axes=(1, 2), into=(2, 3))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Return the codes int64 [B, h, w] or [B, h, w, Q] of pixels in one piece: for compilers and exporters."""
        return self.quantizer.encode(self.latents(pixels))

    def decode_ids(self, ids: Tensor) -> Tensor:
        """Return the pixels of codes in one piece: the counterpart of `encode_pixels`."""
        return self.decode_vectors(self.quantizer.decode(ids))

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

    def _tiles(self, size: Sequence[int], cell: int, reach: int | None) -> Tiles | None:
        """Return the tiles, in positions, for size / cell of them each way; None where everything goes at once."""
        if self.tile is None or max(size) * (self.factor // cell) <= self.tile:
            return None
        if self.tile < self.factor:
            raise ConfigError(f"expected tiles of at least {self.factor} pixels, got {self.tile}")
        side = self.tile // self.factor
        # Without a limit to what a network sees, a quarter of a tile around it keeps borders from showing.
        return Tiles(side, -(-side // 4) if reach is None else -(-reach // cell))

    def options(self) -> dict[str, object]:
        """Return what else a caller chose that codes depend on, for the record."""
        return {} if self.tile is None else {"tile": self.tile}

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
        if not full.all() or (self.grids_of(tokens.sizes) != tokens.grids[:, 1:]).any():
            codes = "one token" if self.quantizer.codebooks == 1 else f"{self.quantizer.codebooks} tokens"
            raise MismatchError(f"expected grids of {codes} for {self.factor} x {self.factor} pixels, got others")

    def grids_of(self, sizes: np.ndarray) -> np.ndarray:
        """Return the grids [n, 2] of images of true sizes [n, 2]."""
        return -(-sizes // self.factor)
